from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from leptonai.cli.run_compare import differences, flatten
from leptonai.core.control import ControlServer, Halt, Order, Resize, Save, SwitchConsistency
from leptonai.core.errors import InputError
from leptonai.core.journal import Journal
from tests.cli.conftest import Said
from tests.cli.stage import write_run

Lepton = Callable[..., Said]


@pytest.fixture
def orders(stage: Path) -> Iterator[list[Order]]:
    """Orders that reach the run ``first``, which lives."""
    taken: list[Order] = []

    def take(order: Order) -> str:
        taken.append(order)
        return "taken"

    with ControlServer(stage / "runs" / "first", take):
        yield taken


def test_stop_and_save_reach_a_run_that_lives(lepton: Lepton, orders: list[Order]) -> None:
    assert lepton("runs", "save", "first").code == 0
    said = lepton("runs", "stop", "runs/first")
    assert orders == [Save(), Halt()]
    assert (said.code, said.out) == (0, "asked runs/first to stop\n")


def test_resize_and_mode_reach_a_run_that_lives(lepton: Lepton, orders: list[Order]) -> None:
    assert lepton("resize", "first", "3").out == "asked runs/first to go on with 3 workers\n"
    assert lepton("runs", "mode", "first", "ssp(3)").out == "asked runs/first to go on with ssp(3)\n"
    assert orders == [Resize(num_workers=3), SwitchConsistency(mode="ssp(3)")]


@pytest.mark.parametrize("words", [("resize", "first", "0"), ("runs", "mode", "first", "sometimes")])
def test_an_order_that_makes_no_sense_is_not_sent(
    lepton: Lepton, orders: list[Order], words: tuple[str, ...]
) -> None:
    assert lepton(*words).code == 2
    assert not orders


def test_an_order_the_run_refuses_has_the_exit_code_of_a_refusal(lepton: Lepton, stage: Path) -> None:
    from leptonai.core.errors import Refused

    def refuse(order: Order) -> str:
        raise Refused("not now")

    with ControlServer(stage / "runs" / "first", refuse):
        assert lepton("runs", "stop", "first").code == 3


def test_a_run_is_meant_by_path_name_beginning_or_last(lepton: Lepton, stage: Path) -> None:
    for word in ("runs/second", str(stage / "runs" / "second"), "second", "sec"):
        assert json.loads(lepton("runs", "show", word, "--json").out)["run_id"] == "second"
    assert json.loads(lepton("runs", "show", "last", "--json").out)["run_id"] == "third"


def test_a_name_in_the_register_is_found_from_anywhere(
    lepton: Lepton, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    assert json.loads(lepton("runs", "show", "first", "--json").out)["run_id"] == "first"


def test_last_without_any_run_is_an_input_error(lepton: Lepton) -> None:
    assert lepton("runs", "show", "last", "--home", "empty").code == 2


def test_a_run_that_is_being_written_is_shown_running_with_its_steps(lepton: Lepton, stage: Path) -> None:
    with Journal(stage / "runs" / "third" / "events.jsonl"):
        assert json.loads(lepton("runs", "show", "third", "--json").out)["status"] == "running"
    rows = {row["run_id"]: row for row in json.loads(lepton("runs", "list", "--json").out)}
    assert (rows["third"]["status"], rows["third"]["step"]) == ("lost", 120)
    assert "accuracy" in rows["third"]["metrics"]


def test_a_damaged_journal_is_told_with_its_line(lepton: Lepton, stage: Path) -> None:
    path = stage / "runs" / "first" / "events.jsonl"
    path.write_text("nonsense\n" + path.read_text())
    said = lepton("runs", "show", "first")
    assert said.code == 2
    assert "events.jsonl:1" in said.err


def test_all_of_show_and_compare_fits_eighty_columns(lepton: Lepton) -> None:
    for words in (("show", "first"), ("compare", "first", "second", "third"), ("list",)):
        said = lepton("runs", *words)
        assert said.code == 0
        assert max(len(line.rstrip()) for line in said.out.splitlines()) <= 80


def test_runs_with_epochs_of_different_length_are_compared_by_epoch(lepton: Lepton, stage: Path) -> None:
    write_run(stage / "runs" / "long", learning_rate=0.1)
    path = stage / "runs" / "long" / "events.jsonl"
    path.write_text(path.read_text().replace('"steps_per_epoch":50', '"steps_per_epoch":100'))
    said = lepton("runs", "compare", "first", "runs/long")
    assert said.out.count("epoch 4") == 2


def test_nested_settings_become_dotted_names_and_only_differences_stay() -> None:
    first, second = flatten({"a": {"b": 1, "c": 2}, "d": 3}), flatten({"a": {"b": 1, "c": 5}})
    assert differences([first, second]) == {"a.c": [2, 5], "d": [3, None]}


def test_a_port_in_use_is_an_input_error_that_names_it(lepton: Lepton, stage: Path) -> None:
    (stage / "runs" / "first" / "tensorboard").mkdir()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        said = lepton("runs", "show", "first", "--open", "--port", str(port))
    assert said.code == 2
    assert f"port {port} on 127.0.0.1 cannot be used: Address already in use" in said.err
    assert "--port" in said.err


def test_tensorboard_without_events_or_without_its_package_is_an_input_error(
    lepton: Lepton, stage: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "nothing for TensorBoard yet" in lepton("runs", "show", "first", "--open").err
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    said = lepton("runs", "show", "first", "--open")
    assert said.code == 2
    assert "pip install tensorboard" in said.err


def test_tensorboard_listens_on_loopback_alone_until_interrupted(stage: Path) -> None:
    (stage / "runs" / "first" / "tensorboard").mkdir()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    program = "from leptonai.cli import main; main()"
    words = [sys.executable, "-c", program, "runs", "show", "first", "--open", "--port", str(port)]
    with subprocess.Popen(words, cwd=stage, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        # TensorBoard's own line comes when it serves.
        served = any("http://127.0.0.1" in line and "Press CTRL+C" in line for line in process.stderr)
        owned = psutil.Process(process.pid)
        listening = [
            each.laddr for each in owned.net_connections(kind="tcp") if each.status == psutil.CONN_LISTEN
        ]
        children = owned.children(recursive=True)
        os.kill(process.pid, signal.SIGINT)
        process.wait(timeout=30)
    assert served
    assert listening == [("127.0.0.1", port)]
    assert children == []


def test_comparing_needs_a_job_file(stage: Path) -> None:
    from leptonai.cli.run_compare import settings
    from leptonai.launch.rundir import open_run

    (stage / "runs" / "first" / "job.json").unlink()
    with pytest.raises(InputError, match=r"job\.json: no such file"):
        settings(open_run(stage / "runs" / "first"))

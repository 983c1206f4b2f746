"""Sparse tables in real served runs: equal to one worker, whole where processes die, saved and resumed."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from leptonai.core.control import Halt
from leptonai.core.errors import Fault, InputError
from leptonai.core.events import (
    CheckpointDamaged,
    Evaluated,
    ServerRestarted,
    StepDone,
    WorkerJoined,
    WorkerStarted,
)
from leptonai.launch.request import RunResult
from leptonai.launch.served_tables import saved_files
from leptonai.training.parameter_server.tables.checkpoint import load_table
from leptonai.training.parameter_server.tables.memory import TableMemory, TableShape
from leptonai.training.parameter_server.tables.spec import RowAdagrad, RowSGD, Table
from leptonai.training.parameter_server.tables.storage import TableStorage
from tests.launch.conftest import Runner
from tests.launch.test_equality import TOLERANCE
from tests.launch.test_served import FREQUENT, Killer, assert_whole_epochs, order_at, parameters

WORDS = Table(name="words", width=6, num_rows=50, rule=RowAdagrad(lr=0.3), init_scale=0.1, batch_rows=256)
ANY = Table(name="any", width=2, capacity=128, rule=RowSGD(lr=0.2), init_scale=0.1, batch_rows=256)
IMPORT = "__import__('table_toy')"


def rows(result: RunResult, table: Table) -> dict[int, NDArray[np.float32]]:
    """The rows of a table in the last checkpoint, each with its state behind it."""
    newest = max((Path(result.run_dir) / "checkpoints").glob("step-*"))
    memory = TableMemory.create(TableShape(table=table))
    storage = TableStorage(memory)
    load_table(storage, saved_files(newest, table))
    found = {
        int(name): np.concatenate([row, state])
        for block in storage.blocks(1000)
        for name, row, state in zip(block.ids, block.rows, block.states, strict=True)
    }
    memory.close()
    assert found
    return found


def assert_close(ours: RunResult, theirs: RunResult, *, tolerance: float) -> None:
    for table in (WORDS, ANY):
        left, right = rows(ours, table), rows(theirs, table)
        assert left.keys() == right.keys()
        for name, row in left.items():
            np.testing.assert_allclose(
                row, right[name], rtol=0, atol=tolerance, err_msg=f"{table.name} {name}"
            )
    network = parameters(theirs)
    for weight, tensor in parameters(ours).items():
        np.testing.assert_allclose(tensor, network[weight], rtol=0, atol=tolerance, err_msg=weight)


def test_bsp_equals_one_worker_within_rounding_on_any_number_of_servers(run: Runner) -> None:
    one = run(f"{IMPORT}.tabled()", run="one", workers=1)
    many = run(f"{IMPORT}.tabled(servers=2)", run="many", workers=3)
    assert_whole_epochs(run)
    assert run.of(Evaluated)[-1].metrics["loss"] < 0.7
    assert_close(one, many, tolerance=TOLERANCE)


@pytest.mark.parametrize("mode", ["bsp", "asp", "ssp(1)"])
def test_random_kills_lose_and_repeat_nothing(run: Runner, mode: str) -> None:
    rng = random.Random(mode)
    whom = [rng.choice([("server", 0), ("server", 1), ("worker", 0), ("worker", 1)]) for _ in range(6)]
    killer = Killer(whom, every_steps=4)
    result = run(f"{IMPORT}.tabled({mode!r}, servers=2, epochs=8, {FREQUENT})", listener=killer)
    assert not killer.left
    assert_whole_epochs(run, epochs=8)
    assert result.pushes_lost == 0
    if mode == "bsp":
        calm = run(f"{IMPORT}.tabled({mode!r}, servers=2, epochs=8)", run="calm")
        assert_close(calm, result, tolerance=10 * TOLERANCE)


def test_killed_servers_alter_no_bit_under_bsp(run: Runner) -> None:
    calm = run(f"{IMPORT}.tabled(servers=2)", run="calm")
    killer = Killer([("server", 0), ("server", 1), ("server", 0)])
    rough = run(f"{IMPORT}.tabled(servers=2, {FREQUENT})", run="rough", listener=killer)
    assert len(run.of(ServerRestarted)) == 3
    assert_close(calm, rough, tolerance=0.0)


def test_over_tcp_the_same_comes_out_though_all_are_killed(run: Runner) -> None:
    calm = run(f"{IMPORT}.tabled()", run="calm")
    killer = Killer([("worker", 1), ("server", 0), ("worker", 0)], every_steps=4)
    rough = run(f"{IMPORT}.tabled(transport='tcp', servers=2, {FREQUENT})", run="rough", listener=killer)
    assert len(run.of(WorkerJoined)) == 2
    assert_whole_epochs(run)
    assert_close(calm, rough, tolerance=10 * TOLERANCE)


@pytest.mark.parametrize("servers", [1, 3])
def test_a_halted_run_resumes_to_the_same_rows(run: Runner, servers: int) -> None:
    calm = run(f"{IMPORT}.tabled({FREQUENT})", run="calm")
    run(f"{IMPORT}.tabled(servers=2, {FREQUENT})", listener=order_at(run, 10, Halt()))
    assert run.of(StepDone)[-1].step < 28
    result = run(f"{IMPORT}.tabled(servers=2, {FREQUENT})", resume=True)
    assert result.step == 28
    assert_close(calm, result, tolerance=TOLERANCE)


def test_a_damaged_table_file_is_a_damaged_checkpoint(run: Runner) -> None:
    run(f"{IMPORT}.tabled()")
    newest = max((run.home / "run" / "checkpoints").glob("step-*"))
    path = saved_files(newest, WORDS)[0]
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)
    result = run(f"{IMPORT}.tabled()", resume=True)
    assert [Path(event.path).name for event in run.of(CheckpointDamaged)] == [newest.name]
    assert result.step == 28


def test_a_backup_worker_that_comes_too_late_holds_up_no_table(run: Runner) -> None:
    run(f"{IMPORT}.tabled('backup(1)', servers=2, epochs=6)", workers=3)
    assert_whole_epochs(run, epochs=6)


def test_a_gradient_is_clipped_by_the_norm_over_network_and_tables(run: Runner) -> None:
    one = run(f"{IMPORT}.tabled(clip_norm=0.05, accumulate=2)", run="one", workers=1)
    other = run(f"{IMPORT}.tabled(clip_norm=0.05)", run="other", workers=1)
    assert_close(one, other, tolerance=TOLERANCE)
    free = run(f"{IMPORT}.tabled()", run="free", workers=1)
    with pytest.raises(AssertionError):
        assert_close(one, free, tolerance=TOLERANCE)


@pytest.mark.parametrize("transport", ["auto", "tcp"])
def test_a_bad_id_is_named(run: Runner, transport: str) -> None:
    with pytest.raises(InputError, match=r"table 'words': id 39 lies outside 0 to 38"):
        run(f"{IMPORT}.tabled(table={IMPORT}.words(num_rows=39), transport={transport!r})")
    assert run.of(WorkerStarted)  # nothing was wrong with the examples it was tried on


def test_a_full_table_ends_the_run_and_says_how_full_it_is(run: Runner) -> None:
    with pytest.raises(Fault, match=r"no room for a new row: it holds \d+ of 10 rows"):
        run(f"{IMPORT}.tabled(table={IMPORT}.words(num_rows=None, capacity=10))")


@pytest.mark.parametrize(
    ("job", "words"),
    [
        ("tabled(parameter_server=None)", "live on parameter servers"),
        ("tabled('local_sgd(4)')", "does not update"),
        ("tabled('asp', record=True)", "record does not go with"),
        ("tabled('asp', delay_compensation=0.5)", "delay_compensation does not go with"),
    ],
)
def test_settings_that_do_not_go_with_tables_are_refused(run: Runner, job: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        run(f"{IMPORT}.{job}")


@pytest.mark.slow
def test_a_keras_model_with_a_table_equals_one_worker(run: Runner) -> None:
    pytest.importorskip("tensorflow")
    job = "__import__('keras_tables').tabled"
    one = run(f"{job}(accumulate=2)", run="one", workers=1)
    two = run(f"{job}()", run="two", workers=2)
    assert run.of(Evaluated)[-1].metrics["loss"] < 0.7
    left, right = rows(one, WORDS), rows(two, WORDS)
    assert left.keys() == right.keys()
    for name, row in left.items():
        np.testing.assert_allclose(row, right[name], rtol=0, atol=TOLERANCE, err_msg=str(name))
    with pytest.raises(InputError, match=r"table 'words': id 39 lies outside 0 to 38"):
        run(f"{job}(table=__import__('table_toy').words(num_rows=39))", run="bad")

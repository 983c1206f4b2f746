from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from leptonai.cli import findings, machine
from leptonai.cli.findings import GIB, Finding
from tests.cli.conftest import Said


@pytest.mark.parametrize(
    ("finding", "state"),
    [
        (findings.on_python((3, 11, 0)), "ok"),
        (findings.on_python((3, 10, 9)), "bad"),
        (findings.on_system("Linux", "6.1"), "ok"),
        (findings.on_system("Darwin", "25"), "bad"),
        (findings.on_cpu("c", ["avx2", "avx512f", "amx_bf16"]), "ok"),
        (findings.on_cpu("c", ["sse2"]), "warn"),
        (findings.on_cores(usable=4, machine=8, quota=None), "ok"),
        (findings.on_cores(usable=4, machine=8, quota=4.0), "ok"),
        (findings.on_cores(usable=4, machine=8, quota=1.5), "warn"),
        (findings.on_memory(free_bytes=8 * GIB, total_bytes=16 * GIB), "ok"),
        (findings.on_memory(free_bytes=GIB, total_bytes=16 * GIB), "warn"),
        (findings.on_memory(free_bytes=GIB // 4, total_bytes=16 * GIB), "bad"),
        (findings.on_shared_memory(GIB), "ok"),
        (findings.on_shared_memory(2**20), "warn"),
        (findings.on_shared_memory(None), "bad"),
        (findings.on_disk("home", 10 * GIB), "ok"),
        (findings.on_disk("home", GIB), "warn"),
        (findings.on_disk("home", 0), "bad"),
        (findings.on_open_files(1024), "ok"),
        (findings.on_open_files(256), "warn"),
        (findings.on_package("numpy", "2.0"), "ok"),
        (findings.on_package("numpy", None), "bad"),
        (findings.on_package("keras", None, extra="tensorflow"), "ok"),
        (findings.on_torch("2.13", None), "ok"),
        (findings.on_torch(None, None), "bad"),
        (findings.on_torch("2.13", "OSError: libcudart"), "bad"),
        (findings.on_gpus([], torch_sees=0), "ok"),
        (findings.on_gpus(["A"], torch_sees=1), "ok"),
        (findings.on_gpus(["A", "B"], torch_sees=1), "warn"),
        (findings.on_gpus(["A"], torch_sees=None), "ok"),
        (findings.on_directory("home", "/h", writable=True), "ok"),
        (findings.on_directory("home", "/h", writable=False), "bad"),
        (findings.on_loopback(None), "ok"),
        (findings.on_loopback("down"), "bad"),
        (findings.on_listeners([]), "ok"),
        (findings.on_listeners([("127.0.0.1", 1), ("::1", 2)]), "ok"),
        (findings.on_listeners([("127.0.0.1", 1), ("::", 2)]), "bad"),
    ],
)
def test_each_measurement_is_judged(finding: Finding, state: str) -> None:
    assert finding.state == state
    assert bool(finding.advice) == (state != "ok")


def test_features_that_matter_are_shown_in_a_fixed_order() -> None:
    assert findings.on_cpu("X", ["amx_bf16", "fpu", "avx2"]).value == "X: avx2 amx_bf16"


def test_the_report_of_this_machine_is_whole_and_its_exit_code_fits(lepton: Callable[..., Said]) -> None:
    said = lepton("doctor", "--json")
    found = json.loads(said.out)["findings"]
    assert {"CPU", "cores", "memory", "torch", "listening", "home"} <= {each["name"] for each in found}
    assert said.code == (4 if any(each["state"] == "bad" for each in found) else 0)


def test_a_home_that_cannot_be_written_is_bad(
    lepton: Callable[..., Said], stage: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "_ask_torch", dict)  # seconds of imports that do not matter here
    said = lepton("doctor", "--home", "/proc/nowhere")
    assert said.code == 4
    assert "bad: home: make it writable" in said.err + said.out


def test_a_listener_outside_loopback_is_found_by_its_command_line(stage: Path) -> None:
    (stage / "lepton").write_text(
        "import socket\nlistener = socket.create_server(('0.0.0.0', 0))\n"
        "print(listener.getsockname()[1], flush=True)\ninput()\n"
    )
    words = [sys.executable, str(stage / "lepton")]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        assert ("0.0.0.0", port) in machine.listening_addresses()
        process.communicate("\n")
    assert ("0.0.0.0", port) not in machine.listening_addresses()


def test_a_listener_of_another_program_does_not_count() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert listener.getsockname() not in machine.listening_addresses()


def test_the_nearest_directory_that_exists_is_asked_for_space(tmp_path: Path) -> None:
    assert machine.existing_parent(tmp_path / "a" / "b") == tmp_path
    assert machine.is_writable(tmp_path)
    assert list(tmp_path.iterdir()) == []

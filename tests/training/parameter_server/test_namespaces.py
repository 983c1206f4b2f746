"""Server and worker on two networks of their own, joined by a wire that is cut for a while."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.training.parameter_server.shard_process import digest, parameters_after
from tests.training.parameter_server.tcp_stand_in import Told, make_certificates

SERVER, WORKER = "10.213.77.1", "10.213.77.2"
PUSHES = 40
CUT_SECONDS = 1.0


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True, timeout=20)


@contextlib.contextmanager
def two_networks() -> Iterator[tuple[str, str]]:
    """Two namespaces joined by a pair of virtual cards, each called ``wire`` inside; gone at the end."""
    name = f"lepton{os.getpid()}"
    spaces = (f"{name}a", f"{name}b")
    made = []
    try:
        for space in spaces:
            ip("netns", "add", space)
            made.append(space)
        ip(
            "link",
            "add",
            "wire",
            "netns",
            spaces[0],
            "type",
            "veth",
            "peer",
            "name",
            "wire",
            "netns",
            spaces[1],
        )
        for space, address in zip(spaces, (SERVER, WORKER), strict=True):
            ip("-n", space, "address", "add", f"{address}/24", "dev", "wire")
            ip("-n", space, "link", "set", "wire", "up")
        yield spaces
    finally:
        for space in made:
            ip("netns", "delete", space)


@pytest.fixture
def networks() -> Iterator[tuple[str, str]]:
    if shutil.which("ip") is None:
        pytest.skip("no `ip` command: namespaces cannot be made")
    with contextlib.ExitStack() as stack:
        try:
            spaces = stack.enter_context(two_networks())
        except subprocess.CalledProcessError as error:
            pytest.skip(f"network namespaces are not permitted here: {error.stderr.strip()}")
        yield spaces


def test_a_cut_wire_loses_and_doubles_nothing(networks: tuple[str, str], tmp_path: Path) -> None:
    make_certificates(tmp_path / "certificates", address=SERVER)
    tls = str(tmp_path / "certificates")
    server_space, worker_space = networks
    processes = []
    try:
        server = Told(("ip", "netns", "exec", server_space), role="primary", bind=SERVER, tls=tls)
        processes.append(server)
        worker = Told(
            ("ip", "netns", "exec", worker_space), role="worker", address=server.hear("address"), slot=0,
            pushes=PUSHES, tls=tls,
        )  # fmt: skip
        processes.append(worker)
        while worker.hear("answered") < 3:
            pass
        for _ in range(2):
            ip("-n", worker_space, "link", "set", "wire", "down")
            threading.Event().wait(CUT_SECONDS)
            assert not [line for line in worker.heard() if "done" in line]
            ip("-n", worker_space, "link", "set", "wire", "up")
            worker.hear("answered")
        seen = worker.hear("digest", seconds=60)
        server.tell(report=True)
        report = server.hear("digest")
        assert report["answered"][0] == report["version"] == seen["done"] == PUSHES
        assert report["digest"] == seen["digest"] == digest(parameters_after({0: PUSHES}))
    finally:
        for process in processes:
            process.kill()

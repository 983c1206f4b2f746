from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leptonai.core.clock import FakeClock
from leptonai.core.control import (
    MAX_CONNECTIONS,
    MAX_LINE_BYTES,
    ControlServer,
    Halt,
    Order,
    Resize,
    Save,
    SwitchConsistency,
    order_from_json,
    order_to_json,
    send_order,
)
from leptonai.core.errors import Fault, InputError, Refused


class Run:
    """A server that writes down its orders, and raw connections to it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.orders: list[Order] = []
        self.clock = FakeClock()
        self.server = ControlServer(directory, self.take, clock=self.clock)
        self.token = (directory / "control.token").read_text()

    def take(self, order: Order) -> str:
        self.orders.append(order)
        return f"taken: {len(self.orders)}"

    def connect(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(10)
        connection.connect(str(self.directory / "control.sock"))
        return connection

    def say(self, data: bytes) -> bytes:
        """All the server answers before it closes the connection."""
        with self.connect() as connection:
            connection.sendall(data)
            answer = b""
            while more := connection.recv(1000):
                answer += more
            return answer


@pytest.fixture
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    run = Run(tmp_path_factory.mktemp("run"))
    yield run
    run.server.close()


@pytest.mark.parametrize("order", [Halt(), Save(), Resize(num_workers=3), SwitchConsistency(mode="ssp(3)")])
def test_an_order_reads_back_from_json(order: Order) -> None:
    assert order_from_json(json.loads(json.dumps(order_to_json(order)))) == order


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"order": "explode"},
        {"order": ["halt"]},
        {"order": "resize"},
        {"order": "resize", "workers": "3"},
        {"order": "consistency", "mode": 3},
    ],
)
def test_an_unknown_order_is_refused(values: dict[str, object]) -> None:
    with pytest.raises(InputError, match="unknown order"):
        order_from_json(values)


@pytest.mark.parametrize("workers", [0, -1, True])
def test_a_run_cannot_go_on_without_workers(workers: int) -> None:
    with pytest.raises(InputError, match="workers >= 1"):
        order_from_json({"order": "resize", "workers": workers})


def test_an_order_reaches_the_run_and_its_answer_comes_back(run: Run) -> None:
    assert send_order(run.directory, Halt()) == "taken: 1"
    assert send_order(run.directory, Save()) == "taken: 2"
    assert run.orders == [Halt(), Save()]


def test_only_the_owner_may_touch_socket_and_token(run: Run) -> None:
    for name in ("control.sock", "control.token"):
        assert stat.S_IMODE((run.directory / name).stat().st_mode) == 0o600


def test_a_wrong_token_is_refused_and_no_order_passes(run: Run) -> None:
    for token in ("", "0" * 64, run.token[:-1], run.token.upper() + "x", 5, None, "é", "\ud800", [run.token]):
        answer = run.say(json.dumps({"token": token, "order": "halt"}).encode() + b"\n")
        assert json.loads(answer) == {"refused": "the token is not this run's"}
    (run.directory / "control.token").write_text("f" * 64)
    with pytest.raises(Refused, match="the token is not this run's"):
        send_order(run.directory, Halt())
    assert run.orders == []


def test_garbage_closes_only_its_own_connection(run: Run) -> None:
    @given(st.binary(max_size=200))
    def garbage(data: bytes) -> None:
        with run.connect() as connection:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(1000):
                pass

    with run.connect() as patient:
        garbage()
        for line in (b"\n", b"[]\n", b"nul\n", b"[" * 60_000 + b"\n", b"\xff\xfe\n"):
            assert run.say(line) == b""
        patient.sendall(json.dumps({"token": run.token, "order": "save"}).encode() + b"\n")
        assert json.loads(patient.recv(1000)) == {"done": "taken: 1"}
    assert run.orders == [Save()]


def test_an_unknown_order_with_the_right_token_is_answered(run: Run) -> None:
    answer = json.loads(run.say(json.dumps({"token": run.token, "order": "explode"}).encode() + b"\n"))
    assert answer["failed"] == "unknown order"
    assert run.orders == []


def test_an_oversized_line_is_dropped(run: Run) -> None:
    good = json.dumps({"token": run.token, "order": "halt", "filler": "x" * MAX_LINE_BYTES}).encode() + b"\n"
    with run.connect() as connection:
        try:
            connection.sendall(good)
            assert connection.recv(1000) == b""
        except (BrokenPipeError, ConnectionResetError):
            pass  # the server hung up midway, which is as good
    assert run.orders == []
    assert send_order(run.directory, Save()) == "taken: 1"


def test_a_line_without_end_is_cut_off_instead_of_kept(run: Run) -> None:
    with run.connect() as connection:
        try:
            connection.sendall(b"x" * (10 * MAX_LINE_BYTES))
            assert connection.recv(1000) == b""
        except (BrokenPipeError, ConnectionResetError):
            pass  # the server hung up midway, which is as good
    assert send_order(run.directory, Save()) == "taken: 1"


def test_a_silent_connection_delays_nobody_and_is_dropped_at_its_deadline(run: Run) -> None:
    with run.connect() as silent:
        assert send_order(run.directory, Save()) == "taken: 1"
        run.clock.advance(60.0)
        send_order(run.directory, Save())
        assert silent.recv(1000) == b""


def test_more_connections_than_allowed_do_not_lock_out_the_owner(run: Run) -> None:
    silent = [run.connect() for _ in range(MAX_CONNECTIONS)]
    with run.connect() as one_more:
        assert one_more.recv(1000) == b""
    run.clock.advance(60.0)
    with run.connect() as wakes_the_server:
        wakes_the_server.shutdown(socket.SHUT_WR)
        assert wakes_the_server.recv(1000) == b""
    assert send_order(run.directory, Halt()) == "taken: 1"
    for each in silent:
        each.close()


def test_a_handler_that_says_no_is_told_to_the_sender(tmp_path: Path) -> None:
    errors: list[Exception] = [
        InputError("cannot", hint="later"),
        Refused("will not"),
        ZeroDivisionError("oops"),
    ]

    def handler(order: Order) -> str:
        if errors:
            raise errors.pop(0)
        return "done"

    with ControlServer(tmp_path, handler):
        with pytest.raises(InputError, match=r"cannot\n  hint: later"):
            send_order(tmp_path, Halt())
        with pytest.raises(Refused, match="will not"):
            send_order(tmp_path, Halt())
        with pytest.raises(InputError, match="ZeroDivisionError: oops"):
            send_order(tmp_path, Halt())
        assert send_order(tmp_path, Halt()) == "done"


def test_closing_removes_socket_and_token_and_lets_another_run_in(run: Run) -> None:
    with pytest.raises(InputError, match="another run lives there"):
        ControlServer(run.directory, run.take)
    assert send_order(run.directory, Save()) == "taken: 1"
    run.server.close()
    run.server.close()
    assert list(run.directory.iterdir()) == []
    with pytest.raises(InputError, match="no run lives there"):
        send_order(run.directory, Halt())
    ControlServer(run.directory, run.take).close()


def test_a_killed_run_leaves_a_socket_that_is_seen_as_stale_and_replaced(tmp_path: Path) -> None:
    program = (
        "import os, signal, sys; from pathlib import Path; from leptonai.core.control import ControlServer\n"
        "ControlServer(Path(sys.argv[1]), lambda order: 'x'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False, env=environment, timeout=60)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["control.sock", "control.token"]
    with pytest.raises(InputError, match="no run lives there"):
        send_order(tmp_path, Halt())
    with ControlServer(tmp_path, lambda order: "alive"):
        assert send_order(tmp_path, Halt()) == "alive"


def test_a_path_longer_than_a_sockets_address_works(tmp_path: Path) -> None:
    directory = tmp_path / ("x" * 120) / ("y" * 120)
    directory.mkdir(parents=True)
    with ControlServer(directory, lambda order: "heard"):
        assert send_order(directory, Halt()) == "heard"
    assert list(directory.iterdir()) == []


def test_a_run_that_does_not_answer_in_time_is_a_fault(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as deaf:
        deaf.bind(str(tmp_path / "control.sock"))
        deaf.listen()
        (tmp_path / "control.token").write_text("t")
        with pytest.raises(Fault, match="did not answer"):
            send_order(tmp_path, Halt(), timeout_seconds=0.05)


def test_a_directory_that_is_not_there_or_not_writable_is_an_input_error(tmp_path: Path) -> None:
    for directory in (tmp_path / "none", Path("/proc/self/fdinfo")):
        with pytest.raises(InputError):
            ControlServer(directory, lambda order: "")
    with pytest.raises(InputError, match="cannot be opened"):
        send_order(tmp_path / "none", Halt())


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_another_user_is_refused_even_with_token_and_open_modes(run: Run) -> None:
    run.directory.chmod(0o755)
    (run.directory / "control.sock").chmod(0o666)
    program = (
        "import os, socket, sys\n"
        "os.chdir(sys.argv[1]); os.setgid(65534); os.setuid(65534)\n"
        "s = socket.socket(socket.AF_UNIX); s.connect('control.sock')\n"
        "s.sendall(sys.stdin.buffer.read()); print(s.recv(1000).decode())"
    )
    request = json.dumps({"token": run.token, "order": "halt"}).encode() + b"\n"
    found = subprocess.run(
        [sys.executable, "-c", program, str(run.directory)], input=request, capture_output=True, timeout=60
    )
    assert b"belongs to another user" in found.stdout or b"BrokenPipe" in found.stderr
    assert run.orders == []

"""The process that starts workers: it imports heavy modules once and forks a worker in milliseconds.

Run as ``python -m leptonai.compute.engines.zygote CONTROL_FD ENTRY [MODULE ...]``. It stays
single-threaded and runs nothing of the imported modules, which is what makes the fork sound. When its
control socket closes, because the launcher ended in whatever way, it kills every worker's process group
and ends; when the zygote itself dies, the kernel kills the workers (PR_SET_PDEATHSIG). Linux only.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import os
import select
import signal
import socket
import sys
import tempfile
from collections.abc import Callable
from typing import Any

from leptonai.compute.engines.wire import receive_with_fds, send_with_fds

PR_SET_PDEATHSIG = 1
WorkerEntry = Callable[[socket.socket, list[int]], int]


def main(arguments: list[str]) -> int:
    """Serve the launcher until its end of the control socket closes."""
    control = socket.socket(fileno=int(arguments[0]))
    entry, modules = arguments[1], arguments[2:]
    wake_read, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(wake_write)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    for module in modules:
        # A module that cannot be imported fails again in the worker, which reports it properly.
        with contextlib.suppress(ImportError):
            importlib.import_module(module)
    workers: dict[int, str] = {}
    try:
        while True:
            ready = select.select([control.fileno(), wake_read], [], [])[0]
            if wake_read in ready:
                with contextlib.suppress(BlockingIOError):
                    os.read(wake_read, 4096)
                _reap(workers, control)
            if control.fileno() in ready:
                received = receive_with_fds(control)
                if received is None:
                    return 0
                _obey(*received, entry, workers, control)
    except (BrokenPipeError, ConnectionResetError):
        return 0
    finally:
        for pid in workers:
            _kill_group(pid, signal.SIGKILL)
        for pid in workers:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)


def _obey(
    order: dict[str, Any], fds: list[int], entry: str, workers: dict[int, str], control: socket.socket
) -> None:
    if order["op"] == "start":
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            control.close()
            _become_worker(order, fds, entry, parent)
        for fd in fds:
            os.close(fd)
        workers[pid] = order["name"]
        send_with_fds(control, {"op": "started", "name": order["name"], "pid": pid}, ())
    elif order["op"] == "signal":
        for pid, name in workers.items():
            if name == order["name"]:
                _kill_group(pid, order["signal"])


def _reap(workers: dict[int, str], control: socket.socket) -> None:
    for pid in list(workers):
        done, status = os.waitpid(pid, os.WNOHANG)
        if done == pid:
            # The worker's own children (compilers, loaders) share its group and go with it.
            _kill_group(pid, signal.SIGKILL)
            name = workers.pop(pid)
            send_with_fds(
                control, {"op": "exited", "name": name, "code": os.waitstatus_to_exitcode(status)}, ()
            )


def _kill_group(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)


def _become_worker(order: dict[str, Any], fds: list[int], entry: str, parent: int) -> None:
    """Turn this fresh fork into the worker; never returns."""
    code = 70
    try:
        os.setsid()
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # the zygote died before the line above took effect
            os._exit(70)
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the launcher decides what Ctrl-C means
        log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        os.dup2(log, 1)
        os.dup2(log, 2)
        if order["cores"]:
            os.sched_setaffinity(0, order["cores"])
        os.environ.update(order["environment"])
        tempfile.tempdir = None  # what the parent found out; the environment may say otherwise
        module, _, function = entry.partition(":")
        run: WorkerEntry = getattr(importlib.import_module(module), function)
        code = run(socket.socket(fileno=fds[0]), fds[1:])
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        # Not sys.exit: interpreter teardown may block on threads of a framework.
        os._exit(code)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""TensorBoard for one run, on this machine only."""

from __future__ import annotations

import importlib.util
import socket
import subprocess
import sys
from pathlib import Path

from leptonai.cli.output import err, say
from leptonai.core.errors import Fault, InputError

LOOPBACK = "127.0.0.1"


def serve(directory: Path, *, port: int) -> None:
    """Run TensorBoard on loopback until Ctrl-C.

    Raises:
        InputError: TensorBoard is not installed, the port is taken, or the run has written no events for it.
        Fault: TensorBoard ended by itself.
    """
    if importlib.util.find_spec("tensorboard") is None:
        raise InputError("TensorBoard is not installed", hint="pip install 'openlepton[tensorboard]'")
    if not directory.is_dir():
        raise InputError(f"{directory}: the run has written nothing for TensorBoard yet")
    check_port_is_free(port)
    process = subprocess.Popen(command(directory, port))
    say(err(), f"TensorBoard on http://{LOOPBACK}:{port}/ until Ctrl-C")
    try:
        code = process.wait()
    except KeyboardInterrupt:
        return
    finally:
        process.terminate()
        process.wait()
    raise Fault(f"TensorBoard ended by itself with exit code {code}")


def command(directory: Path, port: int) -> list[str]:
    """How TensorBoard is started.

    ``--load_fast=false``: the fast loader is a second server with a port of its own.
    """
    flags = ["--logdir", str(directory), "--host", LOOPBACK, "--port", str(port), "--load_fast=false"]
    return [sys.executable, "-m", "tensorboard.main", *flags]


def check_port_is_free(port: int) -> None:
    """Raise InputError when something listens on this loopback port already."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError as error:
            raise InputError(
                f"port {port} on {LOOPBACK} cannot be used: {error.strerror}",
                hint="choose another with --port",
            ) from error

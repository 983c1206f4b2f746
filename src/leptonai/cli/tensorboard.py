"""TensorBoard for one run, on this machine only."""

from __future__ import annotations

import importlib.util
import os
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

from leptonai.cli.output import err, say
from leptonai.core.errors import InputError

LOOPBACK = "127.0.0.1"


def serve(directory: Path, *, port: int, environment: Mapping[str, str]) -> NoReturn:
    """Become TensorBoard, which listens on loopback until Ctrl-C.

    This process is replaced instead of starting another, so nothing is left behind however it is ended.

    Args:
        directory: with TensorBoard's event files.
        port: on loopback.
        environment: of this process.

    Raises:
        InputError: TensorBoard is not installed, the port is taken, or the run has written no events for it.
    """
    if importlib.util.find_spec("tensorboard") is None:
        raise InputError("TensorBoard is not installed", hint="pip install tensorboard")
    if not directory.is_dir():
        raise InputError(f"{directory}: the run has written nothing for TensorBoard yet")
    check_port_is_free(port)
    say(err(), f"TensorBoard on http://{LOOPBACK}:{port}/ until Ctrl-C")
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(sys.executable, command(directory, port), {"TF_CPP_MIN_LOG_LEVEL": "3", **environment})


def command(directory: Path, port: int) -> list[str]:
    """How TensorBoard is started.

    ``--load_fast=false``: the fast loader is a second server with a port of its own.
    """
    flags = ["--logdir", str(directory), "--host", LOOPBACK, "--port", str(port), "--load_fast=false"]
    return [sys.executable, "-m", "tensorboard.main", *flags]


def check_port_is_free(port: int) -> None:
    """Raise InputError when something listens on this loopback port already."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # As the server itself will: a port whose last owner has just gone counts as free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError as error:
            message = f"port {port} on {LOOPBACK} cannot be used: {error.strerror}"
            raise InputError(message, hint="choose another with --port") from error

"""The ``lepton`` command. :func:`main` is its entry point; the commands live in one module each."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and end the process with its exit code.

    Exit codes: 0 done, 2 the input is wrong, 3 refused, 4 the world broke, 70 our bug, 130 interrupted.

    Args:
        arguments: words after ``lepton``; None takes the process's own.
    """
    from leptonai.cli.app import run

    # A service manager's polite end of a process means here what Ctrl-C means: save, then end.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(run(sys.argv[1:] if arguments is None else list(arguments)))

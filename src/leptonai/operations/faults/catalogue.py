"""Known faults as data: which message means what, how bad it is, and what class of action would help.

The data lie in ``catalogue.json``, versioned, each entry with its source; a site's own file goes over them.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Literal

from pydantic import field_validator

from leptonai.core.errors import InputError
from leptonai.core.files import FileModel, problem, read_yaml
from leptonai.core.values import value_from_json
from leptonai.operations.alarms import Action, Alarm, Evidence, Severity, Subject

Family = Literal[
    "xid", "sxid", "memory", "processor", "kernel", "bus", "disk", "network", "infiniband", "driver", "site",
]  # fmt: skip
FaultSubject = Literal["device", "link", "disk", "node"]
LONGEST_LINE = 4096
"""Characters of a message that are looked at; the kernel's own limit is 1,024."""

_CODED: Mapping[Family, re.Pattern[str]] = {
    "xid": re.compile(
        r"NVRM: Xid \((?:PCI:)?(?P<device>[0-9a-fA-F:.]+)\): (?P<code>\d+)(?:, (?P<detail>.*))?"
    ),
    "sxid": re.compile(r"SXid \((?:PCI:)?(?P<device>[0-9a-fA-F:.]+)\): (?P<code>\d+)(?:, (?P<detail>.*))?"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownFault:
    """One fault.

    Args:
        id: names it: ``xid_79``, ``oom_kill``.
        title: what happened, without a full stop.
        meaning: what that says.
        source: where to read more.
        date: of this entry, year and month.
        subject: what kind of thing it befalls.
        code: of the families that have codes.
        pattern: of the others: a regular expression that is searched for; groups ``device`` and ``detail`` are told.
        checked: whether the entry was compared with its source; else it is from experience.
        ignored: a site does not want to hear of it.
        why: a site's reason for changing it.
    """

    id: str
    family: Family
    title: str
    meaning: str
    severity: Severity
    action: Action
    source: str
    date: str
    subject: FaultSubject
    code: int | None = None
    pattern: str | None = None
    checked: bool = True
    ignored: bool = False
    why: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """A fault found in a message, and whom it befell as the message tells it (may be empty)."""

    fault: KnownFault
    device: str
    detail: str
    line: str


class Catalogue:
    """Faults by code and by pattern.

    Args:
        version: of the data.
        faults: with different ids.
    """

    def __init__(self, version: str, faults: Iterable[KnownFault]) -> None:
        self.version = version
        self.faults: Mapping[str, KnownFault] = {each.id: each for each in faults}
        self._patterns = [
            (re.compile(each.pattern), each) for each in self.faults.values() if each.pattern is not None
        ]

    def match(self, line: str) -> Match | None:
        """The fault that a message tells of; None: none that is known, or one that the site ignores.

        Codes that are not in the catalogue are faults too: it says so, and calls them warnings.

        >>> found = shipped().match("NVRM: Xid (PCI:0000:10:1c): 79, pid=1896, GPU has fallen off the bus.")
        >>> found.fault.id, found.device, found.fault.severity
        ('xid_79', '0000:10:1c', 'fatal')
        """
        line = line[:LONGEST_LINE]
        for family, pattern in _CODED.items():
            found = pattern.search(line)
            if found is not None:
                return self._match(self._coded(family, int(found["code"])), found, line)
        for pattern, fault in self._patterns:
            found = pattern.search(line)
            if found is not None:
                return self._match(fault, found, line)
        return None

    def explain(self, word: str) -> Sequence[KnownFault]:
        """The faults that a person means: a code (of any family that has it), an id, or a family.

        Raises:
            InputError: nothing is called so; the nearest names are offered.

        >>> [each.title for each in shipped().explain("79")]
        ['the device has fallen off the bus']
        """
        asked = re.sub(r"[\s-]+", "_", word.strip().lower())
        asked = re.sub(r"^(s?xid)_?(?=\d)", r"\1_", asked)
        if asked.isdecimal():
            found = [each for each in self.faults.values() if each.code == int(asked)]
        else:
            found = [each for each in self.faults.values() if asked in (each.id, each.family)]
        if not found:
            near = difflib.get_close_matches(asked, [*self.faults, "xid", "sxid"], n=3)
            hint = f"did you mean {', '.join(near)}?" if near else "list them all: lepton faults list"
            raise InputError(f"no fault is called {word!r} in catalogue {self.version}", hint=hint)
        return found

    def with_site(self, site: Catalogue) -> Catalogue:
        """This one with a site's entries over it."""
        return Catalogue(f"{self.version} with {site.version}", {**self.faults, **site.faults}.values())

    def _coded(self, family: Family, code: int) -> KnownFault:
        known = self.faults.get(f"{family}_{code}")
        return known or KnownFault(
            id=f"{family}_{code}", family=family, code=code, severity="warning", action="none",
            title=f"{family.capitalize()} {code}, which is not in the catalogue",
            meaning="look it up at its source, and add it to your site's file", checked=False, date="",
            source=next(each.source for each in self.faults.values() if each.family == family),
            subject="device" if family == "xid" else "link",
        )  # fmt: skip

    @staticmethod
    def _match(fault: KnownFault, found: re.Match[str], line: str) -> Match | None:
        groups = {name.rstrip("0123456789"): text for name, text in found.groupdict().items() if text}
        if fault.ignored:
            return None
        return Match(
            fault=fault, device=groups.get("device", ""), detail=groups.get("detail", "").strip(), line=line
        )


def alarm_of(match: Match, *, node: str, at_seconds: float, run_id: str = "") -> Alarm:
    """The alarm for a fault that a message of ``node`` told of at ``at_seconds``."""
    fault = match.fault
    if fault.subject == "node" or not match.device:
        subject = Subject("node", node)
    else:
        subject = Subject(fault.subject, f"{node}/{match.device}")
    detail = f" ({match.detail})" if match.detail else ""
    return Alarm(
        kind=fault.id, subject=subject, severity=fault.severity, at_seconds=at_seconds,
        since_seconds=at_seconds, message=f"{subject.name}: {fault.title}{detail}", action=fault.action,
        evidence=(Evidence(what=f"the kernel said: {match.line.strip()}"),), run_id=run_id,
    )  # fmt: skip


@cache
def shipped() -> Catalogue:
    """The catalogue of this version of the package."""
    text = resources.files(__package__).joinpath("catalogue.json").read_text(encoding="utf-8")
    values = json.loads(text)
    return Catalogue(values["version"], [value_from_json(KnownFault, each) for each in values["faults"]])


# -- a site's own file ------------------------------------------------------------------------------


class SiteFaultFile(FileModel):
    """One entry of a site's file: a change to a known fault, or a fault of its own (which needs a pattern)."""

    id: str
    why: str
    severity: Severity | None = None
    action: Action | None = None
    ignored: bool | None = None
    title: str | None = None
    meaning: str | None = None
    pattern: str | None = None
    subject: FaultSubject | None = None
    source: str | None = None

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, value: str | None) -> str | None:
        try:
            re.compile(value or "")
        except re.error as error:
            raise problem(f"not a regular expression: {error}") from None
        return value


class SiteFile(FileModel):
    """A site's ``faults.yaml``."""

    version: str
    faults: tuple[SiteFaultFile, ...]


def read_site(path: Path, known: Catalogue) -> Catalogue:
    """The catalogue with a site's file over it.

    Raises:
        InputError: the file is wrong, or an entry of its own lacks a title or a pattern.
    """
    found = read_yaml(path, SiteFile)
    made = []
    for each in found.faults:
        changes = each.model_dump(exclude_none=True)
        base = known.faults.get(each.id)
        if base is None and not (each.title and each.pattern):
            near = difflib.get_close_matches(each.id, known.faults, n=1)
            hint = f"did you mean {near[0]}?" if near else "a fault of your own needs a title and a pattern"
            raise InputError(f"{path}: {each.id!r} is not in the catalogue", hint=hint)
        base = base or KnownFault(
            id=each.id, family="site", title=each.title or "", meaning="", severity="warning", action="none",
            source=str(path.name), date="", subject="node",
        )  # fmt: skip
        made.append(replace(base, **changes))
    return known.with_site(Catalogue(found.version, made))

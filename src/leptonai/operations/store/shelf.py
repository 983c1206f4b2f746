"""The chunk files of a directory: which there are, cutting new ones, merging small ones, dropping old ones.

A file is named ``tier-first-last.blk``: it holds what was cut in those turns. The files of one turn appear together:
they are written under ``.new`` names, and the raw one's renaming is what makes the turn true.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from leptonai.core.disk import sync_directory
from leptonai.core.errors import Fault
from leptonai.operations.store.block import Block, Chunk, write_block
from leptonai.operations.store.limits import RESOLUTION_MS, TIERS, StoreLimits, Tier
from leptonai.operations.store.record_log import NoSpace
from leptonai.operations.store.rollup import join, roll_up

MERGE_FILES = 12
"""Neighbours that become one: few enough that a merge is short, enough that files stay few."""
MERGED_SPANS_KEPT = 8
"""A merged file spans at most this fraction of its tier's age, because age drops whole files."""
_NAME = re.compile(r"(raw|minute|hour)-(\d{10})-(\d{10})\.blk")
_FRESH = ".new"

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, eq=False)
class Shelved:
    """One chunk file and the turns it covers."""

    block: Block
    first: int
    last: int


class Shelf:
    """All chunk files of a directory. Not safe to use from several threads.

    Raises:
        Fault: a file cannot be opened at all (one that is damaged is said, counted and left alone).
    """

    def __init__(self, directory: Path, limits: StoreLimits, say: Say) -> None:
        self._directory, self._limits, self._say = directory, limits, say
        self._files: dict[Tier, list[Shelved]] = {tier: [] for tier in TIERS}
        self.num_damaged = 0
        self.num_dropped = 0
        self.num_removed = 0
        """Files gone since opening, for their age, their tier's size or a full disk."""
        self._turn = 0
        self._finish_turns()
        self._open_all()

    def _finish_turns(self) -> None:
        """Complete what a crash interrupted after the raw file had its name; remove what it did before."""
        for fresh in sorted(self._directory.glob(f"*.blk{_FRESH}")):
            found = _NAME.fullmatch(fresh.name.removesuffix(_FRESH))
            if found and found[1] != "raw" and (self._directory / f"raw-{found[2]}-{found[3]}.blk").exists():
                fresh.replace(fresh.with_suffix(""))
            else:
                fresh.unlink()
        sync_directory(self._directory)

    def _open_all(self) -> None:
        names = [found for path in self._directory.iterdir() if (found := _NAME.fullmatch(path.name))]
        for found in sorted(names, key=lambda each: (int(each[2]), -int(each[3]))):
            tier: Tier = found[1]  # type: ignore[assignment]
            first, last = int(found[2]), int(found[3])
            path = self._directory / found[0]
            self._turn = max(self._turn, last)
            if self._files[tier] and last <= self._files[tier][-1].last:
                path.unlink()  # merged into the one before, which a crash kept from being followed up
                continue
            try:
                self._files[tier].append(Shelved(Block(path), first, last))
            except Fault as error:
                self.num_damaged += 1
                self._say(f"{error.message}; its samples are not to be had")

    def close(self) -> None:
        """Let go of all files."""
        for files in self._files.values():
            for each in files:
                each.block.close()

    def blocks(self, tier: Tier) -> Sequence[Block]:
        """The files of a tier, the earliest cut first."""
        return [each.block for each in self._files[tier]]

    def size_bytes(self) -> Mapping[Tier, int]:
        """Of all files, by tier."""
        return {tier: sum(block.size_bytes for block in self.blocks(tier)) for tier in TIERS}

    def num_samples(self) -> int:
        """In raw chunks."""
        return sum(block.num_rows for block in self.blocks("raw"))

    def held(self) -> set[int]:
        """The series of which some file has a chunk."""
        return {number for tier in TIERS for block in self.blocks(tier) for number in block.ids.tolist()}

    def cut(self, chunks: Sequence[Chunk]) -> Block:
        """Put samples away, and what they roll up to; all of it or nothing.

        Raises:
            NoSpace: the disk is full.
            Fault: it is broken.
        """
        turn = self._turn + 1
        paths = {tier: self._path(tier, turn, turn) for tier in TIERS}
        fresh = {tier: Path(f"{path}{_FRESH}") for tier, path in paths.items()}
        rolled: Sequence[Chunk] = chunks
        try:
            for tier in TIERS:
                if tier != "raw":
                    rolled = [
                        Chunk(each.series_id, roll_up(each.rows, RESOLUTION_MS[tier])) for each in rolled
                    ]
                write_block(fresh[tier], tier, rolled)
        except BaseException:
            for path in fresh.values():
                path.unlink(missing_ok=True)
            raise
        for tier in TIERS:  # raw first: see _finish_turns
            fresh[tier].replace(paths[tier])
            sync_directory(self._directory)
        self._turn = turn
        for tier in TIERS:
            self._files[tier].append(Shelved(Block(paths[tier]), turn, turn))
        return self._files["raw"][-1].block

    def _path(self, tier: Tier, first: int, last: int) -> Path:
        return self._directory / f"{tier}-{first:010d}-{last:010d}.blk"

    def merge(self) -> None:
        """Make one of many neighbouring small files, tier by tier, at most one merge each; NoSpace: not now."""
        for tier in TIERS:
            run = self._run_to_merge(tier)
            if run is not None:
                with contextlib.suppress(NoSpace):
                    self._merge(tier, self._files[tier][run])

    def _run_to_merge(self, tier: Tier) -> slice | None:
        files = self._files[tier]
        most_ms = self._limits.of(tier).age_seconds * 1000 // MERGED_SPANS_KEPT
        for start in range(len(files) - MERGE_FILES + 1):
            run = files[start : start + MERGE_FILES]
            num_turns = {each.last - each.first for each in run}
            span = max(each.block.last_ms for each in run) - min(each.block.first_ms for each in run)
            num_rows = sum(each.block.num_rows for each in run)
            if len(num_turns) == 1 and span <= most_ms and num_rows <= self._limits.head_samples:
                return slice(start, start + MERGE_FILES)
        return None

    def _merge(self, tier: Tier, run: Sequence[Shelved]) -> None:
        path = self._path(tier, run[0].first, run[-1].last)
        fresh = Path(f"{path}{_FRESH}")
        try:
            write_block(fresh, tier, _merged(tier, [each.block for each in run]))
        except Fault as error:  # a chunk in it is damaged: leave the files as they are
            self._say(f"{error.message}; its file is not merged")
            return
        fresh.replace(path)
        sync_directory(self._directory)
        at = self._files[tier].index(run[0])
        self._files[tier][at : at + len(run)] = [Shelved(Block(path), run[0].first, run[-1].last)]
        for each in run:
            each.block.close()
            each.block.path.unlink()

    def drop_old(self, now_ms: int) -> None:
        """Drop the files that are wholly older than their tier keeps, and the oldest over its size."""
        for tier in TIERS:
            limits = self._limits.of(tier)
            for each in list(self._files[tier]):
                if each.block.last_ms < now_ms - limits.age_seconds * 1000:
                    self._drop(tier, each)
            files = self._files[tier]
            while files and sum(each.block.size_bytes for each in files) > limits.size_bytes:
                oldest = min(files, key=lambda each: each.block.last_ms)
                self._say(
                    f"{tier} samples up to {_when(oldest.block.last_ms)} dropped: the tier is over its size"
                )
                self._drop(tier, oldest)

    def drop_oldest(self) -> bool:
        """Make room on a full disk: of all tiers, drop the file whose data is the oldest; False: there is none."""
        held = [(each.block.last_ms, tier, each) for tier in TIERS for each in self._files[tier]]
        if not held:
            return False
        _, tier, oldest = min(held, key=lambda item: (item[0], TIERS.index(item[1])))
        self._say(
            f"the disk is full: {tier} samples up to {_when(oldest.block.last_ms)} dropped "
            f"({oldest.block.size_bytes} bytes)"
        )
        self.num_dropped += 1
        self._drop(tier, oldest)
        return True

    def _drop(self, tier: Tier, shelved: Shelved) -> None:
        self.num_removed += 1
        self._files[tier].remove(shelved)
        shelved.block.close()
        shelved.block.path.unlink(missing_ok=True)


def _merged(tier: Tier, blocks: Sequence[Block]) -> Iterator[Chunk]:
    ids = np.unique(np.concatenate([block.ids for block in blocks]))
    for series_id in ids.tolist():
        rows = join([found for block in blocks if (found := block.rows(series_id)) is not None])
        yield Chunk(series_id, rows if tier == "raw" else roll_up(rows, RESOLUTION_MS[tier]))


def _when(at_ms: int) -> str:
    try:
        return datetime.datetime.fromtimestamp(at_ms / 1000, datetime.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (ValueError, OverflowError, OSError):
        return f"{at_ms} ms"


def private_directory(path: Path) -> None:
    """Make a directory that only this user can look into, where it is not there yet."""
    if not path.is_dir():
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.chmod(path, 0o700)

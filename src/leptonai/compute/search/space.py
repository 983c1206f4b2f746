"""Which layouts there are: stated in a few lists, yielded as columns, never as an object each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from leptonai.compute.prediction.layouts import COLUMNS, CONSISTENCY, PLACEMENTS, RECOMPUTE, Ints, Layouts
from leptonai.core.errors import InputError

CHUNK_ROWS = 32_768
"""Rows of one chunk: a float64 column is then 256 KiB and stays in a core's cache."""
ZERO_LEVELS = (0, 1, 2, 3)


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """What may vary.

    A layout belongs to the space where all of this holds:

    - ``tensor * data * pipeline`` is one of ``num_devices``; ``tensor`` divides ``num_heads``, ``pipeline`` divides
      ``num_layers``, ``data`` divides ``global_batch``;
    - ``fsdp`` divides ``data``; it is 1 exactly where ``zero`` is 0;
    - ``micro_batch`` divides ``global_batch / data``;
    - ``interleave`` divides ``num_layers / pipeline``, and is more than 1 only in a pipeline whose number of
      micro-batches is a multiple of the number of stages, as the interleaved schedule asks (Narayanan et al. 2021,
      arXiv 2104.04473, section 2.2);
    - ``sequence_parallel`` only with ``tensor > 1``;
    - a ``consistency`` other than bsp only where ``data / fsdp > 1``: devices that share one copy of a state move
      together, and only different copies can drift apart;
    - of placements that are the same arrangement only the first in :data:`PLACEMENTS` is there. Two are the same if
      they order the axes of degree above 1 alike (an axis of degree 1 takes no room), or if all devices are in one
      node, where every link is like every other.

    Args:
        num_devices: numbers of devices that a layout may take, each >= 1.
        devices_per_node: >= 1.
        global_batch: examples of one optimiser step, >= 1.
        num_layers: equal layers that stages can share, >= 1; 1: no pipelines.
        num_heads: equal parts that tensor groups can share, >= 1; 1: no tensor groups.
        max_tensor: None: no bound.
        max_pipeline: None: no bound.
        max_micro_batch: None: no bound.
        max_interleave: None: no bound.
        recompute: of :data:`RECOMPUTE`.
        zero: of 0, 1, 2, 3; without 0, states are always divided.
        sequence_parallel: of False and True.
        consistency: of :data:`CONSISTENCY`. All but bsp change what is learned, not only how fast, and their steps
            are not worth the same; so they are there only where asked for.
        placement: of :data:`PLACEMENTS`.

    Raises:
        InputError: a value lies outside its range.
    """

    num_devices: tuple[int, ...]
    devices_per_node: int
    global_batch: int
    num_layers: int = 1
    num_heads: int = 1
    max_tensor: int | None = None
    max_pipeline: int | None = None
    max_micro_batch: int | None = None
    max_interleave: int | None = None
    recompute: tuple[str, ...] = RECOMPUTE
    zero: tuple[int, ...] = ZERO_LEVELS
    sequence_parallel: tuple[bool, ...] = (False, True)
    consistency: tuple[str, ...] = ("bsp",)
    placement: tuple[str, ...] = PLACEMENTS

    def __post_init__(self) -> None:
        for name in ("devices_per_node", "global_batch", "num_layers", "num_heads"):
            if getattr(self, name) < 1:
                raise InputError(f"Space: expected {name} >= 1, found {getattr(self, name)}")
        for name in ("max_tensor", "max_pipeline", "max_micro_batch", "max_interleave"):
            bound = getattr(self, name)
            if bound is not None and bound < 1:
                raise InputError(f"Space: expected {name} >= 1 or none, found {bound}")
        if not self.num_devices or min(self.num_devices) < 1:
            raise InputError(f"Space: expected numbers of devices >= 1, found {self.num_devices}")
        _check_words("recompute", self.recompute, RECOMPUTE)
        _check_words("zero", self.zero, ZERO_LEVELS)
        _check_words("sequence_parallel", self.sequence_parallel, (False, True))
        _check_words("consistency", self.consistency, CONSISTENCY)
        _check_words("placement", self.placement, PLACEMENTS)

    def with_fewer_devices(self) -> Space:
        """The same space where fewer devices may be taken too: any divisor of a node, and any number of whole nodes."""
        most = max(self.num_devices)
        in_node = [count for count in divisors(self.devices_per_node) if count <= most]
        whole = range(self.devices_per_node, most + 1, self.devices_per_node)
        return replace(self, num_devices=tuple(sorted({*in_node, *whole, *self.num_devices})))


def divisors(number: int) -> list[int]:
    """Ascending divisors of a number >= 1.

    >>> divisors(12)
    [1, 2, 3, 4, 6, 12]
    """
    small = [each for each in range(1, int(number**0.5) + 1) if number % each == 0]
    return sorted({*small, *(number // each for each in small)})


def count(space: Space) -> int:
    """How many layouts there are, without making any."""
    return sum(block.size for block in _blocks(space))


def chunks(space: Space, *, num_rows: int = CHUNK_ROWS) -> Iterator[Layouts]:
    """All layouts, each once, ``num_rows`` at a time; the last chunk may hold fewer.

    Degrees vary slowest, then fsdp and consistency, micro-batch and interleaving, recompute, sequence parallelism,
    and placement fastest.
    """
    waiting: list[dict[str, Ints]] = []
    room = num_rows
    for block in _blocks(space):
        start = 0
        while start < block.size:
            stop = min(block.size, start + room)
            waiting.append(block.rows(start, stop))
            room -= stop - start
            start = stop
            if room == 0:
                yield _join(waiting)
                waiting, room = [], num_rows
    if waiting:
        yield _join(waiting)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Block:
    """All layouts of one (tensor, data, pipeline): every combination of its lists, which are columns."""

    tensor: int
    data: int
    pipeline: int
    sharing: tuple[Ints, Ints, Ints]  # fsdp, zero, consistency
    passes: tuple[Ints, Ints]  # micro_batch, interleave
    recompute: Ints
    sequence_parallel: Ints
    placement: Ints

    @property
    def size(self) -> int:
        lists = (self.sharing[0], self.passes[0], self.recompute, self.sequence_parallel, self.placement)
        return int(np.prod([len(each) for each in lists]))

    def rows(self, start: int, stop: int) -> dict[str, Ints]:
        """Columns of rows from ``start`` up to ``stop``: a row's number in mixed radix says which of each list."""
        rest = np.arange(start, stop, dtype=np.int32)
        columns: dict[str, Ints] = {}
        for name in ("placement", "sequence_parallel", "recompute"):
            values: Ints = getattr(self, name)
            rest, which = _divide(rest, len(values))
            columns[name] = values[which]
        rest, which = _divide(rest, len(self.passes[0]))
        columns["micro_batch"], columns["interleave"] = (values[which] for values in self.passes)
        columns["fsdp"], columns["zero"], columns["consistency"] = (values[rest] for values in self.sharing)
        for name in ("tensor", "data", "pipeline"):
            columns[name] = np.full(stop - start, getattr(self, name), np.int32)
        return columns


def _divide(number: Ints, by: int) -> tuple[Ints, Ints]:
    """Quotient and remainder; twice as fast as ``numpy.divmod``, whose remainder is slow."""
    quotient = number // np.int32(by)
    return quotient, number - quotient * np.int32(by)


def _blocks(space: Space) -> Iterator[_Block]:
    recompute = np.array([place for place, word in enumerate(RECOMPUTE) if word in space.recompute], np.int32)
    sequence = np.array(sorted(space.sequence_parallel), np.int32)
    for tensor, data, pipeline in _degrees(space):
        block = _Block(
            tensor=tensor,
            data=data,
            pipeline=pipeline,
            sharing=_sharing(space, data),
            passes=_passes(space, data, pipeline),
            recompute=recompute,
            sequence_parallel=sequence if tensor > 1 else sequence[sequence == 0],
            placement=_placements(space, tensor, data, pipeline),
        )
        if block.size:
            yield block


def _degrees(space: Space) -> Iterator[tuple[int, int, int]]:
    """Degrees (tensor, data, pipeline), fewest devices first."""
    for num_devices in sorted(set(space.num_devices)):
        for tensor in divisors(num_devices):
            if space.num_heads % tensor or tensor > (space.max_tensor or tensor):
                continue
            for pipeline in divisors(num_devices // tensor):
                data = num_devices // (tensor * pipeline)
                if space.num_layers % pipeline or pipeline > (space.max_pipeline or pipeline):
                    continue
                if space.global_batch % data == 0:
                    yield tensor, data, pipeline


def _sharing(space: Space, data: int) -> tuple[Ints, Ints, Ints]:
    rows = [
        (fsdp, zero, mode)
        for fsdp in divisors(data)
        for zero in sorted(set(space.zero))
        if (fsdp > 1) == (zero > 0)
        for mode, word in enumerate(CONSISTENCY)
        if word in space.consistency and (word == "bsp" or data > fsdp)
    ]
    return tuple(np.array(rows, np.int32).reshape(-1, 3).T.copy())  # type: ignore[return-value]


def _passes(space: Space, data: int, pipeline: int) -> tuple[Ints, Ints]:
    of_replica, layers = space.global_batch // data, space.num_layers // pipeline
    rows = [
        (micro_batch, interleave)
        for micro_batch in divisors(of_replica)
        if micro_batch <= (space.max_micro_batch or micro_batch)
        for interleave in (divisors(layers) if pipeline > 1 else [1])
        if interleave <= (space.max_interleave or interleave)
        and (interleave == 1 or (of_replica // micro_batch) % pipeline == 0)
    ]
    return tuple(np.array(rows, np.int32).reshape(-1, 2).T.copy())  # type: ignore[return-value]


def _placements(space: Space, tensor: int, data: int, pipeline: int) -> Ints:
    """The first of each set of placements that are the same arrangement."""
    degrees = {"tensor": tensor, "data": data, "pipeline": pipeline}
    one_node = tensor * data * pipeline <= space.devices_per_node
    first: dict[tuple[str, ...], int] = {}
    for place, word in enumerate(PLACEMENTS):
        if word in space.placement:
            order = () if one_node else tuple(axis for axis in word.split() if degrees[axis] > 1)
            first.setdefault(order, place)
    return np.array(list(first.values()), np.int32)


def _join(parts: list[dict[str, Ints]]) -> Layouts:
    if len(parts) == 1:
        return Layouts(**parts[0])
    return Layouts(**{name: np.concatenate([part[name] for part in parts]) for name in COLUMNS})


def _check_words(name: str, found: tuple[object, ...], known: tuple[object, ...]) -> None:
    unknown = [each for each in found if each not in known]
    if unknown or not found or len(set(found)) < len(found):
        what = f"unknown {unknown[0]!r}" if unknown else "each at most once and at least one"
        raise InputError(
            f"Space: {name}: {what}, found {list(found)}", hint=f"some of: {', '.join(map(str, known))}"
        )

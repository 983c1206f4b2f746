"""Samples as bodies of Prometheus remote-write 1.0: a fixed protobuf message, packed with snappy.

The message is small and never changes, so it is written by hand: samples become bytes the second they are taken,
labels once for each series. Source: Prometheus' ``prompb/remote.proto`` and ``types.proto``; google/snappy's
``format_description.txt``.
"""

from __future__ import annotations

import importlib
import struct
from collections.abc import Callable, Iterable
from functools import lru_cache

from leptonai.operations.agent.catalogue import CATALOGUE, Metric
from leptonai.operations.agent.source import Reading
from leptonai.operations.series import Series

_MS_PER_SECOND = 1000.0
_DOUBLE = struct.Struct("<d")
_LITERAL_BYTES = (
    60  # a literal of up to 60 bytes has its length in the tag; longer ones in 1 to 4 bytes after it
)
_TYPES = {"counter": 1, "gauge": 2}  # MetricMetadata.MetricType
_SAMPLE_TAG, _VALUE_TAG, _TIME_TAG, _LABEL_TAG, _SERIES_TAG = b"\x12", b"\x09", b"\x10", 1, 1
_METADATA_TAG = 3


def varint(value: int) -> bytes:
    """A number of 64 bits, seven bits a byte, the lowest first; negative ones as their two's complement.

    >>> varint(300).hex()
    'ac02'
    """
    value &= 0xFFFFFFFFFFFFFFFF
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def field(number: int, body: bytes) -> bytes:
    """A field of bytes."""
    return varint(number << 3 | 2) + varint(len(body)) + body


def encode_labels(series: Series) -> bytes:
    """The label fields of a TimeSeries, sorted by name as the protocol wants."""
    return b"".join(
        field(_LABEL_TAG, field(1, name.encode()) + field(2, value.encode())) for name, value in series.labels
    )


def encode_metadata(metric: Metric) -> bytes:
    """A metadata field: type, name, help, unit."""
    body = b"\x08" + varint(_TYPES[metric.kind]) + field(2, metric.name.encode())
    body += field(4, metric.help.encode())
    return field(_METADATA_TAG, body + (field(5, metric.unit.encode()) if metric.unit else b""))


class Batch:
    """Samples of several seconds, series by series, until they are made into one body.

    Args:
        series: by key, the table's own list.
    """

    def __init__(self, series: list[Series]) -> None:
        self.num_samples = 0
        self._series = series
        self._labels: list[bytes] = []
        self._samples: dict[int, bytearray] = {}

    def add(self, readings: Iterable[Reading], *, at_seconds: float) -> None:
        """One sample of each of many series, all of one time (to the millisecond)."""
        time = _TIME_TAG + varint(round(at_seconds * _MS_PER_SECOND))
        head = _SAMPLE_TAG + varint(1 + _DOUBLE.size + len(time)) + _VALUE_TAG
        samples, pack = self._samples, _DOUBLE.pack
        num_samples = 0
        for key, value in readings:
            encoded = head + pack(value) + time
            held = samples.get(key)
            if held is None:
                samples[key] = bytearray(encoded)
            else:
                held += encoded
            num_samples += 1
        self.num_samples += num_samples

    def take(self, *, with_metadata: bool = False) -> bytes:
        """The protobuf message of all samples since the last call; ``with_metadata``: kinds, units and helps too."""
        labels = self._labels
        for series in self._series[len(labels) :]:
            labels.append(encode_labels(series))
        parts: list[bytes | bytearray] = []
        for key, samples in self._samples.items():
            size = len(labels[key]) + len(samples)
            parts += (b"\x0a", varint(size), labels[key], samples)
        if with_metadata:
            names = {self._series[key].name for key in self._samples}
            parts += [encode_metadata(CATALOGUE[name]) for name in sorted(names) if name in CATALOGUE]
        self._samples = {}
        self.num_samples = 0
        return b"".join(parts)


def snappy_literal(data: bytes) -> bytes:
    """A valid snappy block that holds the data as it is, for where there is no compressor.

    >>> snappy_literal(b"abc").hex()
    '0308616263'
    """
    size = len(data)
    head = varint(size)
    if size == 0:
        return head
    if size <= _LITERAL_BYTES:
        return head + bytes([(size - 1) << 2]) + data
    num_bytes = ((size - 1).bit_length() + 7) // 8
    return head + bytes([(59 + num_bytes) << 2]) + (size - 1).to_bytes(num_bytes, "little") + data


@lru_cache(maxsize=1)
def compressor() -> Callable[[bytes], bytes]:
    """What packs a body into a snappy block: cramjam where it is installed, else :func:`snappy_literal`."""
    try:
        snappy = importlib.import_module("cramjam").snappy
    except ImportError:
        return snappy_literal
    return lambda data: bytes(snappy.compress_raw(data))

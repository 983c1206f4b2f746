"""The safetensors format, written and read as raw bytes: no framework, no pickle, no copy of the tensors.

Layout: eight bytes of header length (little endian), the header (JSON, padded with spaces), then the tensors'
bytes one after the other. The reader trusts nothing: every length and offset is checked before use.
Source: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, TypeGuard

from leptonai.core.errors import InputError
from leptonai.training.learner import RawTensor

DTYPE_BYTES: Mapping[str, int] = MappingProxyType(
    {"BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1}
    | {"I16": 2, "U16": 2, "F16": 2, "BF16": 2, "I32": 4, "U32": 4, "F32": 4}
    | {"I64": 8, "U64": 8, "F64": 8, "C64": 8}
)
"""Bytes of one element, by safetensors' name of the type."""

_METADATA = "__metadata__"
# The format's own limit; it keeps a damaged length from asking for the whole memory.
_MAX_HEADER_BYTES = 100_000_000


def encode_tensors(
    tensors: Mapping[str, RawTensor], *, metadata: Mapping[str, str] | None = None
) -> Iterator[bytes | memoryview]:
    """The bytes of a safetensors file, in pieces that still lie where the tensors are.

    Args:
        tensors: by name; a name other than ``__metadata__``.
        metadata: free text kept in the header.

    Raises:
        InputError: a name, type or size is not one the format can hold.

    >>> from leptonai.training.learner import RawTensor
    >>> file = b"".join(encode_tensors({"a": RawTensor("U8", (2,), b"hi")}))
    >>> bytes(decode_tensors(file)["a"].data)
    b'hi'
    """
    # Largest elements first keeps every tensor aligned to its element size, as the reference writer does.
    names = sorted(tensors, key=lambda name: (-DTYPE_BYTES.get(tensors[name].dtype, 0), name))
    header: dict[str, Any] = {_METADATA: dict(metadata)} if metadata else {}
    pieces: list[bytes | memoryview] = []
    offset = 0
    for name in names:
        piece = _as_bytes(name, tensors[name])
        header[name] = {
            "dtype": tensors[name].dtype,
            "shape": list(tensors[name].shape),
            "data_offsets": [offset, offset + len(piece)],
        }
        offset += len(piece)
        pieces.append(piece)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    yield from pieces


def decode_tensors(file: bytes | bytearray | memoryview) -> dict[str, RawTensor]:
    """The tensors of a safetensors file, as views into ``file``.

    Raises:
        InputError: the bytes are not a whole, well-formed safetensors file.
    """
    view = memoryview(file).cast("B")
    header_bytes = int.from_bytes(view[:8], "little")
    if len(view) < 8 or header_bytes > min(len(view) - 8, _MAX_HEADER_BYTES):
        raise InputError("not a safetensors file: its header is longer than the file")
    header = _parsed_header(bytes(view[8 : 8 + header_bytes]))
    header.pop(_METADATA, None)
    body = view[8 + header_bytes :]
    tensors: dict[str, RawTensor] = {}
    end = 0
    for name, entry in sorted(header.items(), key=lambda item: _offsets(*item)):
        start, stop = _offsets(name, entry)
        dtype, shape = _checked_type(name, entry)
        if start != end or stop - start != math.prod(shape) * DTYPE_BYTES[dtype]:
            raise InputError(f"not a safetensors file: tensor {name!r} has offsets that do not fit")
        tensors[name] = RawTensor(dtype, shape, body[start:stop])
        end = stop
    if end != len(body):
        raise InputError(f"not a safetensors file: {len(body)} bytes of tensors, expected {end}")
    return tensors


def _as_bytes(name: str, tensor: RawTensor) -> bytes | memoryview:
    if not isinstance(name, str) or name == _METADATA:
        raise InputError(f"tensor name {name!r} cannot be written")
    view = memoryview(tensor.data)
    expected = math.prod(tensor.shape) * DTYPE_BYTES.get(tensor.dtype, -1)
    if view.nbytes != expected or not view.c_contiguous:
        raise InputError(
            f"tensor {name!r}: {view.nbytes} bytes do not make {tensor.dtype} of shape {tensor.shape}"
        )
    # memoryview.cast refuses views with a zero in their shape.
    return view.cast("B") if view.nbytes else b""


def _parsed_header(text: bytes) -> dict[str, Any]:
    try:
        header = json.loads(text, object_pairs_hook=_without_repeats)
    except (ValueError, RecursionError) as error:
        raise InputError(f"not a safetensors file: its header is not JSON ({error})") from error
    if not isinstance(header, dict):
        raise InputError("not a safetensors file: its header is not a JSON object")
    return header


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("a key is repeated")
    return values


def _offsets(name: str, entry: Any) -> tuple[int, int]:
    offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
    if not _are_counts(offsets) or len(offsets) != 2:
        raise InputError(f"not a safetensors file: tensor {name!r} has no offsets")
    return offsets[0], offsets[1]


def _checked_type(name: str, entry: dict[str, Any]) -> tuple[str, tuple[int, ...]]:
    dtype, shape = entry.get("dtype"), entry.get("shape")
    if not isinstance(dtype, str) or dtype not in DTYPE_BYTES or not _are_counts(shape):
        raise InputError(f"not a safetensors file: tensor {name!r} has no known type and shape")
    return dtype, tuple(shape)


def _are_counts(values: Any) -> TypeGuard[list[int]]:
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)

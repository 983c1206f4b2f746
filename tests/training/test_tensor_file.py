"""The safetensors reader and writer, against the reference implementation and against damage."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import example, given
from hypothesis import strategies as st

from leptonai.core.errors import InputError
from leptonai.training.learner import RawTensor
from leptonai.training.tensor_file import DTYPE_BYTES, decode_tensors, encode_tensors


@st.composite
def tensors(draw: st.DrawFn) -> dict[str, RawTensor]:
    names = draw(
        st.lists(
            st.text(min_size=1, max_size=8).filter(lambda name: name != "__metadata__"),
            unique=True,
            max_size=5,
        )
    )
    made = {}
    for name in names:
        dtype = draw(st.sampled_from(sorted(DTYPE_BYTES)))
        shape = tuple(draw(st.lists(st.integers(0, 4), max_size=3)))
        size = math.prod(shape) * DTYPE_BYTES[dtype]
        made[name] = RawTensor(dtype, shape, draw(st.binary(min_size=size, max_size=size)))
    return made


def written(values: dict[str, RawTensor], **more: object) -> bytes:
    return b"".join(encode_tensors(values, **more))  # type: ignore[arg-type]


@given(tensors())
def test_what_is_written_is_read_back(values: dict[str, RawTensor]) -> None:
    found = decode_tensors(written(values))
    assert {name: (t.dtype, t.shape, bytes(t.data)) for name, t in found.items()} == {
        name: (t.dtype, t.shape, t.data) for name, t in values.items()
    }


@given(tensors())
def test_the_reference_reader_reads_it(values: dict[str, RawTensor]) -> None:
    found = dict(safetensors.deserialize(written(values, metadata={"by": "leptonai"})))
    assert {
        name: (entry["dtype"], tuple(entry["shape"]), bytes(entry["data"])) for name, entry in found.items()
    } == {name: (t.dtype, t.shape, t.data) for name, t in values.items()}


def test_what_the_reference_writes_is_read(tmp_path: Path) -> None:
    arrays = {"b": np.arange(6, dtype=np.float32).reshape(2, 3), "a": np.arange(3, dtype=np.int64)}
    safetensors.numpy.save_file(arrays, tmp_path / "x.safetensors", metadata={"format": "np"})
    found = decode_tensors((tmp_path / "x.safetensors").read_bytes())
    assert {name: (tensor.shape, bytes(tensor.data)) for name, tensor in found.items()} == {
        name: (array.shape, array.tobytes()) for name, array in arrays.items()
    }


def test_tensors_are_neither_copied_on_the_way_out_nor_in() -> None:
    source = bytearray(b"12345678")
    pieces = list(encode_tensors({"a": RawTensor("F32", (2,), memoryview(source))}))
    source[0:1] = b"9"
    assert bytes(pieces[1]) == b"92345678"
    file = bytearray(b"".join(pieces))
    tensor = decode_tensors(file)["a"]
    file[-1:] = b"0"
    assert bytes(tensor.data) == b"92345670"


def test_a_view_of_an_array_of_numbers_is_written_as_its_bytes() -> None:
    array = np.arange(4, dtype=np.float64).reshape(2, 2)
    file = written(
        {"a": RawTensor("F64", (2, 2), array.data), "none": RawTensor("F32", (0, 3), np.zeros((0, 3)).data)}
    )
    assert bytes(decode_tensors(file)["a"].data) == array.tobytes()


@pytest.mark.parametrize(
    "tensor",
    [
        RawTensor("F32", (2,), b"1234"),
        RawTensor("F99", (1,), b"1234"),
        RawTensor("U8", (2,), memoryview(b"1234")[::2]),
    ],
)
def test_bytes_that_do_not_fit_the_type_and_shape_are_not_written(tensor: RawTensor) -> None:
    with pytest.raises(InputError, match="tensor 'a'"):
        written({"a": tensor})


def test_the_metadata_name_is_not_a_tensor_name() -> None:
    with pytest.raises(InputError, match="__metadata__"):
        written({"__metadata__": RawTensor("U8", (0,), b"")})


@given(tensors(), st.data())
def test_a_shortened_file_is_refused(values: dict[str, RawTensor], data: st.DataObject) -> None:
    file = written(values)
    with pytest.raises(InputError, match="not a safetensors file"):
        decode_tensors(file[: data.draw(st.integers(0, len(file) - 1))])


@given(st.binary(max_size=200))
@example((2**63).to_bytes(8, "little") + b"{}")
@example((2).to_bytes(8, "little") + b"[]")
@example((5000).to_bytes(8, "little") + b"[" * 5000)
def test_garbage_never_does_more_than_be_refused(file: bytes) -> None:
    try:
        found = decode_tensors(file)
    except InputError:
        return
    assert sum(len(memoryview(tensor.data)) for tensor in found.values()) <= len(file)


def entry(**changes: object) -> dict[str, object]:
    return {"dtype": "U8", "shape": [2], "data_offsets": [0, 2], **changes}


@pytest.mark.parametrize(
    "header",
    [
        {"a": entry(data_offsets=[1, 3])},
        {"a": entry(data_offsets=[0, 3])},
        {"a": entry(data_offsets=[2, 0])},
        {"a": entry(data_offsets=[-2, 0])},
        {"a": entry(data_offsets=[0])},
        {"a": entry(data_offsets=[0, 2.0])},
        {"a": entry(data_offsets="02")},
        {"a": entry(dtype="U7")},
        {"a": entry(dtype=None)},
        {"a": entry(shape=[True, 2])},
        {"a": entry(shape=None)},
        {"a": entry(), "b": entry()},
        {"a": entry(), "b": entry(data_offsets=[3, 5])},
        {"a": None},
        {},
    ],
)
def test_headers_that_lie_are_refused(header: dict[str, object]) -> None:
    text = json.dumps(header).encode()
    with pytest.raises(InputError, match="not a safetensors file"):
        decode_tensors(len(text).to_bytes(8, "little") + text + b"xy")


def test_a_repeated_name_is_refused() -> None:
    text = b'{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}'
    with pytest.raises(InputError, match="repeated"):
        decode_tensors(len(text).to_bytes(8, "little") + text + b"xy")

"""Low rank: of each weight matrix's gradient, the product of two thin matrices.

A range whose matrices are too few or too small to gain by that is sent as fp16: both ends know from the
shapes. So a payload for 9 numbers or more is never longer than the numbers themselves.

Shape letters: M rows, N columns of a matrix, R rank.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from leptonai.core.errors import InputError
from leptonai.training.parameter_server.codecs.base import (
    CHUNK_ELEMENTS,
    HEADER_BYTES,
    Codec,
    Draws,
    Float32,
    Header,
    Kind,
    State,
    check_decoded,
    check_values,
    chunks,
    codec_state,
    new_payload,
    open_payload,
    restore_codec,
)
from leptonai.training.parameter_server.codecs.float16 import Float16

Shapes = Sequence[tuple[int, tuple[int, ...]]]
_MAX_RANK = 1 << 10


@dataclass(frozen=True, slots=True, kw_only=True)
class _Matrix:
    """Elements ``start`` on, as ``rows`` times ``columns``."""

    start: int
    rows: int
    columns: int

    @property
    def stop(self) -> int:
        return self.start + self.rows * self.columns

    def of(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        return values[self.start : self.stop].reshape(self.rows, self.columns)


class PowerSgd:
    """One step of power iteration a payload, from where the last one ended; vectors are sent as they are.

    Only with error feedback: what rank ``rank`` cannot hold must come again.

    Args:
        rank: >= 1.
        shapes: first element and shape of each tensor in the flat array, in order. Those of two or more
            dimensions are matrices of shape[0] rows; the ones too small to gain are sent as they are.
        values: codec of the thin matrices and the rest.
        seed: of the first directions.

    Raises:
        InputError: the rank is out of range, or tensors overlap.

    Source: Vogels, Karimireddy & Jaggi 2019.
    """

    unbiased = False

    def __init__(self, rank: int, shapes: Shapes, values: Codec | None = None, *, seed: int = 0) -> None:
        if type(rank) is not int or not 1 <= rank <= _MAX_RANK:
            raise InputError(f"codec powersgd: expected rank to be from 1 to {_MAX_RANK}, found {rank!r}")
        self._rank, self._values, self._seed = rank, values or Float32(), seed
        self._matrices = _matrices(shapes, rank)
        self._warm_RN: dict[int, NDArray[np.float32]] = {}

    @property
    def name(self) -> str:
        """With the codec of the thin matrices."""
        after = "" if isinstance(self._values, Float32) else f"+{self._values.name}"
        return f"powersgd(rank={self._rank})" + after

    def encode(self, values: NDArray[np.float32]) -> bytearray:
        """All left factors, all right ones, then the numbers outside matrices, as one array for ``values``."""
        check_values(values)
        self._check_fit(values.size)
        if self._as_fp16(values.size):
            return Float16().encode(values)
        left, right = [], {}
        for number, matrix in enumerate(self._matrices):
            grads_MN = matrix.of(values)
            with np.errstate(over="ignore", invalid="ignore"):  # the next codec refuses infinities
                basis_MR, _ = np.linalg.qr(grads_MN @ self._directions(number).T)
                right[number] = np.ascontiguousarray(basis_MR.T @ grads_MN)
            left.append(np.ascontiguousarray(basis_MR.T))
        rest = [values[start:stop] for start, stop in self._rest(values.size)]
        parts = [array.reshape(-1) for array in (*left, *right.values(), *rest)]
        flat = np.concatenate(parts).astype(np.float32, copy=False)
        payload = new_payload(self._header(values.size), 0)
        payload += self._values.encode(flat)
        self._warm_RN = right
        return payload

    def decode(self, payload: memoryview, out: NDArray[np.float32]) -> None:
        """Products of the factors, summed over the rank in order."""
        self._check_fit(out.size)
        if self._as_fp16(out.size):
            Float16().decode(payload, out)
            return
        body = open_payload(payload, self._header(out.size))
        num_left = sum(self._rank * matrix.rows for matrix in self._matrices)
        num_right = sum(self._rank * matrix.columns for matrix in self._matrices)
        num_rest = sum(stop - start for start, stop in self._rest(out.size))
        flat = np.empty(num_left + num_right + num_rest, np.float32)
        self._values.decode(body, flat)
        left_at, right_at, rest_at = 0, num_left, num_left + num_right
        for matrix in self._matrices:
            left_stop, right_stop = (
                left_at + self._rank * matrix.rows,
                right_at + self._rank * matrix.columns,
            )
            left_RM = flat[left_at:left_stop].reshape(self._rank, -1)
            right_RN = flat[right_at:right_stop].reshape(self._rank, -1)
            _product(left_RM, right_RN, matrix.of(out))
            left_at, right_at = left_stop, right_stop
        for start, stop in self._rest(out.size):
            out[start:stop] = flat[rest_at : rest_at + stop - start]
            rest_at += stop - start
        check_decoded(Kind.POWER_SGD, out)

    def state(self) -> State:
        """The right factors that the next payload starts from; and of the codec of the values."""
        warm = {f"right/{number}": right_RN.copy() for number, right_RN in self._warm_RN.items()}
        return {**warm, **{f"values/{name}": array for name, array in codec_state(self._values).items()}}

    def restore(self, state: State) -> None:
        """Take over what :meth:`state` gave."""
        names = [f"right/{number}" for number in range(len(self._matrices))]
        warm = {}
        for number, (name, matrix) in enumerate(zip(names, self._matrices, strict=True)):
            if name in state and state[name].shape != (self._rank, matrix.columns):
                raise InputError(f"codec {self.name}: {name} has shape {state[name].shape}")
            if name in state:
                warm[number] = np.array(state[name], np.float32)
        inner = {name.removeprefix("values/"): a for name, a in state.items() if name not in names}
        restore_codec(self._values, inner)
        self._warm_RN = warm

    def _as_fp16(self, count: int) -> bool:
        saved = sum(m.rows * m.columns - self._rank * (m.rows + m.columns) for m in self._matrices)
        return 2 * HEADER_BYTES + 4 * (count - saved) >= Float16.num_bytes(count)

    def _header(self, count: int) -> Header:
        return Header(kind=Kind.POWER_SGD, count=count, extra=self._rank, block=len(self._matrices))

    def _check_fit(self, num_elements: int) -> None:
        if self._matrices and self._matrices[-1].stop > num_elements:
            raise InputError(
                f"codec {self.name}: its shapes need {self._matrices[-1].stop} numbers, found {num_elements}"
            )

    def _rest(self, num_elements: int) -> Iterator[tuple[int, int]]:
        """Ranges outside matrices."""
        at = 0
        for matrix in self._matrices:
            if matrix.start > at:
                yield at, matrix.start
            at = matrix.stop
        if at < num_elements:
            yield at, num_elements

    def _directions(self, number: int) -> NDArray[np.float32]:
        """Where the iteration goes on: (R, N), rows of length 1; fresh ones where the last gradient had none."""
        columns = self._matrices[number].columns
        right_RN = self._warm_RN.get(number, np.zeros((self._rank, columns), np.float32)).astype(np.float64)
        lengths = np.linalg.norm(right_RN, axis=1, keepdims=True)
        if not lengths.all():
            generator = np.random.Generator(Draws.at(self._seed % (1 << 64), number))
            right_RN = np.where(lengths > 0.0, right_RN, generator.standard_normal((self._rank, columns)))
            lengths = np.linalg.norm(right_RN, axis=1, keepdims=True)
        unit_RN: NDArray[np.float32] = (right_RN / lengths).astype(np.float32)
        return unit_RN


def _matrices(shapes: Shapes, rank: int) -> tuple[_Matrix, ...]:
    """The tensors worth factoring."""
    found, at = [], 0
    for start, shape in shapes:
        if start < at:
            raise InputError(f"codec powersgd: tensors overlap at element {start}")
        at = start + math.prod(shape)
        rows, columns = (shape[0], math.prod(shape[1:])) if len(shape) > 1 else (0, 0)
        # A thin factor has at most as many columns as rows, and both must be smaller than the matrix.
        if rank <= min(rows, columns) and rank * (rows + columns) < rows * columns:
            found.append(_Matrix(start=start, rows=rows, columns=columns))
    return tuple(found)


def _product(
    left_RM: NDArray[np.float32], right_RN: NDArray[np.float32], out_MN: NDArray[np.float32]
) -> None:
    # Not a matrix product of the BLAS, whose order of summing differs between machines: both ends of a
    # compressed update must land on the same bits.
    num_rows = max(1, CHUNK_ELEMENTS // out_MN.shape[1])
    with np.errstate(over="ignore", invalid="ignore"):
        for start, stop in chunks(out_MN.shape[0], num_rows):
            rows_MN = out_MN[start:stop]
            np.multiply(left_RM[0, start:stop, None], right_RN[0], out=rows_MN)
            for left_M, right_N in zip(left_RM[1:, start:stop], right_RN[1:], strict=True):
                rows_MN += left_M[:, None] * right_N

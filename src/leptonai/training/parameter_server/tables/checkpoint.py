"""Table files: the rows that exist, streamed in blocks, so that memory holds one block whatever the table's size.

``docs/formats/table-file.md`` describes the file. Loading deals the rows out anew, so the number of servers may
differ from when they were saved.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from leptonai.core.errors import Fault, InputError
from leptonai.training.durable import Written, write_durably
from leptonai.training.parameter_server.tables.spec import Table
from leptonai.training.parameter_server.tables.storage import Block, TableStorage

FORMAT_VERSION = 1
BLOCK_BYTES = 64 << 20
_MAGIC = b"LEPTABLE"
_HEAD = struct.Struct("<8sII")  # magic, version, bytes of JSON
_COUNT = struct.Struct("<Q")
_DIGEST_BYTES = 32
_MAX_JSON_BYTES = 1 << 16


def table_file_name(table: str, server: int) -> str:
    """Of one server's part of a table, within a checkpoint.

    >>> table_file_name("items", 0)
    'tables/items.0.bin'
    """
    return f"tables/{table}.{server}.bin"


def save_table(storage: TableStorage, path: Path, *, block_bytes: int = BLOCK_BYTES) -> Written:
    """Write one server's rows to a new file and flush it to the disk; its folder must exist.

    Nothing may change the table meanwhile. At most about two blocks are held in memory.

    Raises:
        Fault: the file could not be written; what is there of it is of no use.
    """
    try:
        return write_durably(path, _pieces(storage, block_bytes))
    except OSError as error:
        raise Fault(
            f"could not save table {storage.table.name!r} to {path}: {error.strerror or error}",
            hint="free some space, or choose another disk",
        ) from error


def load_table(storage: TableStorage, paths: Sequence[Path]) -> int:
    """Take over a server's own rows from the files of all servers that saved the table.

    Returns:
        Rows taken over.

    Raises:
        InputError: a file is of another table, or of a format this version does not know.
        Fault: a file is damaged, missing, or its rows do not fit; the table must then not be used.
    """
    count = 0
    for path in paths:
        try:
            with open(path, "rb") as file:
                for block in _blocks(file, path, storage.table):
                    count += _put_own(storage, block)
        except OSError as error:
            raise Fault(f"table file {path} cannot be read: {error.strerror or error}") from error
    return count


def _put_own(storage: TableStorage, block: Block) -> int:
    shape = storage.memory.shape
    if shape.num_servers > 1:
        own = np.flatnonzero(block.ids % shape.num_servers == shape.server)
        clocks = block.clocks[own] if len(block.clocks) else block.clocks
        block = Block(block.ids[own], block.rows[own], block.states[own], clocks)
    storage.put(block)
    return len(block.ids)


def _pieces(storage: TableStorage, block_bytes: int) -> Iterator[bytes | memoryview]:
    table, shape = storage.table, storage.memory.shape
    max_rows = max(1, block_bytes // _row_bytes(table))
    about = {
        **_identity(table),
        "max_rows": max_rows,
        "server": shape.server,
        "num_servers": shape.num_servers,
    }
    text = json.dumps(about, sort_keys=True).encode()
    head = _HEAD.pack(_MAGIC, FORMAT_VERSION, len(text)) + text
    yield head + hashlib.sha256(head).digest()
    total = 0
    for block in storage.blocks(max_rows):
        total += len(block.ids)
        parts: list[bytes | memoryview] = [_COUNT.pack(len(block.ids))]
        parts += [_bytes(array) for array in (block.ids, block.rows, block.states, block.clocks)]
        yield from parts
        yield _digest(parts)
    end = [_COUNT.pack(0), _COUNT.pack(total)]
    yield from end
    yield _digest(end)


def _blocks(file: BinaryIO, path: Path, table: Table) -> Iterator[Block]:
    """Every block of a file, each given out only after its digest was checked."""
    max_rows, total = _read_head(file, path, table), 0
    while True:
        first = _read(file, _COUNT.size, path)
        (count,) = _COUNT.unpack(first)
        if count > max_rows:
            raise _damaged(path, "a block is larger than its head allows")
        if count == 0:
            last = _read(file, _COUNT.size, path)
            _check(file, [first, last], path)
            if _COUNT.unpack(last)[0] != total or file.read(1):
                raise _damaged(path, "it ends in the wrong place")
            return
        data = _read(file, count * _row_bytes(table), path)
        _check(file, [first, data], path)
        total += count
        yield _block(data, count, table)


def _block(data: bytearray, count: int, table: Table) -> Block:
    at = 0

    def take(kind: str, width: int) -> NDArray[Any]:
        nonlocal at
        values = np.frombuffer(data, kind, count=count * width, offset=at)
        at += values.nbytes
        return values

    ids = take("<i8", 1)
    rows = take("<f4", table.width).reshape(count, table.width)
    states = take("<f4", table.state_width).reshape(count, table.state_width)
    return Block(ids, rows, states, take("<i8", 1 if table.capacity is not None else 0))


def _read_head(file: BinaryIO, path: Path, table: Table) -> int:
    head = _read(file, _HEAD.size, path)
    magic, version, size = _HEAD.unpack(head)
    if magic != _MAGIC or size > _MAX_JSON_BYTES:
        raise _damaged(path, "it does not begin like a table file")
    if version != FORMAT_VERSION:
        raise InputError(
            f"table file {path} has format version {version}, this program reads {FORMAT_VERSION}",
            hint="load it with the version of leptonai that wrote it",
        )
    text = _read(file, size, path)
    _check(file, [head, text], path)
    about = json.loads(text.decode())
    for name, value in _identity(table).items():
        if about.get(name) != value:
            raise InputError(
                f"table file {path} does not fit table {table.name!r}: "
                f"its {name} is {about.get(name)!r}, expected {value!r}"
            )
    return int(about["max_rows"])


def _identity(table: Table) -> dict[str, Any]:
    """What must be equal for rows to be taken over; rates, limits and caps may change."""
    return {
        "table": table.name,
        "width": table.width,
        "rule": type(table.rule).__name__,
        "state_width": table.state_width,
        "any_ids": table.capacity is not None,
        "seed": table.seed,
    }


def _row_bytes(table: Table) -> int:
    return 8 + 4 * (table.width + table.state_width) + (8 if table.capacity is not None else 0)


def _read(file: BinaryIO, size: int, path: Path) -> bytearray:
    data = bytearray(size)
    if file.readinto(data) != size:  # type: ignore[attr-defined]
        raise _damaged(path, "it ends early")
    return data


def _check(file: BinaryIO, parts: Sequence[bytes | bytearray | memoryview], path: Path) -> None:
    if _read(file, _DIGEST_BYTES, path) != _digest(parts):
        raise _damaged(path, "a block does not have its digest")


def _digest(parts: Sequence[bytes | bytearray | memoryview]) -> bytes:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.digest()


def _damaged(path: Path, reason: str) -> Fault:
    return Fault(f"table file {path} is damaged: {reason}", hint="resume from an older checkpoint")


def _bytes(array: NDArray[Any]) -> memoryview:
    return np.ascontiguousarray(array).data.cast("B") if array.size else memoryview(b"")

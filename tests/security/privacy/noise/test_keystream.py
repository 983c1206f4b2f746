"""The keystream: AES's own bytes, no byte twice, and no way to repeat or read it."""

from __future__ import annotations

import copy
import os
import pickle
from collections.abc import Callable

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import ECB
from hypothesis import given, settings
from hypothesis import strategies as st

from leptonai.core.errors import Fault, InputError
from leptonai.security.privacy.noise.keystream import BLOCK_BYTES, Keystream

KEY = bytes(range(32))


def taken(stream: Keystream, size: int) -> bytes:
    target = np.empty(size, dtype=np.uint8)
    stream.fill(target)
    return target.tobytes()


def in_child(work: Callable[[], bytes]) -> bytes:
    """What ``work`` gives in a forked process."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writer, work())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        found = pipe.read()
    os.waitpid(child, 0)
    return found


@pytest.mark.parametrize(("purpose", "step"), [(0, 0), (2, 5), (255, 2**48 - 1)])
def test_the_bytes_are_the_encrypted_counters(purpose: int, step: int) -> None:
    size = 2 * BLOCK_BYTES + 33
    first = int.from_bytes(bytes([purpose]) + step.to_bytes(6, "big") + bytes(9), "big")
    counters = b"".join((first + i).to_bytes(16, "big") for i in range(-(-size // 16)))
    expected = Cipher(AES(KEY), ECB()).encryptor().update(counters)[:size]
    assert taken(Keystream(KEY, purpose=purpose, step=step), size) == expected


@settings(max_examples=30)
@given(st.lists(st.integers(0, 1000), max_size=8))
def test_taking_in_parts_takes_the_same_bytes(sizes: list[int]) -> None:
    stream = Keystream(KEY)
    assert b"".join(taken(stream, size) for size in sizes) == taken(Keystream(KEY), sum(sizes))


def test_keys_purposes_and_steps_share_no_block() -> None:
    streams = [Keystream(KEY, purpose=purpose, step=step) for purpose in range(5) for step in range(20)]
    streams += [Keystream(bytes(32)), Keystream(), Keystream()]
    blocks = [taken(stream, 16) for stream in streams for _ in range(50)]
    assert len(set(blocks)) == len(blocks)


def test_a_fork_does_not_repeat_a_fresh_stream() -> None:
    stream = Keystream()
    taken(stream, 100)
    childs = in_child(lambda: taken(stream, 64))
    other = in_child(lambda: taken(stream, 64))
    assert len({childs, other, taken(stream, 64)}) == 3
    assert len(childs) == 64


def test_a_fork_cannot_repeat_a_given_key() -> None:
    stream = Keystream(KEY)

    def attempt() -> bytes:
        try:
            return taken(stream, 16)
        except Fault as error:
            return str(error).encode()

    found = in_child(attempt)
    assert b"fork" in found
    assert KEY.hex().encode() not in found
    assert taken(stream, 16) == taken(Keystream(KEY), 16)


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, pickle.dumps])
def test_it_exists_once(copied: Callable[[Keystream], object]) -> None:
    with pytest.raises(TypeError, match="once"):
        copied(Keystream(KEY))


def test_the_key_is_nowhere_to_be_read() -> None:
    stream = Keystream(KEY)
    values = [getattr(stream, name) for name in Keystream.__slots__]
    assert not any(KEY.hex() in repr(value) or repr(KEY)[2:-1] in repr(value) for value in [stream, *values])
    assert KEY not in values


@pytest.mark.parametrize("key", [b"", bytes(31), bytes(33), "0" * 32, bytearray(32)])
def test_what_is_no_key_is_refused_without_being_shown(key: bytes) -> None:
    with pytest.raises(InputError) as refused:
        Keystream(key)
    assert "000" not in str(refused.value)
    assert "\\x00" not in str(refused.value)


@pytest.mark.parametrize(("purpose", "step"), [(-1, 0), (256, 0), (0, -1), (0, 2**48)])
def test_numbers_outside_their_range_are_refused(purpose: int, step: int) -> None:
    with pytest.raises(InputError):
        Keystream(KEY, purpose=purpose, step=step)


def test_a_target_with_gaps_is_refused() -> None:
    with pytest.raises(InputError):
        Keystream(KEY).fill(np.zeros((4, 4))[:, :2])

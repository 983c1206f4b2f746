"""The kernels in C: the bits of the plain formulas, a journal that survives a death anywhere, and no library
that cannot be trusted."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from leptonai.core.compiled import CACHE_VARIABLE, load_compiled
from leptonai.training.optimizers import SGD, Adagrad, Adam, AdamW, Optimizer
from leptonai.training.parameter_server.compiled import library as compiled
from leptonai.training.parameter_server.compiled_kernels import CompiledKernels, copy_checked
from leptonai.training.parameter_server.kernels import (
    JournallingKernels,
    Kernels,
    choose_kernels,
    initialise_states,
    num_states,
)
from leptonai.training.parameter_server.memory import PUSH, Header, ShardMemory, ShardShape, Slot
from leptonai.training.parameter_server.numpy_kernels import NumpyKernels
from leptonai.training.parameter_server.shard import Shard

pytestmark = pytest.mark.skipif(compiled.library() is None, reason="there is no C compiler")

Floats = NDArray[np.float32]
RULES: list[SGD | Adam | AdamW | Adagrad] = [
    SGD(lr=0.1),
    SGD(lr=0.1, weight_decay=0.01),
    SGD(lr=0.1, momentum=0.9),
    SGD(lr=0.1, momentum=0.9, weight_decay=0.01),
    SGD(lr=0.1, momentum=0.9, nesterov=True),
    SGD(lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    Adam(lr=0.01),
    AdamW(lr=0.01, weight_decay=0.1),
    Adagrad(lr=0.1),
    Adagrad(lr=0.1, initial_accumulator=0.1, weight_decay=0.01),
]


def normal(size: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).standard_normal(size).astype(np.float32)


# -- the numbers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", RULES, ids=str)
@pytest.mark.parametrize("size", [16, 48, 2048, 2064, 20_016])
def test_the_bits_are_those_of_the_plain_formulas(optimizer: SGD | Adam | AdamW | Adagrad, size: int) -> None:
    ends = []
    for kernels in (CompiledKernels(optimizer), NumpyKernels(optimizer)):
        parameters, states = normal(size), np.zeros((num_states(optimizer), size), np.float32)
        initialise_states(optimizer, states)
        for step in (1, 2, 3, 40):
            kernels.update(parameters, normal(size, step), states, lr=0.01 * step, step=step)
        ends.append(parameters.tobytes() + states.tobytes())
    assert ends[0] == ends[1]


@given(st.integers(0, 300), st.integers(0, 40), st.booleans())
@settings(max_examples=60, deadline=None)
def test_a_copy_is_whole_and_finds_what_is_not_finite(size: int, offset: int, streaming: bool) -> None:
    source, target = normal(size + offset)[offset:], np.zeros(size + offset + 1, np.float32)
    size += 1 << 18 if streaming else 0
    if streaming:
        source, target = normal(size + offset)[offset:], np.zeros(size + offset + 1, np.float32)
    view = target[offset : offset + size]
    assert copy_checked(source, view) is True
    assert (view == source).all()
    assert not target[:offset].any()
    assert target[-1] == 0.0
    if size:
        for bad in (np.nan, np.inf, -np.inf):
            source[(offset * 7919) % size] = bad
            assert copy_checked(source, view) is False
            assert view.tobytes() == source.tobytes()


def test_all_finite_looks_at_every_number() -> None:
    library = compiled.library()
    assert library is not None
    values = np.full(40_000, 3e38, np.float32)
    assert library.lepton_all_finite(values.ctypes.data, len(values)) == 1
    for place in (0, 16_383, 16_384, 39_999):
        values[place] = np.nan
        assert library.lepton_all_finite(values.ctypes.data, len(values)) == 0
        values[place] = 0.0


# -- deaths between and within blocks --------------------------------------------------------------------

SIZE, CHUNK = 208, 96  # blocks of 48: two a chunk, the last chunk shorter than one


@pytest.fixture
def memory(request: pytest.FixtureRequest) -> Iterator[ShardMemory]:
    found = fresh(request.param)
    yield found
    found.close()


def fresh(optimizer: Optimizer) -> ShardMemory:
    memory = ShardMemory.create(
        ShardShape(num_elements=SIZE, num_states=num_states(optimizer), num_slots=2, chunk_elements=CHUNK)
    )
    memory.parameters[:] = normal(SIZE, 99)
    initialise_states(optimizer, memory.states)
    memory.reads(0)[:] = normal(SIZE, 98)
    return memory


def offer(memory: ShardMemory, sequence: int, start: int, stop: int) -> None:
    words = memory.slots[0]
    memory.gradients(0)[:] = normal(SIZE, sequence)
    words[Slot.OP], words[Slot.START], words[Slot.STOP] = PUSH, start, stop
    memory.set_slot_float(0, Slot.LR, 0.1)
    memory.set_slot_float(0, Slot.WEIGHT, 0.5)
    words[Slot.OFFERED] = sequence


def contents(memory: ShardMemory) -> tuple[bytes, bytes, list[int], int]:
    return (
        memory.parameters.tobytes(), memory.states.tobytes(), memory.chunks.tolist(),
        int(memory.header[Header.VERSION]),
    )  # fmt: skip


PUSHES = ((0, SIZE), (16, 192), (112, 128), (0, SIZE))


def play(
    optimizer: SGD | Adam | AdamW | Adagrad, fuses: list[int], *, then: type[Kernels]
) -> tuple[object, int]:
    """Four updates; each fuse is how long a process lives, counted in steps of four a block. The last lives."""
    memory, deaths = fresh(optimizer), 0
    left = list(fuses)

    def successor() -> Shard:
        kernels: Kernels = CompiledKernels(optimizer) if left or then is CompiledKernels else then(optimizer)  # type: ignore[call-arg]
        if left and isinstance(kernels, CompiledKernels):
            kernels.fuse.value = left.pop(0)
        return Shard(memory, optimizer, kernels=kernels, delay_compensation=0.25)

    shard = successor()
    shard.recover()
    for sequence, (start, stop) in enumerate(PUSHES, 1):
        offer(memory, sequence, start, stop)
        while memory.slots[0, Slot.ANSWERED] < sequence:
            try:
                shard.apply(0)
            except RuntimeError:
                while True:
                    deaths += 1
                    shard = successor()
                    try:
                        shard.recover()
                        break
                    except RuntimeError:
                        continue
    end = contents(memory)
    memory.close()
    return end, deaths


JOURNALLED = [RULES[0], RULES[5], RULES[7]]


@pytest.mark.parametrize("then", [CompiledKernels, NumpyKernels])
@pytest.mark.parametrize("optimizer", JOURNALLED, ids=str)
def test_a_death_at_any_step_of_any_block_loses_and_doubles_nothing(
    optimizer: SGD | Adam | AdamW | Adagrad, then: type[Kernels]
) -> None:
    calm, _ = play(optimizer, [], then=NumpyKernels)
    assert play(optimizer, [-1], then=then) == (calm, 0)
    point = deaths = 0
    while point == 0 or deaths:
        end, deaths = play(optimizer, [point], then=then)
        assert end == calm, f"ended at step {point}"
        point += 1
    assert point > 40  # the whole of it was gone through


@given(st.integers(0, len(JOURNALLED) - 1), st.lists(st.integers(0, 30), max_size=20), st.booleans())
@settings(max_examples=50, deadline=None)
def test_deaths_during_recovery_are_survived_too(which: int, fuses: list[int], plain: bool) -> None:
    optimizer = JOURNALLED[which]
    calm, _ = play(optimizer, [], then=NumpyKernels)
    assert play(optimizer, fuses, then=NumpyKernels if plain else CompiledKernels)[0] == calm


@pytest.mark.parametrize("memory", [RULES[5]], indirect=True, ids=str)
def test_before_a_block_changes_its_old_values_are_declared(memory: ShardMemory) -> None:
    """What the journal says is undone after every step of the first chunk: the values of before come back."""
    optimizer, before = RULES[5], None
    for fuse in range(6):
        memory.parameters[:], memory.states[:] = normal(SIZE, 1), normal(SIZE, 2)
        before = memory.parameters.copy(), memory.states.copy()
        kernels = CompiledKernels(optimizer)
        kernels.fuse.value = fuse
        shard = Shard(memory, optimizer, kernels=kernels)
        memory.header[Header.INTENT] = 0
        memory.slots[0, Slot.ANSWERED] = 0
        offer(memory, 1, 0, SIZE)
        with pytest.raises(RuntimeError, match="fuse"):
            shard.apply(0)
        update = shard._log.under_way()
        assert update is not None
        shard._log.undo_half_done(update)
        block = shard._log.block_under_way(0, 0)
        low = block[0] if block else 0
        assert (block is None) == (fuse < 3)
        assert low == (48 if fuse == 5 else 0)
        assert (memory.parameters[low:] == before[0][low:]).all()
        assert (memory.states[:, low:] == before[1][:, low:]).all()
        assert not low or (memory.parameters[:low] != before[0][:low]).all()


def test_a_chunk_too_small_for_two_blocks_is_journalled_whole() -> None:
    optimizer = SGD(lr=1.0, momentum=0.9)
    for kernels in (CompiledKernels(optimizer), NumpyKernels(optimizer)):
        memory = ShardMemory.create(
            ShardShape(num_elements=64, num_states=1, num_slots=1, chunk_elements=16, has_reads=False)
        )
        shard = Shard(memory, optimizer, kernels=kernels)
        memory.gradients(0)[:] = 1.0
        memory.slots[0, Slot.OP], memory.slots[0, Slot.STOP] = PUSH, 64
        memory.set_slot_float(0, Slot.LR, 0.5)
        memory.set_slot_float(0, Slot.WEIGHT, 1.0)
        memory.slots[0, Slot.OFFERED] = 1
        shard.apply(0)
        assert (memory.parameters == -0.5).all()
        memory.close()


# -- the library ---------------------------------------------------------------------------------------


@pytest.fixture
def no_library_yet() -> Iterator[None]:
    load_compiled.cache_clear()
    yield
    load_compiled.cache_clear()


@pytest.mark.usefixtures("no_library_yet")
def test_without_a_compiler_the_others_are_chosen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    kernels = choose_kernels(Adam())
    assert kernels.name == "torch"
    assert not isinstance(kernels, JournallingKernels)
    assert copy_checked(np.ones(4, np.float32), np.empty(4, np.float32)) is None


@pytest.mark.usefixtures("no_library_yet")
@pytest.mark.parametrize(
    "script", ["exit 1", "exit 0", 'while [ "$1" != -o ]; do shift; done; echo rubbish > "$2"']
)
def test_a_compiler_that_fails_is_no_compiler(
    script: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "cc").write_text(f"#!/bin/sh\n{script}\n")
    (tmp_path / "cc").chmod(0o700)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    assert compiled.library() is None
    assert choose_kernels(Adam()).name == "torch"


def test_kernels_that_compute_something_else_are_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CompiledKernels, "update", lambda *_, **__: None)
    assert choose_kernels(Adam()).name == "torch"


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with a library in it."""
    cache = tmp_path_factory.mktemp("kept")
    load(cache)
    return cache


def load(cache: Path) -> bool:
    """Whether a fresh process has the library."""
    code = (
        "import sys; from leptonai.training.parameter_server.compiled.library import library;"
        "print(library() is not None)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60,
        env={**os.environ, CACHE_VARIABLE: str(cache), "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    return done.stdout.strip() == "True"


def test_it_is_compiled_once_and_belongs_to_the_user_alone(kept: Path) -> None:
    (found,) = (kept / "compiled").iterdir()
    first = found.stat()
    assert load(kept)
    assert found.stat().st_mtime_ns == first.st_mtime_ns
    assert (first.st_mode & 0o777, (kept / "compiled").stat().st_mode & 0o777) == (0o700, 0o700)


@pytest.mark.parametrize("what", ["file for the group", "file for all", "folder for all", "link"])
def test_a_library_that_another_user_could_have_written_is_refused(
    what: str, kept: Path, tmp_path: Path
) -> None:
    (source,) = (kept / "compiled").iterdir()
    folder = tmp_path / "compiled"
    folder.mkdir(mode=0o700)
    file = folder / source.name
    if what == "link":
        file.symlink_to(source)
    else:
        file.write_bytes(source.read_bytes())
        file.chmod({"file for the group": 0o720, "file for all": 0o702}.get(what, 0o700))
    if what == "folder for all":
        folder.chmod(0o777)
    assert not load(tmp_path)


def test_threads_that_ask_at_once_get_one_that_works() -> None:
    found: list[bool] = []
    threads = [
        threading.Thread(target=lambda: found.append(compiled.library() is not None)) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 4

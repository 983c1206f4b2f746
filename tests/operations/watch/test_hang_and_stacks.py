"""Which rank holds a gang up, and what its processes are doing."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest

from leptonai.core.errors import InputError
from leptonai.operations.watch.hang import HangFinding, HangWatch, RankProgress, Section
from leptonai.operations.watch.stacks import dump_stacks, py_spy_command, stacks_text


def gang(step: int, since: float, *sections: Section, stopped: int = -1) -> list[RankProgress]:
    return [
        RankProgress(rank=rank, step=step, section=section, since_seconds=since, stopped=rank == stopped)
        for rank, section in enumerate(sections)
    ]


def warmed() -> HangWatch:
    watch = HangWatch()
    for step in range(20):
        assert watch.update(gang(step, 0.5 * step, "computing", "computing"), now_seconds=0.5 * step) is None
    return watch


def test_the_rank_outside_the_exchange_is_named_after_the_deadline_once_and_then_its_end() -> None:
    watch = warmed()
    assert watch.deadline_seconds == 5.0
    stuck = gang(19, 10.0, "exchanging", "computing")
    assert watch.update(stuck, now_seconds=14.9) is None
    found = watch.update(stuck, now_seconds=15.0)
    assert found is not None
    assert (found.rank, found.waiting, found.over) == (1, (0,), False)
    assert watch.update(stuck, now_seconds=16.0) is None
    over = watch.update(gang(20, 16.5, "computing", "computing"), now_seconds=16.5)
    assert over is not None
    assert over.over


def test_long_steps_have_long_deadlines() -> None:
    watch = HangWatch()
    for step in range(10):
        watch.update(gang(step, 4.0 * step, "computing", "computing"), now_seconds=4.0 * step)
    assert watch.deadline_seconds == pytest.approx(12.0)


def test_pauses_starts_and_first_steps_have_none() -> None:
    for sections in (("pausing", "exchanging"), ("starting", "exchanging")):
        assert warmed().update(gang(19, 10.0, *sections), now_seconds=1e6) is None  # type: ignore[arg-type]
    assert HangWatch().update(gang(0, 0.0, "computing", "computing"), now_seconds=1e6) is None


def test_when_all_are_in_the_exchange_it_is_the_exchange() -> None:
    found = warmed().update(gang(19, 10.0, "exchanging", "exchanging"), now_seconds=20.0)
    assert isinstance(found, HangFinding)
    assert "in the exchange" in found.reason


def test_a_stopped_process_is_named_after_a_second() -> None:
    watch = warmed()
    assert watch.update(gang(19, 10.0, "computing", "exchanging", stopped=0), now_seconds=10.0) is None
    found = watch.update(gang(19, 10.0, "computing", "exchanging", stopped=0), now_seconds=11.0)
    assert found is not None
    assert "rank 0 is stopped" in found.reason
    watch.regrouped()
    assert watch.update(gang(19, 11.0, "computing", "computing"), now_seconds=11.5) is None


def test_a_deadline_must_be_above_nothing() -> None:
    with pytest.raises(InputError):
        HangWatch(floor_seconds=0.0)


def test_stacks_of_real_processes_name_the_line_where_they_are() -> None:
    if not py_spy_command(1):
        pytest.skip("py-spy is not installed")
    program = "import time\ndef here_it_waits():\n    print('ready', flush=True)\n    time.sleep(60)\nhere_it_waits()\n"
    child = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    try:
        assert child.stdout is not None
        child.stdout.readline()
        found = dump_stacks({3: child.pid})[3]
        if "CAP_SYS_PTRACE" in found.problem:
            pytest.skip(f"stacks may not be read here: {found.problem}")
        assert found.problem == ""
        assert "here_it_waits" in found.text
    finally:
        child.kill()
        child.communicate()


def test_a_process_that_is_gone_and_a_reader_that_hangs_say_so_in_time() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    if py_spy_command(1):
        assert dump_stacks({0: child.pid})[0].problem
    began = time.monotonic()
    found = dump_stacks(
        {0: 1}, within_seconds=0.2, command=lambda pid: [sys.executable, "-c", "import time; time.sleep(60)"]
    )
    assert "in time" in found[0].problem
    assert time.monotonic() - began < 10
    assert "not installed" in dump_stacks({0: 1}, command=lambda pid: [])[0].problem
    words = [sys.executable, "-c", "print('no json')"]
    assert "understood" in dump_stacks({0: 1}, command=lambda pid: words)[0].problem


def test_endless_recursion_is_cut() -> None:
    frame = {"name": "f", "filename": "a.py", "line": 1}
    threads = json.loads(
        json.dumps(
            [
                {
                    "thread_name": None,
                    "thread_id": 7,
                    "active": False,
                    "owns_gil": True,
                    "frames": [frame] * 500,
                }
            ]
        )
    )
    text = stacks_text(threads)
    assert "... 300 more" in text
    assert "id 7 (waiting, holds the interpreter's lock)" in text

"""A script is enacted exactly, once a run, in real processes."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from leptonai.core.fault_text import parse_faults
from leptonai.core.faults import FaultScript, Role, script_to_json
from leptonai.launch.saboteur import Director, Injected, Saboteur, saboteur_from
from leptonai.testing import FakeClock


class Told:
    """Remembers reports and sleeps; sleeping moves the clock."""

    def __init__(self) -> None:
        self.reports: list[tuple[int, int]] = []
        self.slept: list[float] = []
        self.clock = FakeClock()

    def report(self, number: int, step: int) -> None:
        self.reports.append((number, step))

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.clock.advance(seconds)

    def saboteur(self, text: str, role: Role = "worker", index: int = 0, **rest: object) -> Saboteur:
        return Saboteur(
            parse_faults(text), role, index, report=self.report, clock=self.clock, sleep=self.sleep, **rest
        )  # type: ignore[arg-type]


@pytest.fixture
def told() -> Told:
    return Told()


VICTIM = """
import json, os, signal, sys
from leptonai.core.faults import script_from_json
from leptonai.launch.saboteur import Saboteur

def report(number, step):
    os.write(1, f"fault {number} after {step}\\n".encode())

values = json.loads(sys.argv[1])
saboteur = Saboteur(script_from_json(values["script"]), "worker", 1, report=report, fired=values["fired"])
for step in range(values["first"], values["last"] + 1):
    saboteur.at_step(step)
    os.write(1, f"step {step}\\n".encode())
if values["wait"]:
    signal.pause()
"""


def victim(text: str, *, fired: tuple[int, ...] = (), first: int = 1, last: int = 9, wait: bool = False):  # type: ignore[no-untyped-def]
    values = {"script": script_to_json(parse_faults(text)), "fired": fired, "first": first, "last": last}
    words = [sys.executable, "-c", VICTIM, json.dumps({**values, "wait": wait})]
    return subprocess.run(words, stdout=subprocess.PIPE, text=True, timeout=30, check=False)


def test_a_kill_comes_after_its_step_and_is_told_first_and_does_not_come_again() -> None:
    script = "kill worker 0 at 2; kill worker 1 at 4; kill server 1 at 2"
    first = victim(script)
    assert first.returncode == -signal.SIGKILL
    assert first.stdout.split("\n")[-3:-1] == ["step 3", "fault 1 after 4"]
    again = victim(script, fired=(1,), first=4)
    assert again.returncode == 0
    assert "fault" not in again.stdout


def test_a_step_that_is_jumped_over_kills_at_the_next() -> None:
    assert victim("kill worker 1 at 4", first=7).stdout == "fault 0 after 7\n"


def test_a_late_kill_hits_whatever_is_being_done() -> None:
    ended = victim("kill worker 1 at 4 after 20ms", wait=True)
    assert ended.returncode == -signal.SIGKILL
    assert "fault 0 after 4\nstep 4" in ended.stdout


def test_without_faults_of_its_own_a_process_does_nothing_and_quickly(told: Told) -> None:
    saboteur = told.saboteur("kill worker 1 at 0; slow server 0 from 0 by 1s; stop worker 0 at 0 for 1s")
    began = time.perf_counter()
    for step in range(100_000):
        saboteur.at_step(step)
    assert (time.perf_counter() - began) / 100_000 < 20e-6
    assert saboteur.on_frame(b"frame") == b"frame"
    assert not saboteur.link_cut()
    assert not saboteur.link_drop()
    assert told.reports == []
    assert told.slept == []


def test_slowness_adds_seconds_and_multiplies_what_a_step_took(told: Told) -> None:
    saboteur = told.saboteur("slow worker 0 from 2 to 4 by 4x and 100ms")
    for step in range(1, 6):
        told.clock.advance(0.5)
        saboteur.at_step(step)
    assert told.slept == pytest.approx([3 * 0.5 + 0.1, 3 * 0.5 + 0.1])
    assert told.reports == [(0, 2)]


def test_slowness_goes_on_after_a_restart_and_is_told_once(told: Told) -> None:
    told.saboteur("slow worker 0 from 2 by 1s", fired=(0,)).at_step(5)
    assert told.slept == [1.0]
    assert told.reports == []


def test_a_full_disk_fails_one_save(told: Told) -> None:
    saboteur = told.saboteur("fill disk at 10")
    saboteur.before_save(9)
    with pytest.raises(OSError) as error:
        saboteur.before_save(12)
    assert error.value.errno == errno.ENOSPC
    saboteur.before_save(12)
    assert told.reports == [(0, 12)]


def test_one_frame_is_corrupted_in_its_header(told: Told) -> None:
    saboteur = told.saboteur("corrupt worker 0 at 3")
    saboteur.at_step(2)
    assert saboteur.on_frame(b"abc") == b"abc"
    saboteur.at_step(3)
    assert saboteur.on_frame(b"abc") == bytes([ord("a") ^ 0xFF]) + b"bc"
    assert saboteur.on_frame(b"abc") == b"abc"


def test_a_link_is_cut_for_its_time_and_dropped_once(told: Told) -> None:
    saboteur = told.saboteur("cut worker 0 at 3 for 2s; drop worker 0 at 4")
    saboteur.at_step(3)
    assert saboteur.link_cut()
    assert not saboteur.link_drop()
    saboteur.wait_while_cut()
    assert told.clock.monotonic_seconds() == pytest.approx(2.0)
    assert not saboteur.link_cut()
    saboteur.at_step(4)
    assert (saboteur.link_drop(), saboteur.link_drop()) == (True, False)


def test_the_director_stops_a_real_process_and_lets_it_go_on() -> None:
    with subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"]) as process:
        try:
            clock = FakeClock()
            script = parse_faults("stop server 0 at 5 for 2s")
            director = Director(script, lambda role, index, number: process.send_signal(number), clock)
            assert director.poll({("server", 0): 4}) == []
            assert len(director.pending) == 1
            fired = director.poll({("server", 0): 6})
            assert fired == [Injected(number=0, what="stop server 0 at 5 for 2.0s", where="server 0", step=6)]
            wait_for(process.pid, psutil.STATUS_STOPPED)
            assert director.is_stopped("server", 0)
            clock.advance(1.9)
            director.poll({})
            assert director.is_stopped("server", 0)
            clock.advance(0.2)
            assert director.poll({}) == []
            assert not director.is_stopped("server", 0)
            assert psutil.Process(process.pid).status() != psutil.STATUS_STOPPED
            assert director.pending == ()
        finally:
            process.kill()


def wait_for(pid: int, status: str) -> None:
    deadline = time.monotonic() + 10
    while psutil.Process(pid).status() != status and time.monotonic() < deadline:
        os.sched_yield()
    assert psutil.Process(pid).status() == status


def test_closing_lets_everything_go_on() -> None:
    sent: list[tuple[str, int, signal.Signals]] = []
    director = Director(
        parse_faults("stop worker 1 at 0 for 1h"), lambda *words: sent.append(words), FakeClock()
    )
    director.poll({("worker", 1): 0})
    director.close()
    assert sent == [("worker", 1, signal.SIGSTOP), ("worker", 1, signal.SIGCONT)]


def test_a_restarted_process_is_told_what_has_fired(told: Told) -> None:
    director = Director(parse_faults("drop worker 0 at 1; drop worker 0 at 2"), lambda *_: None, FakeClock())
    first = saboteur_from(json.loads(json.dumps(director.assignment())), "worker", 0, report=told.report)
    first.at_step(1)
    assert first.link_drop()
    assert director.heard(*told.reports[0]).what == "drop worker 0 at 1"
    second = saboteur_from(json.loads(json.dumps(director.assignment())), "worker", 0, report=told.report)
    second.at_step(1)
    assert not second.link_drop()
    second.at_step(2)
    assert second.link_drop()


def test_no_script_needs_no_assignment(told: Told) -> None:
    director = Director(FaultScript(), lambda *_: None)
    assert director.assignment() is None
    assert director.poll({("worker", 0): 10}) == []
    saboteur_from(None, "worker", 0, report=told.report).at_step(5)
    assert told.reports == []

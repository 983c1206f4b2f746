from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from benchmarks.privacy_ledger_race import race

from leptonai.core.clock import FakeClock
from leptonai.core.errors import Fault, Refused
from leptonai.core.workspace import Workspace
from leptonai.security.privacy.accounting.mechanisms import Charge
from leptonai.security.privacy.ledger import turn as turn_module
from leptonai.security.privacy.ledger.composing import Accounting
from leptonai.security.privacy.ledger.turn import turn
from tests.security.privacy.ledger.cases import DATA, DELTA, NOW, PLAIN, ledger_on, per_step, reserve

CRASH = """
import os, signal, sys
from leptonai.core.workspace import Workspace
from tests.security.privacy.ledger.cases import ledger_on, reserve
ledger = ledger_on(Workspace.open(sys.argv[1]))
reserve(ledger, "never", 8)
reserve(ledger, "some", 8)
ledger.lease("some", 3)
os.kill(os.getpid(), signal.SIGKILL)
"""
CRASH_WITHIN = """
import os, signal, sys
from leptonai.core.workspace import Workspace
from leptonai.security.privacy.ledger.entries import Closed
from tests.security.privacy.ledger.cases import ledger_on, reserve
ledger = ledger_on(Workspace.open(sys.argv[1]))
reserve(ledger, "some", 8)
with ledger._journal.writing() as write:
    write(Closed(request_id="some", used=0))
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_many_processes_reserve_at_once_and_nothing_is_overspent(url: str) -> None:
    # 64 ask for 60 to 144 steps each, 6,480 in all.
    accounting = Accounting(per_step, per_step)  # type: ignore[arg-type]
    found = race(url, reservers=64, epsilon=3.0, accounting=accounting)
    assert found.overspend == 0
    assert found.wrongly_refused == 0
    assert 3072 // 144 <= found.granted < 64


def crash(program: str, url: str) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run(
        [sys.executable, "-c", program, url],
        env=environment,
        check=False,
        timeout=120,
        stderr=subprocess.PIPE,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()


def test_what_a_killed_process_may_have_released_stays_spent(workspace: Workspace, url: str) -> None:
    ledger = ledger_on(workspace)
    ledger.grant(DATA, "all", "all", epsilon=2, delta=DELTA)
    crash(CRASH, url)
    with pytest.raises(Refused, match="and 0 left"):
        reserve(ledger, "mine", 1)
    assert ledger.recover("some").used == 3
    assert ledger.abandon("never").used == 0
    reserve(ledger, "mine", 13)
    with pytest.raises(Refused):
        reserve(ledger, "more", 1)
    assert ledger.verify() == []


def test_a_process_killed_while_it_writes_leaves_no_half_of_it(workspace: Workspace, url: str) -> None:
    crash(CRASH_WITHIN, url)
    ledger = ledger_on(workspace)
    assert ledger.reservation("some").used is None
    assert ledger.verify() == []
    reserve(ledger, "next", 1)


def test_one_request_sent_many_times_at_once_is_reserved_once(workspace: Workspace) -> None:
    ledgers = [ledger_on(workspace) for _ in range(4)]
    ledgers[0].grant(DATA, "all", "all", epsilon=1, delta=DELTA)
    line = threading.Barrier(8)

    def ask(number: int) -> None:
        line.wait(30)
        reserve(ledgers[number % 4], "same", 8)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(ask, range(8)))
    assert [record.kind for record in ledgers[0].history(DATA)] == ["register", "grant", "reserve"]


def test_leases_of_many_runs_at_once_are_all_kept(workspace: Workspace) -> None:
    ledgers = [ledger_on(workspace) for _ in range(4)]
    for number, ledger in enumerate(ledgers):
        reserve(ledger, str(number), 8)

    def lease(number: int) -> None:
        for count in range(1, 9):
            ledgers[number].lease(str(number), count)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lease, range(4)))
    assert ledgers[0].spent(DATA, "all", "all", DELTA) == 4
    assert ledgers[0].verify() == []


def test_leases_do_not_wait_while_others_compose(url: str) -> None:
    composing, leased = threading.Event(), threading.Event()

    def slow(charges: list[Charge], delta: float) -> float:
        composing.set()
        assert leased.wait(30), "the lease waited"
        return 0.5

    with Workspace.open(url) as one, Workspace.open(url) as two, ThreadPoolExecutor(1) as pool:
        running = ledger_on(one)
        running.grant(DATA, "all", "all", epsilon=9, delta=DELTA)
        reserve(running, "mine", 8)
        other = ledger_on(two, accounting=Accounting(slow, slow))  # type: ignore[arg-type]
        waiting = pool.submit(reserve, other, "theirs", 8)
        assert composing.wait(30)
        running.lease("mine", 1)
        leased.set()
        waiting.result(30)
        assert running.reservation("theirs").limited


def test_charges_that_change_while_another_composes_are_seen(url: str) -> None:
    # A default grant takes no turn, so it may come in between.
    done: list[float] = []
    with Workspace.open(url) as one, Workspace.open(url) as two:
        officer = ledger_on(one)
        officer.grant_default(epsilon=2, delta=DELTA)

        def meddling(charges: list[Charge], delta: float) -> float:
            if not done:
                done.append(1)
                officer.grant_default(epsilon=0.5, delta=DELTA)
            return PLAIN.epsilon_of(charges, delta)

        accounting = Accounting(meddling, meddling)  # type: ignore[arg-type]
        with pytest.raises(Refused, match=r"0\.5 is granted"):
            reserve(ledger_on(two, accounting=accounting), "late", 8)


def test_who_never_gets_a_turn_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turn_module, "TURN_SECONDS", 0.05)
    with Workspace.open(f"sqlite:///{tmp_path / 'w.db'}") as workspace:
        ledger = ledger_on(workspace, FakeClock(start_seconds=NOW))
        with turn(workspace, DATA.digest), pytest.raises(Fault, match="kept busy by another process"):
            reserve(ledger, "a")
        reserve(ledger, "a")

"""An odd machine in words."""

from __future__ import annotations

import numpy as np
import pytest

from leptonai.core.errors import InputError
from leptonai.operations.alarms import Subject
from leptonai.operations.detect.peer_alarms import peer_alarm
from leptonai.operations.detect.peers import odd_ones


def test_it_names_the_machine_the_metric_and_the_time() -> None:
    values = np.random.default_rng(1).standard_normal((30, 3, 100)) + 50.0
    values[4, 2, 60:] += 6.0
    (odd,) = odd_ones(values)
    names = {"machines": [f"n{k}" for k in range(30)], "metrics": ["util", "power", "temp"]}
    alarm = peer_alarm(odd, **names, at_seconds=[10.0 * k for k in range(100)], run_id="r")
    assert alarm.subject == Subject("node", "n4")
    assert abs(alarm.since_seconds - 600.0) <= 20.0
    assert alarm.at_seconds == 990.0
    assert "temp is 55.49 (its peers: 50.04)" in alarm.message
    assert "before, it was 50" in alarm.message or "before, it was 49" in alarm.message
    assert alarm.evidence[0].series == "temp"
    assert alarm.evidence[0].p_value is not None
    assert alarm.evidence[0].p_value < 1e-4
    with pytest.raises(InputError, match="expected names"):
        peer_alarm(odd, machines=["a"], metrics=["b"], at_seconds=[0.0])


def test_it_says_when_all_the_window_was_odd_or_it_has_passed() -> None:
    at_seconds = [float(k) for k in range(100)]
    names = {"machines": [str(k) for k in range(60)], "metrics": ["m"]}
    values = np.random.default_rng(2).standard_normal((60, 1, 100))
    values[7] += 15.0
    (always,) = odd_ones(values)
    assert "all the time looked at" in peer_alarm(always, **names, at_seconds=at_seconds, kind="rank").message
    values[7] -= 15.0
    values[7, 0, 30:60] += 9.0
    (passed,) = odd_ones(values)
    assert "it has passed" in peer_alarm(passed, **names, at_seconds=at_seconds).message

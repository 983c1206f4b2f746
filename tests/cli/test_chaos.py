"""``lepton chaos`` checks its faults before anything starts."""

from __future__ import annotations

import json
from collections.abc import Callable

from tests.cli.conftest import Said


def test_a_bad_word_is_named_before_anything_starts(lepton: Callable[..., Said]) -> None:
    said = lepton("chaos", "tiny.py", "-c", "two.yaml", "--faults", "kill wroker 1 at 3", "--json")
    assert said.code == 2
    error = json.loads(said.out)["error"]
    assert "'wroker'" in error["message"]
    assert "random 20 kills" in error["hint"]


def test_no_fault_is_wrong_too(lepton: Callable[..., Said]) -> None:
    said = lepton("chaos", "tiny.py", "-c", "two.yaml", "--faults", " ; ")
    assert said.code == 2
    assert "no fault" in said.err

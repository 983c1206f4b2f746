"""Faults for tests: scripts as values, their text form, and what enacts them."""

from leptonai.core.fault_text import fault_text, faults_text, parse_faults
from leptonai.core.faults import (
    CorruptFrame,
    CutLink,
    DiskFull,
    Draw,
    DropLink,
    Fault,
    FaultScript,
    Kill,
    Slow,
    Stop,
    random_faults,
    script_from_json,
    script_to_json,
)
from leptonai.launch.faulty_relay import FaultyRelay
from leptonai.launch.saboteur import Director, Injected, Saboteur

__all__ = [
    "CorruptFrame", "CutLink", "Director", "DiskFull", "Draw", "DropLink", "Fault", "FaultScript", "FaultyRelay",
    "Injected", "Kill", "Saboteur", "Slow", "Stop", "fault_text", "faults_text", "parse_faults",
    "random_faults", "script_from_json", "script_to_json",
]  # fmt: skip

from __future__ import annotations

import pickle

import pytest

from leptonai.core.errors import Fault, InputError, LeptonError, Refused


@pytest.mark.parametrize(("kind", "code"), [(InputError, 2), (Refused, 3), (Fault, 4), (LeptonError, 70)])
def test_each_kind_has_its_exit_code(kind: type[LeptonError], code: int) -> None:
    assert kind("x").exit_code == code


def test_the_hint_stands_on_its_own_line() -> None:
    assert str(InputError("no such file", hint="look again")) == "no such file\n  hint: look again"
    assert str(InputError("no such file")) == "no such file"


@pytest.mark.parametrize("kind", [InputError, Refused, Fault])
def test_an_error_keeps_message_and_hint_across_processes(kind: type[LeptonError]) -> None:
    copy = pickle.loads(pickle.dumps(kind("what", hint="how")))  # noqa: S301 (our own bytes)
    assert (type(copy), copy.message, copy.hint) == (kind, "what", "how")


def test_a_fault_carries_a_longer_text_beside_its_message() -> None:
    fault = Fault("worker 1 died", detail="Traceback ...")
    assert fault.detail == "Traceback ..."
    assert "Traceback" not in str(fault)

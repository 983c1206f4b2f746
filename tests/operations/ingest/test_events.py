"""Events of runs as samples."""

from __future__ import annotations

import dataclasses

from leptonai.core import events
from leptonai.core.events import EVENT_TYPES, StepDone
from leptonai.operations.ingest.events import METRICS, RunSamples


def step(number: int, **more: object) -> StepDone:
    values = {"at_seconds": 5.0, "step": number, "epoch": 1, "loss": 0.5, "examples": 64, "seconds": 2.0,
              "learning_rate": 0.1, "bytes_sent": 10, **more}  # fmt: skip
    return StepDone(**values)  # type: ignore[arg-type]


def test_a_step_tells_of_the_run_and_of_each_rank() -> None:
    run = RunSamples("r")
    run.samples(step(2))
    found = {repr(each.series): each.value for each in run.samples(
        step(4, phases={"compute": 1.0}, rank_compute_seconds=(0.1, 0.2), gradient_norm=3.0))}  # fmt: skip
    assert found['lepton_run_step_seconds{run_id="r"}'] == 1.0
    assert found['lepton_run_phase_seconds{phase="compute",run_id="r"}'] == 0.5
    assert found['lepton_rank_compute_seconds{rank="1",run_id="r"}'] == 0.2
    assert found['lepton_run_bytes_sent_total{run_id="r"}'] == 20
    assert found['lepton_run_events_total{kind="step_done",run_id="r"}'] == 2


def test_a_private_loss_is_not_told() -> None:
    assert "lepton_run_loss" not in {each.series.name for each in RunSamples("r").samples(step(1, loss=None))}


def fields_of(kind: type[events.Event]) -> list[tuple[str, dataclasses.Field[object]]]:
    return [(each.name, each) for each in dataclasses.fields(kind)]


def test_every_kind_of_event_has_samples_and_every_metric_is_described() -> None:
    made = {
        "str": "x", "int": 1, "float": 1.0, "float | None": 1.0, "Mapping[str, float]": {"a": 1.0},
        "Mapping[str, int]": {"0": 1}, "tuple[float, ...]": (1.0,), "tuple[str, ...]": ("x",), "bool": False,
    }  # fmt: skip
    run = RunSamples("r")
    seen = set()
    for kind in EVENT_TYPES.values():
        event = kind(**{name: made[str(each.type)] for name, each in fields_of(kind)})
        samples = run.samples(event)
        assert samples
        seen |= {each.series.name for each in samples}
    assert seen == set(METRICS)
    assert events.Event.kind == ""

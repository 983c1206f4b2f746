"""A recorded run of real processes, replayed to the same bits from its directory."""

from __future__ import annotations

import json

import pytest

from leptonai.compute.engines.local import LocalEngine
from leptonai.core.errors import Fault, InputError
from leptonai.core.events import ServerRestarted, WorkerLost
from leptonai.launch.replaying import replay_run
from tests.launch.conftest import Runner
from tests.launch.test_served import FREQUENT, Killer


@pytest.mark.parametrize(
    "job",
    [
        "served('asp', record=True, servers=2, optimizer=adamw)",
        "served('ssp(1)', record=True, delay_compensation=0.5, staleness_scaled_lr=True)",
        "served('backup(1)', record=True, codec='topk(0.2)+int8')",
        "served('elastic_averaging(2)', record=True)",
        "served('async_diloco(3)', record=True, codec='int8')",
        "served('streaming_diloco(4, fragments=2)', record=True)",
        "served('asp', record=True, transport='tcp')",
    ],
)
def test_a_run_is_replayed_bit_for_bit(run: Runner, engine: LocalEngine, job: str) -> None:
    result = run(job, workers=3)
    found = replay_run(result.run_dir, engine, home=run.home)
    assert found.same is True
    assert found.updates > 4


def test_a_run_whose_processes_were_killed_is_replayed_bit_for_bit(run: Runner, engine: LocalEngine) -> None:
    killer = Killer([("worker", 1), ("server", 0), ("worker", 0), ("server", 0)], every_steps=6)
    result = run(f"served('asp', record=True, epochs=8, {FREQUENT})", listener=killer)
    assert run.of(WorkerLost)
    assert run.of(ServerRestarted)
    assert replay_run(result.run_dir, engine, home=run.home).same is True


def test_another_job_or_a_changed_record_is_told(run: Runner, engine: LocalEngine) -> None:
    result = run("served('asp', record=True)")
    path = result.run_dir / "interleaving.jsonl"
    lines = path.read_text().splitlines()
    index = next(number for number, line in enumerate(lines) if '"kind":"computed"' in line)
    values = json.loads(lines[index])
    values["checksums"] = [values["checksums"][0] ^ 1]
    path.write_text("\n".join([*lines[:index], json.dumps(values), *lines[index + 1 :]]) + "\n")
    with pytest.raises(Fault, match="differ"):
        replay_run(result.run_dir, engine, home=run.home)
    run.write_job("run", "served('asp', record=True, seed=6)")
    with pytest.raises(InputError, match="not those of the record"):
        replay_run(result.run_dir, engine, home=run.home)


def test_a_run_without_a_record_is_refused(run: Runner, engine: LocalEngine) -> None:
    result = run("served('asp', epochs=1)")
    with pytest.raises(InputError, match="was not recorded"):
        replay_run(result.run_dir, engine, home=run.home)


def test_what_cannot_be_recorded_is_refused(run: Runner) -> None:
    for settings in ("reads='views'", "hogwild=True, durability='none'"):
        with pytest.raises(InputError, match="record needs copies"):
            run(f"served('asp', record=True, {settings})")

"""``lepton plan``: searches for transformers and jobs, and plans held against runs."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from leptonai.compute.forecast import Forecast, PhaseForecast
from leptonai.core.clock import FakeClock
from leptonai.core.events import StepDone
from leptonai.core.journal import Journal
from tests.cli.conftest import Said
from tests.cli.stage import made_plan, write_run

Lepton = Callable[..., Said]

GPUS = """
name: gpus
nodes:
  - name: gpu
    count: {nodes}
    address: 10.0.0.1
    {price}
    devices: [{{kind: gpu, count: 8, accelerator: a100-sxm-80gb}}]
topology: {{kind: fat_tree, bandwidth: 200Gb/s, latency: 2us}}
"""


def gpus(stage: Path, *, nodes: int = 4, price: str = "price: 20") -> str:
    (stage / "gpus.yaml").write_text(GPUS.format(nodes=nodes, price=price))
    return "gpus.yaml"


def test_a_transformer_is_planned_without_a_job(lepton: Lepton, stage: Path) -> None:
    said = lepton("plan", "--model", "gpt-22b", "--batch", "64", "-c", gpus(stage), "--explain")
    assert said.code == 0, said.err
    assert all(len(line) <= 80 for line in said.out.splitlines())
    for words in ("where the time goes", "best layouts", "Pareto front", "why the others lost", "4 x 8 a100"):
        assert words in said.out
    values = json.loads(
        lepton("plan", "--model", "gpt-22b", "--batch", "64", "-c", "gpus.yaml", "--json").out
    )
    best = values["best"]
    assert best["step_seconds"] == min(each["step_seconds"] for each in values["front"])
    assert sum(best["phases"].values()) == pytest.approx(best["step_seconds"])
    assert best["memory_bytes"] <= values["machine"]["memory_bytes"]


def test_the_goal_decides(lepton: Lepton, stage: Path) -> None:
    found = {}
    for goal in ("time", "memory"):
        said = lepton(
            "plan", "--model", "24,2304,24,2048,51200", "--batch", "64", "-c", gpus(stage, nodes=1),
            "--goal", goal, "--json",
        )  # fmt: skip
        found[goal] = json.loads(said.out)["best"]
    assert found["time"]["step_seconds"] <= found["memory"]["step_seconds"]
    assert found["memory"]["memory_bytes"] <= found["time"]["memory_bytes"]


def test_a_job_is_searched_on_accelerators_this_machine_lacks(lepton: Lepton, stage: Path) -> None:
    said = lepton("plan", "tiny.py", "-c", gpus(stage), "--goal", "time")
    assert said.code == 0, said.err
    assert re.search(r"searched +[\d,]+ layouts", said.out)
    assert "T_total" in said.out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--model", "gpt-23b", "--batch", "8"], "no known model"),
        (["--model", "gpt-1t", "--batch", "64"], "nothing fits: the smallest layout needs"),
        (["--model", "gpt-22b", "--batch", "64", "--goal", "price"], "no price"),
        (["--model", "gpt-22b", "--batch", "64", "--goal", "speed"], "unknown goal 'speed'"),
        (["--model", "gpt-22b"], "--model needs --batch"),
        ([], "nothing to plan"),
        (["tiny.py", "--model", "gpt-22b", "--batch", "8"], "both given"),
        (["tiny.py", "--check", "last"], "--check takes a run"),
        (["tiny.py", "--batch", "8"], "a job has its own batch"),
        (["--model", "gpt-22b", "--batch", "8", "--set", "epochs=2"], "--set is for the settings of a job"),
    ],
)
def test_wrong_words_get_one_sentence_and_a_hint(
    words: list[str], said: str, lepton: Lepton, stage: Path
) -> None:
    cluster = gpus(stage, nodes=1, price="")
    found = lepton("plan", *words, "-c", cluster)
    assert found.code == 2
    assert said in found.err
    assert "hint:" in found.err
    if "nothing fits" in said or "no price" in said:
        assert f"error: {cluster}: " in found.err


def test_without_a_cluster_there_is_nothing_to_plan_on(lepton: Lepton) -> None:
    found = lepton("plan", "tiny.py")
    assert (found.code, "--cluster is missing" in found.err) == (2, True)


def test_a_goal_on_this_machine_needs_its_rates(lepton: Lepton) -> None:
    found = lepton("plan", "tiny.py", "-c", "two.yaml", "--goal", "time")
    assert found.code == 2
    assert "lepton cluster probe" in found.err


def test_a_run_is_held_against_its_plan(lepton: Lepton, stage: Path) -> None:
    write_run(stage / "runs" / "planned", learning_rate=0.1)
    without = lepton("plan", "--check", "runs/planned")
    assert (without.code, "no forecast" in without.err) == (2, True)
    forecast = Forecast(
        step_seconds=0.05, low_seconds=0.04, high_seconds=0.06,
        phases=(PhaseForecast(name="forward", seconds=0.02), PhaseForecast(name="backward", seconds=0.03)),
    )  # fmt: skip
    plan = dataclasses.replace(made_plan(), forecast=forecast)
    run = stage / "runs" / "planned"
    (run / "plan.json").write_text(json.dumps(plan.to_json()))
    (run / "events.jsonl").unlink()
    with Journal(run / "events.jsonl", clock=FakeClock()) as journal:
        for step in (10, 20, 30):
            journal.append(
                StepDone(
                    at_seconds=0.0,
                    step=step,
                    epoch=0,
                    loss=1.0,
                    examples=640,
                    seconds=0.55,
                    learning_rate=0.1,
                    phases={"compute": 0.4, "exchange": 0.1},
                )
            )
    said = lepton("plan", "--check", "runs/planned")
    assert said.code == 0, said.err
    assert re.search(r"compute +50 ms +40 ms +0.80", said.out)
    assert "over 20 steps; the measured step lies in the interval of 40 ms to 60 ms" in said.out
    values = json.loads(lepton("plan", "--check", "runs/planned", "--json").out)
    assert values["within_interval"] is True
    assert [row["name"] for row in values["phases"]] == ["compute", "exchange", "other", "step"]

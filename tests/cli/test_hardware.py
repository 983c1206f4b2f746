"""``lepton hardware``: lists, figures with sources, and choices."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import typer

from leptonai.cli import app as module
from leptonai.cli.hardware import hardware_app
from tests.cli.conftest import Said

Lepton = Callable[..., Said]
JOB = ("--model", "24,2048,16,2048,51200", "--batch", "256", "--max-nodes", "2", "--cloud", "AWS")
OWN = """
accelerators:
  - {name: wonder-1, kind: gpu, peak: {bf16: 500TFLOP/s}, memory: 96GiB, memory_bandwidth: 3TB/s}
instances:
  - {name: our-box, cloud: cellar, accelerator: wonder-1, count: 4}
"""


@pytest.fixture
def lepton(lepton: Lepton, monkeypatch: pytest.MonkeyPatch) -> Lepton:
    """The commands, these among them."""
    build = module.build_app

    def with_hardware() -> typer.Typer:
        made = build()
        made.registered_groups = [group for group in made.registered_groups if group.name != "hardware"]
        made.add_typer(hardware_app(), name="hardware")
        return made

    monkeypatch.setattr(module, "build_app", with_hardware)
    return lepton


def test_lists_fit_the_terminal(lepton: Lepton) -> None:
    said = lepton("hardware", "list")
    assert said.code == 0
    assert not said.err
    assert "h100-sxm-80gb" in said.out
    assert "p5.48xlarge" in said.out
    assert "989 T" in said.out
    assert max(map(len, said.out.splitlines())) <= 80
    rows = [line for line in said.out.splitlines() if line.strip()]
    assert len(rows) == 23 + 33 + 3, "a row was folded"


def test_a_list_of_one_kind(lepton: Lepton) -> None:
    only = json.loads(lepton("hardware", "list", "--kind", "instance", "--json").out)
    assert set(only) == {"instances"}
    assert len(only["instances"]) >= 30
    both = json.loads(lepton("hardware", "list", "--json").out)
    assert all(figure["source"] for row in both["accelerators"] for figure in row["peak_flops"].values())
    assert "p5.48xlarge" not in lepton("hardware", "list", "--kind", "accelerator").out


def test_every_figure_is_shown_with_its_source(lepton: Lepton) -> None:
    said = lepton("hardware", "show", "H100")
    assert said.code == 0
    assert "989.4 TFLOP/s" in said.out
    assert "3350 GB/s" in said.out
    assert "1. NVIDIA H100 Tensor Core GPU" in said.out
    assert "not verified" in said.out
    assert "55.04 USD" in lepton("hardware", "show", "p5.48xlarge").out
    shown = json.loads(lepton("hardware", "show", "h100", "--json").out)
    assert shown["peak_flops"]["bf16"]["value"] == 989.4e12
    assert shown["memory_bytes"]["verified"]


def test_an_unknown_name(lepton: Lepton) -> None:
    said = lepton("hardware", "show", "h10")
    assert said.code == 2
    assert "error: hardware 'h10' is not in the catalogue" in said.err
    assert "h100" in said.err


def test_files_of_one_s_own(lepton: Lepton, stage: Path) -> None:
    (stage / "ours.yaml").write_text(OWN)
    assert "500 TFLOP/s" in lepton("hardware", "show", "wonder-1", "--catalogue", "ours.yaml").out
    assert lepton("hardware", "show", "wonder-1").code == 2
    folder = stage / "home" / "hardware"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text(OWN)
    assert "our-box" in lepton("hardware", "list").out
    (stage / "ours.yaml").write_text(OWN.replace("500T", "-500T"))
    said = lepton("hardware", "list", "--catalogue", "ours.yaml")
    assert said.code == 2
    assert "ours.yaml:3: accelerators[0].peak.bf16.value" in said.err


def test_a_choice(lepton: Lepton, stage: Path) -> None:
    said = lepton("hardware", "choose", *JOB, "--tokens", "20B", "--deadline", "30d", "--plot", "choice.png")
    assert said.code == 0, said.err
    assert said.out.startswith("cheapest within 30 d: ")
    assert "plot: choice.png" in said.out
    assert max(map(len, said.out.splitlines()[2:])) <= 80
    assert (stage / "choice.png").read_bytes().startswith(b"\x89PNG")


def test_a_choice_as_json(lepton: Lepton) -> None:
    found = json.loads(lepton("hardware", "choose", *JOB, "--steps", "1000", "--goal", "time", "--json").out)
    assert found["best"]["total_seconds"] == min(each["total_seconds"] for each in found["offers"])
    assert found["best"]["layout"]["micro_batch"] >= 1
    assert {each["cloud"] for each in found["offers"]} == {"AWS"}


def test_a_choice_says_what_its_times_count_and_whether_the_upper_end_is_in_time(lepton: Lepton) -> None:
    words = ("hardware", "choose", *JOB, "--tokens", "20B")
    best = json.loads(lepton(*words, "--json").out)["best"]
    assert best["meets_deadline"] is None
    hours = (best["total_seconds"] + best["high_seconds"]) / 2 / 3600
    said = lepton(*words, "--deadline", f"{hours:.3f}h")
    text = " ".join(said.out.split())
    assert "misses the deadline; the cheapest that keeps it there too: " in text
    assert "in time" in said.out
    assert "likely" in said.out
    assert "Times count failures" in text
    assert "(parameters x 12 bytes)" in text
    assert "Waiting for machines is not in them" in text
    assert max(map(len, said.out.splitlines())) <= 80
    found = json.loads(lepton(*words, "--deadline", f"{hours:.3f}h", "--json").out)
    assert found["best"]["meets_deadline"] == "likely"
    assert found["surest"]["meets_deadline"] == "yes"
    assert found["surest"]["high_seconds"] <= found["deadline_seconds"]
    assert 0.9 < found["best"]["goodput"] < 1
    steps = found["best"]["total_seconds"] * found["best"]["goodput"] / found["best"]["step_seconds"]
    assert steps == pytest.approx(round(steps))


def test_spot_interruptions_are_named_as_left_out(lepton: Lepton) -> None:
    said = lepton("hardware", "choose", *JOB, "--steps", "10", "--spot")
    assert "interruptions of spot machines are not in them" in " ".join(said.out.split())


def test_a_price_that_nobody_verified_is_marked(lepton: Lepton, stage: Path) -> None:
    price = "price: {value: 20, verified: false, note: heard of}"
    (stage / "ours.yaml").write_text(OWN.replace("count: 4}", f"count: 4, {price}}}"))
    words = ("hardware", "choose", *JOB[:6], "--steps", "10", "--catalogue", "ours.yaml", "--instance")
    said = lepton(*words, "our-box")
    assert said.code == 0, said.err
    assert "price not verified (?): our-box" in said.out
    assert " USD?" in said.out
    found = json.loads(lepton(*words, "our-box", "--json").out)["best"]
    assert (found["price_verified"], found["price_note"], found["price_per_hour"]) == (False, "heard of", 20)
    sure = lepton(*words, "p5.48xlarge")
    assert "not verified" not in sure.out
    assert json.loads(lepton(*words, "p5.48xlarge", "--json").out)["best"]["price_verified"] is True


def test_the_price_goal_without_prices(lepton: Lepton, stage: Path) -> None:
    (stage / "ours.yaml").write_text(OWN)
    words = (
        "hardware",
        "choose",
        *JOB[:6],
        "--steps",
        "10",
        "--catalogue",
        "ours.yaml",
        "--instance",
        "our-box",
    )
    said = lepton(*words)
    assert said.code == 2
    assert "no price of these instances is known" in said.err
    assert "hint:" in said.err
    assert lepton(*words, "--goal", "time").code == 0
    said = lepton(*words, "--goal", "time", "--plot", "x.svg")
    assert said.code == 2
    assert "no machine set has a price" in said.err


def test_a_deadline_that_nothing_meets(lepton: Lepton) -> None:
    said = lepton("hardware", "choose", *JOB, "--tokens", "20B", "--deadline", "10min")
    assert said.code == 2
    assert "nothing meets the deadline" in said.err
    assert "the nearest is" in said.err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--tokens", "many"), "'many' is no number of tokens"),
        (("--tokens", "1B", "--deadline", "soon"), "'soon' is no length of time"),
        (("--tokens", "1B", "--deadline", "0d"), "more than 0"),
        (("--tokens", "1B", "--steps", "3"), "either tokens or steps"),
        (("--tokens", "1B", "--plot", "x.pdf"), "neither PNG nor SVG"),
        (("--tokens", "1B", "--cloud", "Foo"), "'foo' is not known"),
        (("--tokens", "1B", "--instance", "p5"), "instance 'p5' is not in the catalogue"),
    ],
)
def test_wrong_words(lepton: Lepton, words: tuple[str, ...], told: str) -> None:
    said = lepton("hardware", "choose", *JOB, *words)
    assert said.code == 2
    assert told in said.err

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import typer
from rich.console import Console

from leptonai.cli import app as module
from leptonai.cli import cluster, cluster_design
from leptonai.cli.count_bar import Count
from leptonai.compute.hardware.catalogue import find
from leptonai.compute.hardware.machines import job_device
from leptonai.core.errors import InputError
from tests.cli.conftest import Said

Lepton = Callable[..., Said]
RAILS = """\
nodes: [{name: gpu, count: 4, interconnect: 450GB/s, devices: [{kind: gpu, count: 8}]}]
topology: {kind: rail_optimised, bandwidth: 400Gb/s, latency: 600ns}
"""


@pytest.fixture
def lepton(lepton: Lepton, monkeypatch: pytest.MonkeyPatch) -> Lepton:
    """The commands with ``cluster`` among them."""
    build = module.build_app

    def with_cluster() -> typer.Typer:
        made = build()
        if all(group.name != "cluster" for group in made.registered_groups):
            made.add_typer(cluster.app, name="cluster")
        return made

    monkeypatch.setattr(module, "build_app", with_cluster)
    return lepton


@pytest.fixture
def rails(stage: Path) -> str:
    (stage / "rails.yaml").write_text(RAILS)
    return "rails.yaml"


def test_show_draws_a_tree_and_a_table_within_80_columns(lepton: Lepton, rails: str) -> None:
    said = lepton("cluster", "show", rails)
    assert (said.code, said.err) == (0, "")
    assert max(map(len, said.out.splitlines())) <= 80
    assert "32 in 4 nodes" in said.out
    assert "800 GB/s one way" in said.out
    assert "    gpu-3  8 devices" in said.out
    assert "nic - switch                   32   50 GB/s   600 ns" in said.out


def test_show_writes_a_picture(lepton: Lepton, rails: str, stage: Path) -> None:
    said = lepton("cluster", "show", rails, "--svg", "out.svg")
    assert said.code == 0
    assert said.out.endswith("drawn in out.svg\n")
    titles = {
        each.text for each in ElementTree.parse(stage / "out.svg").iter("{http://www.w3.org/2000/svg}title")
    }
    assert {f"gpu-{node}/gpu{place}" for node in range(4) for place in range(8)} <= titles
    missing = lepton("cluster", "show", rails, "--svg", "no/out.svg")
    assert missing.code == 2
    assert "there is no directory no" in missing.err


def test_show_as_json_and_between_two_devices(lepton: Lepton, rails: str) -> None:
    whole = json.loads(lepton("cluster", "show", rails, "--json").out)
    assert (len(whole["devices"]), whole["bisection"]["exact"]) == (32, True)
    assert whole["bisection"]["bytes_per_second"] == 8e11
    path = json.loads(lepton("cluster", "show", rails, "--between", "gpu-0", "gpu-2/gpu0", "--json").out)[
        "fastest"
    ]
    assert path["path"] == ["gpu-0/gpu0", "gpu-0/nic0", "rail0-leaf0", "gpu-2/nic0", "gpu-2/gpu0"]
    assert path["bandwidth_bytes_per_second"] == 50e9
    text = lepton("cluster", "show", rails, "--between", "gpu-0", "gpu-2/gpu0").out
    assert "widest: 50 GB/s, 1.2 us" in text
    assert "  gpu-0/nic0 -> rail0-leaf0  50 GB/s, 600 ns" in text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("nodes: [{name: a}, {name: b}]", "cannot reach each other: a; and b"),
        ("nodes: [{name: a, devices: [{kind: gpu, count: 2}]}]", "the rate between its 2 devices is missing"),
        ("nodes: [{name: a}]\ntopology: {kind: fattree, bandwidth: 1GB/s}", "did you mean 'fat_tree'?"),
    ],
)
def test_a_wrong_cluster_is_told(lepton: Lepton, stage: Path, text: str, said: str) -> None:
    (stage / "wrong.yaml").write_text(text)
    found = lepton("cluster", "show", "wrong.yaml")
    assert found.code == 2
    assert said in found.err
    assert "hint:" in found.err


def test_design_compares_topologies_and_marks_the_best(lepton: Lepton) -> None:
    words = ("cluster", "design", "--devices", "32", "--model", "gpt-3-1.3b", "--budget", "1.6M")
    said = lepton(*words)
    assert said.code == 0
    assert max(map(len, said.out.splitlines())) <= 80
    assert "best" in said.out
    assert "above the budget" in said.out
    answer = json.loads(lepton(*words, "--json").out)
    best = [each for each in answer["designs"] if each["best"]]
    assert len(best) == 1
    assert best[0]["price"] <= 1.6e6
    assert best[0]["step_seconds"] > 0
    assert all(each["price"] > 1.6e6 for each in answer["designs"] if each["reason"])


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("--devices", "32", "--model", "gpt-3-1.3b", "--budget", "10k"), 3, "the cheapest costs $1."),
        (
            ("--devices", "32", "--model", "gpt-3-1.3b", "--budget", "much"),
            2,
            "'much' is no amount of dollars",
        ),
        (("--devices", "8192", "--model", "gpt-3-1.3b"), 2, "up to 4,096 devices can be compared"),
        (("--devices", "32", "--model", "gpt-3-1.3b", "--per-node", "0"), 2, "--per-node"),
        (("--devices", "33", "--model", "gpt-3-1.3b"), 2, "a multiple of the 8 devices of a node, found 33"),
        (("--devices", "32", "--model", "gpt-33"), 2, "did you mean"),
        (("--devices", "32", "--model", "gpt-22b", "--accelerator", "h100-smx"), 2, "did you mean"),
        (
            ("--devices", "32", "--model", "gpt-22b", "--accelerator", "mi300x"),
            2,
            "give the price of one node",
        ),
        (("--devices", "16", "--model", "gpt-1t"), 2, "the job runs on no topology"),
        (("--devices", "16"), 2, "--model or --job is missing"),
        (("--devices", "16", "--model", "gpt-1t", "--job", "tiny.py"), 2, "--model and --job are both given"),
        (("--devices", "16", "--model", "gpt-1t", "--set", "epochs=2"), 2, "--set is for the settings"),
        (("--devices", "16", "--job", "tiny.py", "--batch", "64"), 2, "--set global_batch_size=64"),
        (("--devices", "16", "--job", "nowhere.py"), 2, "there is no such job file"),
        (("--devices", "16", "--model", "gpt-22b", "--batch", "0"), 2, "expected at least 1, found 0"),
    ],
)
def test_a_wrong_design_is_told(lepton: Lepton, words: tuple[str, ...], code: int, said: str) -> None:
    found = lepton("cluster", "design", *words)
    assert (found.code, said in found.err) == (code, True), found.err


def test_design_says_what_rings_it_assumes(lepton: Lepton) -> None:
    said = lepton("cluster", "design", "--devices", "32", "--model", "gpt-3-1.3b")
    words = " ".join(said.out.split())
    assert "rings that pass through nodes in order" in words
    assert "oversubscribed tree looks better here than for scattered jobs or all-to-all traffic" in words


def test_design_for_a_traced_job(lepton: Lepton) -> None:
    words = ("cluster", "design", "--devices", "4", "--per-node", "2", "--job", "tiny.py")
    answer = json.loads(lepton(*words, "--json").out)
    assert (answer["job"], answer["model"]) == ("tiny", None)
    assert (answer["batch"], answer["precision"]) == (16, "float32")
    assert answer["designs"][0]["best"]
    assert all(each["step_seconds"] > 0 for each in answer["designs"])
    said = lepton(*words, "--set", "global_batch_size=24")
    assert said.code == 0
    assert max(map(len, said.out.splitlines())) <= 80
    assert said.out.startswith("4 x h100-sxm-80gb, 2 to a node, for tiny (float32, batch 24)")


def test_design_for_a_job_computes_in_the_precision_of_the_job() -> None:
    found = find("h100-sxm")
    single, half = job_device(found, "float32"), job_device(found, "bfloat16")
    assert single.peak_flops == found.peak("fp32").value  # type: ignore[union-attr]
    assert half.peak_flops == found.peak("bf16").value > 5 * single.peak_flops  # type: ignore[union-attr]
    with pytest.raises(InputError, match="no peak of tpu-v4 for a job in float32") as caught:
        job_device(find("tpu-v4"), "float32")
    assert "precision=bfloat16" in str(caught.value.hint)


def test_design_counts_its_progress(lepton: Lepton, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, float, int | None]] = []

    @contextmanager
    def bar(console: Console, words: str) -> Iterator[Count]:
        yield lambda *at: seen.append(at)

    monkeypatch.setattr(cluster_design, "count_bar", bar)
    assert lepton("cluster", "design", "--devices", "32", "--model", "gpt-3-1.3b").code == 0
    done = [each[1] for each in seen]
    assert done == sorted(done)
    total = seen[-1][2]
    assert total is not None
    assert {each for each in done if each == int(each)} == set(range(total + 1))
    assert len(seen) > total + 1, "layouts within a topology are not counted"

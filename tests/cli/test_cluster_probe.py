"""``lepton cluster probe``: bad input is told at once, and what is shown fits a terminal."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from leptonai.cli import cluster_probe
from leptonai.cli.cluster_probe import local_pairs
from leptonai.cli.probe_view import draw_rates, print_probed
from leptonai.compute.cluster import Cluster, Link, Node
from leptonai.compute.cluster_file import read_cluster
from leptonai.compute.engines.local import LocalEngine
from leptonai.compute.measured import Measured, RateSample, TransferFit
from leptonai.compute.measured_file import read_measured, write_measured
from leptonai.core.errors import InputError
from leptonai.launch import probing
from leptonai.launch.engine import start_engine
from leptonai.launch.probe_findings import Skipped, Spread
from leptonai.launch.probing import Probed
from leptonai.launch.rates import open_rates
from tests.cli.conftest import Said

CLUSTER = """nodes:
  - name: left
  - name: right
  - {name: far, address: 10.0.0.7}
links:
  - {between: [left, right], bandwidth: 10Gb/s}
  - {between: [left, far], bandwidth: 1Gb/s}
"""
SIDES = (32, 64, 128, 256, 512, 1024, 2048)


def machine() -> Measured:
    """A made-up machine whose rates grow with size."""
    kernels = [
        RateSample(
            kind="matmul", dims=(side, side, side), threads=threads, num_busy=busy, precision=precision,
            seconds=2 * side**3 / (5e10 * threads * side / (side + 100)),
        )
        for threads, busy in ((1, 1), (2, 1), (1, 2))
        for precision in ("float32", "bfloat16")
        for side in SIDES
    ]  # fmt: skip
    kernels += [
        RateSample(kind="convolution", dims=(128, 256, 256, 9, channels, 1), seconds=1e-3)
        for channels in (49, 64)
    ]
    fit = TransferFit(
        kind="loopback",
        latency_seconds=5e-5,
        bandwidth_bytes_per_second=1.1e9,
        error=0.07,
        samples=((8.0, 5e-5), (2.0**26, 0.06)),
    )
    return Measured(
        at_seconds=1_795_464_122.0,
        cores=2,
        kernels=tuple(kernels),
        transfers=(fit, TransferFit(kind="all-reduce", latency_seconds=1e-4, bandwidth_bytes_per_second=5e8)),
        memory_bytes_per_second=((1, 1.2e10), (2, 2e10)),
        call_seconds=(("pytorch", 6e-6),),
        disk_write_bytes_per_second=5e8,
        disk_read_bytes_per_second=2e9,
        sync_seconds=2e-4,
        start_seconds=(("engine", 4.2), ("pytorch", 0.1)),
        versions=(("torch", "2.13.0+cpu"),),
    )


def probed() -> Probed:
    """A probe that was disturbed a little."""
    spreads = (
        Spread(setting="1 process x 1 thread", kind="matmul", value=0.02),
        Spread(setting="2 processes x 1 thread", kind="matmul", value=0.4),
        Spread(setting="2 processes x 1 thread", kind="all-reduce", value=0.9),
    )
    skipped = (
        *(
            Skipped(setting="1 process x 2 threads", kind="copy", size=(n,), precision="float32")
            for n in (1, 2)
        ),
        Skipped(
            setting="1 process x 2 threads", kind="gather", size=(8, 8), precision="float32", why="disturbed"
        ),
        Skipped(setting="2 processes x 1 thread", kind="all-reduce", size=(2**26,)),
    )
    return Probed(measured=machine(), spreads=spreads, skipped=skipped, seconds=42.0)


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> typer.Typer:
    """The command alone; measuring itself is tested where it is done."""

    def measured_at_once(**options: object) -> Probed:
        progress: Callable[[float, str], None] = options["progress"]  # type: ignore[assignment]
        progress(0.5, "kernels")
        return probed()

    monkeypatch.setattr(probing, "probe_machine", measured_at_once)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LEPTON_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "80")
    made = typer.Typer()
    made.command("probe", epilog=cluster_probe.EXAMPLES)(cluster_probe.probe)
    return made


def test_it_writes_the_file_and_says_so(app: typer.Typer, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, [], catch_exceptions=False)
    assert done.exit_code == 0
    assert "written to cluster.measured.yaml" in done.stdout
    assert "kept for the plans of this machine" in done.stdout
    assert " 50% kernels" in done.stderr
    assert read_measured(tmp_path / "cluster.measured.yaml") == machine()
    assert CliRunner().invoke(app, []).exit_code == 0  # a measurement may be replaced


def test_a_cluster_is_kept_its_links_measured_and_remote_nodes_named(
    app: typer.Typer, tmp_path: Path
) -> None:
    (tmp_path / "c.yaml").write_text(CLUSTER)
    done = CliRunner().invoke(app, ["c.yaml", "--out", "m.yaml"], catch_exceptions=False)
    assert "only this machine was measured; left as declared: far" in done.stdout
    assert (tmp_path / "m.yaml").read_text().startswith(CLUSTER)
    links = [fit.ends for fit in read_measured(tmp_path / "m.yaml").transfers if fit.kind == "link"]
    assert links == [("left", "right")]


def test_json_holds_everything(app: typer.Typer, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(CLUSTER)
    done = CliRunner().invoke(app, ["c.yaml", "--json"], catch_exceptions=False)
    said = json.loads(done.stdout)
    assert said["not_measured"] == ["far"]
    assert said["spreads"][0] == {"setting": "1 process x 1 thread", "kind": "matmul", "value": 0.02}
    assert said["skipped"][2]["why"] == "disturbed"
    assert (said["path"], said["plot"]) == ("cluster.measured.yaml", None)
    assert said["kept_in"] == str(tmp_path / "home")
    assert len(said["measured"]["kernels"]) == len(machine().kernels)
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["gone.yaml"], "there is no such file"),
        (["--out", "c.yaml"], "is not a file of measurements, so it is not overwritten"),
        (["--out", "nowhere/m.yaml"], "does not exist"),
        (["--plot", "rates.svg"], "ends in .png"),
    ],
)
def test_bad_input_is_told_before_anything_is_measured(
    app: typer.Typer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], said: str
) -> None:
    (tmp_path / "c.yaml").write_text(CLUSTER)
    monkeypatch.setattr(probing, "probe_machine", lambda **options: pytest.fail("it measured"))
    done = CliRunner().invoke(app, words)
    assert isinstance(done.exception, InputError)
    assert said in done.exception.message
    assert (tmp_path / "c.yaml").read_text() == CLUSTER


def test_what_is_shown_fits_eighty_columns() -> None:
    console = Console(width=80, record=True, force_terminal=False)
    print_probed(probed(), console)
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= 80
    for word in (
        "2048x2048x2048",
        "128x256x256x9x49x1",
        "loopback",
        "50 us",
        "1.1 GB/s",
        "7%",
        "20 GB/s",
        "6 us",
    ):
        assert word in text


def test_the_picture_is_drawn(tmp_path: Path) -> None:
    draw_rates(machine(), tmp_path / "rates.png")
    assert (tmp_path / "rates.png").read_bytes().startswith(b"\x89PNG")


def test_only_links_within_this_machine_are_measured() -> None:
    nodes = (Node(name="a"), Node(name="b"), Node(name="c", address="10.0.0.7"))
    links = tuple(Link(ends=ends, bandwidth_bytes_per_second=1e9) for ends in (("a", "b"), ("b", "c")))
    assert local_pairs(Cluster(name="x", nodes=nodes, links=links)) == [("a", "b")]
    assert local_pairs(None) == []


def test_a_measured_file_can_be_measured_again(app: typer.Typer, tmp_path: Path) -> None:
    path = tmp_path / "cluster.measured.yaml"
    write_measured(path, Measured(at_seconds=0.0, cores=1))
    assert CliRunner().invoke(app, [], catch_exceptions=False).exit_code == 0
    assert read_measured(path) == machine()


def test_noise_and_what_was_left_out_are_named_by_setting() -> None:
    console = Console(width=80, record=True, force_terminal=False)
    print_probed(probed(), console)
    words = " ".join(console.export_text().split())
    assert "2 processes x 1 thread: matmul, all-reduce measure again" in words
    assert (
        "4 sizes 1 process x 2 threads: 2 of copy float32 (no time left), 1 of gather float32 (disturbed)"
        in words
    )
    assert "1 of all-reduce (no time left)" in words
    quiet = Console(width=80, record=True, force_terminal=False)
    print_probed(Probed(measured=machine(), spreads=(), skipped=(), seconds=42.0), quiet)
    assert not any(word in quiet.export_text() for word in ("noisy", "not measured"))


def test_a_measured_file_may_be_the_cluster_that_is_measured(app: typer.Typer, tmp_path: Path) -> None:
    path = tmp_path / "cluster.measured.yaml"
    write_measured(path, Measured(at_seconds=0.0, cores=1), cluster_text=CLUSTER)
    done = CliRunner().invoke(app, [path.name], catch_exceptions=False)
    assert done.exit_code == 0
    text = path.read_text()
    assert text.startswith(CLUSTER)
    assert text.count("measured:") == 1
    cluster = read_cluster(path, available_cores=2)
    assert [node.name for node in cluster.nodes] == ["left", "right", "far"]
    assert cluster.measured == read_measured(path)
    assert cluster.measured.kernels == machine().kernels


@pytest.fixture(scope="module")
def started() -> Iterator[LocalEngine]:
    with start_engine() as engine:
        yield engine


@pytest.fixture
def shared_engine(started: LocalEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plans of this file look at their jobs with one engine, as starting one is what takes long."""
    monkeypatch.setattr("leptonai.cli.plan.engine_for", lambda job, home: nullcontext(started))


@pytest.mark.usefixtures("shared_engine")
def test_what_was_probed_serves_the_next_plan(
    app: typer.Typer, lepton: Callable[..., Said], stage: Path
) -> None:
    with open_rates(stage / "home") as store:
        assert store.measured("pytorch") is None
    assert CliRunner().invoke(app, ["--out", str(stage / "m.yaml")], catch_exceptions=False).exit_code == 0
    after = lepton("plan", "tiny.py", "-c", "one.yaml")
    assert (after.code, "forecast of a step" in after.out) == (0, True)


@pytest.mark.usefixtures("shared_engine")
def test_a_measured_file_is_planned_on_without_a_probe_of_this_home(
    lepton: Callable[..., Said], stage: Path
) -> None:
    write_measured(stage / "cluster.measured.yaml", machine())
    said = lepton("plan", "tiny.py", "-c", "cluster.measured.yaml")
    assert said.code == 0, said.err
    assert "forecast of a step" in said.out

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from benchmarks.figures import (
    Benchmark,
    Column,
    Figure,
    Options,
    is_met,
    judge,
    ratio_of_medians,
    run_benchmark,
    summary_rows,
)
from benchmarks.harness import Contest, Contestant, Results
from benchmarks.progress import Mark, Progress, Run, from_report, samples_per_second, startup_seconds

PROGRAM = """
import json, sys, time
now, rate = time.time(), int(sys.argv[2])
with open(sys.argv[1], "w") as file:
    for values in ({"first_step_at": now}, {"examples": 1, "at": now}, {"examples": 1 + rate, "at": now + 1.0}):
        print(json.dumps(values), file=file)
print("noise that must not reach the benchmark's output")
"""


def trivial(name: str, rate: int) -> Contestant:
    def command(folder: Path, turn: int) -> list[str]:
        return [sys.executable, "-c", PROGRAM, str(folder / "report"), str(rate)]

    def read(folder: Path) -> Progress:
        return from_report((folder / "report").read_text().splitlines())

    return Contestant(name=name, command=command, read=read, notes=lambda folder: (f"ran at {rate}",))


def speed(run: Run) -> float:
    return samples_per_second(run, warmup_seconds=0.0)


def figure(name: str, theirs: str, *, goal: float | None = 1.0) -> Figure:
    return Figure(
        name=name,
        contest="speed",
        contestants=("ours", theirs),
        value=ratio_of_medians("speed", "ours", theirs, speed),
        goal=goal,
        better="higher",
    )


def build(options: Options) -> Sequence[Contest]:
    everyone = (trivial("ours", 300), trivial("slow", 200), trivial("fast", 400))
    return (Contest(name="speed", contestants=everyone),)


BENCHMARK = Benchmark(
    name="trivial",
    build=build,
    figures=(figure("vs_slow", "slow"), figure("vs_fast", "fast")),
    columns=(Column(contest="speed", title="samples/s", of_run=speed),),
)


def test_json_prints_exactly_one_line_with_every_figure(
    capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = ["--json", "--quick", "--only", "vs_slow", "vs_fast"]
    assert run_benchmark(BENCHMARK, words, results_folder=tmp_path) == 0
    (line,) = capfd.readouterr().out.splitlines()
    assert json.loads(line) == {
        "benchmark": "trivial",
        "figures": {
            "vs_slow": {"value": 1.5, "goal": 1.0, "better": "higher", "unit": "ratio", "met": True},
            "vs_fast": {"value": 0.75, "goal": 1.0, "better": "higher", "unit": "ratio", "met": False},
        },
        "quick": True,
    }
    assert list(tmp_path.iterdir()) == []


def test_without_json_a_table_and_a_results_file_come_too(
    capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run_benchmark(BENCHMARK, ["--runs", "2", "--only", "vs_slow"], results_folder=tmp_path) == 0
    lines = capfd.readouterr().out.splitlines()
    assert json.loads(lines[-1])["figures"]["vs_slow"]["value"] == 1.5
    assert len(lines) > 5
    (path,) = tmp_path.iterdir()
    text = path.read_text()
    assert path.name.startswith("trivial_")
    assert "`python -m benchmarks.trivial --runs 2 --only vs_slow`" in text
    assert "| vs_slow | 1.500 | at least 1.0 ratio | yes |" in text
    assert "| speed | ours | samples/s | 300.0 | 300.0 to 300.0 | 2 |" in text
    assert "- ours: ran at 300" in text


def test_only_the_contestants_that_the_chosen_figures_need_run(tmp_path: Path) -> None:
    chosen: list[frozenset[str]] = []

    def remember(options: Options) -> Sequence[Contest]:
        chosen.append(options.contestants)
        return build(options)

    benchmark = Benchmark(
        name="trivial", build=remember, figures=BENCHMARK.figures, columns=BENCHMARK.columns
    )
    run_benchmark(benchmark, ["--quick", "--json", "--only", "vs_slow"], results_folder=tmp_path)
    assert chosen == [frozenset({"ours", "slow"})]


def test_a_figure_that_cannot_be_measured_is_null_and_the_exit_code_says_so(
    capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def nothing_to_read(folder: Path) -> Progress:
        raise AssertionError("it never ran")

    def failing(options: Options) -> Sequence[Contest]:
        bad = Contestant(name="slow", command=lambda folder, turn: ["/no/such/program"], read=nothing_to_read)
        return (Contest(name="speed", contestants=(trivial("ours", 300), bad)),)

    benchmark = Benchmark(name="trivial", build=failing, figures=BENCHMARK.figures[:1], columns=())
    assert run_benchmark(benchmark, ["--json", "--quick"], results_folder=tmp_path) == 4
    (line,) = capfd.readouterr().out.splitlines()
    judged = json.loads(line)["figures"]["vs_slow"]
    assert (judged["value"], judged["met"]) == (None, False)
    assert "/no/such/program" in judged["note"]


def test_an_unknown_figure_is_refused_with_the_names_there_are(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run_benchmark(BENCHMARK, ["--only", "vs_nobody"])
    assert ended.value.code == 2
    assert "vs_slow" in capfd.readouterr().err


def finished(contestant: str, *rates: int) -> list[Run]:
    return [
        Run(
            contestant=contestant,
            started_at_seconds=0.0,
            ended_at_seconds=9.0,
            progress=Progress(
                first_step_at_seconds=1.0,
                marks=(Mark(at_seconds=1.0, examples=0), Mark(at_seconds=2.0, examples=rate)),
            ),
        )
        for rate in rates
    ]


def test_a_ratio_is_that_of_the_medians() -> None:
    results = Results(
        runs={"speed": {"ours": finished("ours", 1, 30, 900), "slow": finished("slow", 10, 20, 15)}}
    )
    assert judge(BENCHMARK.figures[0], results)["value"] == 2.0
    assert ratio_of_medians("speed", "ours", "slow", startup_seconds)(results) == 1.0


def test_the_table_shows_median_and_spread() -> None:
    results = Results(runs={"speed": {"ours": finished("ours", 1, 30, 900)}})
    assert summary_rows(BENCHMARK, results) == [("speed", "ours", "samples/s", "30.0", "1.0 to 900.0", "3")]


@pytest.mark.parametrize(
    ("value", "goal", "better", "met"),
    [
        (1.0, 1.0, "higher", True),
        (0.999, 1.0, "higher", False),
        (1.1, 1.1, "lower", True),
        (1.2, 1.1, "lower", False),
        (0.1, None, "higher", True),
        (float("nan"), 1.0, "lower", False),
    ],
)
def test_goals_are_judged_by_their_direction(
    value: float, goal: float | None, better: str, met: bool
) -> None:
    assert is_met(value, goal, better) is met  # type: ignore[arg-type]

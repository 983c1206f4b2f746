"""The benchmark of operator alarms: how events are counted, what is generated, and that nobody sees ahead."""

from __future__ import annotations

import numpy as np
import pytest
from benchmarks.operator_alarms import FIGURES, PEERS, benchmark
from benchmarks.operator_alarms_peers import Scorer, ewma, spectral_residual, thresholds, total
from benchmarks.operator_alarms_runs import our_alarms
from benchmarks.operator_alarms_series import Counts, Incident, Labelled, count
from benchmarks.operator_alarms_synthetic import INCIDENTS, SORTS, injected_series, synthetic


def test_events_are_counted_once_and_ten_samples_late_at_most() -> None:
    incidents = (Incident(kind="a", begin=100, end=110), Incident(kind="b", begin=300, end=300))
    alarms = np.array([99, 100, 120, 121, 310])
    assert count(alarms, incidents) == Counts(found=2, missed=0, false=2, repeats=1)
    assert count(np.array([], dtype=np.int64), incidents) == Counts(missed=2)
    assert total([(alarms, incidents), (alarms, ())]).false == 7


def test_f1_pays_for_misses_and_false_alarms() -> None:
    assert Counts().f1 == 0.0
    assert Counts(found=2, missed=2, false=2, repeats=4).f1 == 0.5
    assert Counts(found=2, missed=2, false=2, repeats=4).f1_repeats_false < 0.5


def test_series_are_the_same_for_a_seed_and_healthy_at_first() -> None:
    first, again = list(injected_series(5, 7)), list(injected_series(5, 7))
    assert {each.name.split("-")[0] for each in first} == set(SORTS)
    for one, two in zip(first, again, strict=True):
        np.testing.assert_array_equal(one.values, two.values)
        assert one.incidents == two.incidents
        assert np.isfinite(one.values).all()
        assert all(
            2_880 <= incident.begin <= incident.end < len(one.values) - 10 for incident in one.incidents
        )


def test_every_kind_of_incident_occurs() -> None:
    kinds = {
        i.kind
        for seed in range(40)
        for i in synthetic("plain", np.random.default_rng(seed), name="").incidents
    }
    assert kinds == set(INCIDENTS)


@pytest.mark.parametrize("scorer", [ewma(0.02), spectral_residual(64)])
def test_the_others_do_not_look_ahead(scorer: Scorer) -> None:
    values = np.random.default_rng(1).standard_normal(600)
    series = Labelled(name="", at_seconds=300.0 * np.arange(600), values=values, incidents=())
    altered = values.copy()
    altered[400:] += 50.0
    other = Labelled(name="", at_seconds=series.at_seconds, values=altered, incidents=())
    one, two = scorer(series), scorer(other)
    np.testing.assert_allclose(one[:400], two[:400], rtol=1e-9)
    assert two[400] > 3.0 * max(one[400], np.quantile(one, 0.9))


def test_thresholds_span_the_scores() -> None:
    tried = thresholds([np.arange(1000.0)])
    assert min(tried) < 850.0
    assert max(tried) > 998.0


def test_ours_finds_a_plain_incident_and_is_else_silent() -> None:
    rng = np.random.default_rng(4)
    values = 10.0 + rng.standard_normal(2000)
    values[1500:1540] += 15.0
    series = Labelled(name="", at_seconds=300.0 * np.arange(2000), values=values,
                      incidents=(Incident(kind="level", begin=1500, end=1539),))  # fmt: skip
    counts = count(our_alarms(series), series.incidents)
    assert (counts.found, counts.false) == (1, 0)


def test_the_theme_names_its_goals() -> None:
    assert benchmark().name == "operator_alarms"
    assert {figure.name for figure in FIGURES if figure.goal is not None} == {"nab_margin", "injected_margin"}
    assert all(set(PEERS) < set(figure.contestants) for figure in FIGURES if figure.goal is not None)

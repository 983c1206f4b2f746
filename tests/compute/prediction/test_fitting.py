"""Rows in, constants out; the rule that chooses rows sees no times; the residual fades."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from leptonai.compute.prediction import vtrain
from leptonai.compute.prediction.calibration import Calibration
from leptonai.compute.prediction.distinct import distinct
from leptonai.compute.prediction.fitting import fit, predicted_seconds
from leptonai.compute.prediction.layouts import Layout, Layouts
from leptonai.compute.prediction.machine import Machine
from leptonai.compute.prediction.residual import CorrectedPredictor, fit_residual
from leptonai.compute.prediction.transformer_step import TransformerPredictor
from leptonai.compute.prediction.vtrain import Row
from leptonai.compute.transformer import Transformer
from leptonai.core.errors import InputError

HEADER = (
    "num_gpus,global batch,micro batch,hidden size,attention heads,# layers,sequence length,tensor parallelism,"
    "data parallelism,pipeline parallelism,iteration time (ms)\n"
)
MODEL = Transformer(num_layers=12, hidden=1024, num_heads=16, sequence=1024, vocabulary=vtrain.VOCABULARY)
LAYOUTS = [
    Layout(tensor=tensor, data=8 // tensor, micro_batch=micro_batch, recompute="full")
    for tensor in (1, 2, 4, 8)
    for micro_batch in (1, 4)
]


def machine(num_gpus: int) -> Machine:
    return vtrain.machine_of(num_gpus, ())


def rows(seconds: list[float] | None = None) -> list[Row]:
    return [
        Row(MODEL, 8, 64, layout, 1.0 if seconds is None else seconds[place])
        for place, layout in enumerate(LAYOUTS)
    ]


def test_a_fit_comes_back_to_the_constants_that_made_the_times() -> None:
    truth = replace(Calibration(), host_layer_seconds=4.5e-3, logit_bytes=80.0)
    made = rows(predicted_seconds(rows(), machine, truth).tolist())
    before = predicted_seconds(made, machine, Calibration())
    found = fit(made, machine)
    after = predicted_seconds(made, machine, found)
    measured = np.array([row.seconds for row in made])
    assert np.abs(before / measured - 1).max() > 0.2
    assert np.abs(after / measured - 1).max() < 0.03
    assert found.host_layer_seconds == pytest.approx(4.5e-3, rel=0.05)


def test_without_error_a_fit_stays_at_its_prior() -> None:
    made = rows(predicted_seconds(rows(), machine, Calibration()).tolist())[:3]
    assert fit(made, machine).host_layer_seconds == pytest.approx(Calibration().host_layer_seconds, rel=1e-3)


def test_a_fit_of_one_row_is_refused() -> None:
    with pytest.raises(InputError, match="two measured steps"):
        fit(rows()[:1], machine)


def many(seed: int) -> tuple[list[Row], list[Row]]:
    chance = random.Random(seed)
    single = [
        Row(replace(MODEL, hidden=hidden, num_layers=layers), 8, 64, layout, chance.random())
        for hidden in (1024, 2048)
        for layers in (12, 24)
        for layout in LAYOUTS
    ]
    multi = [
        Row(replace(MODEL, hidden=4096), 64, 64, replace(each, data=8 * each.data), chance.random())
        for each in LAYOUTS
    ]
    return single, multi


def test_the_rule_that_chooses_rows_never_looks_at_times() -> None:
    first, second = vtrain.calibration_rows(*many(1)), vtrain.calibration_rows(*many(2))
    assert first == second
    single, multi = first
    assert len(single) == 2 * len(LAYOUTS)
    assert len(multi) == vtrain.NUM_MULTI_ROWS == len(set(multi))
    cells = {(row.model.hidden, row.layout.tensor, row.layout.micro_batch) for row in many(1)[0]}
    chosen = [many(1)[0][place] for place in single]
    assert {(row.model.hidden, row.layout.tensor, row.layout.micro_batch) for row in chosen} == cells


def test_a_residual_corrects_its_rows_and_fades_away_from_them() -> None:
    predicted = np.ones(len(LAYOUTS))
    residual = fit_residual(rows([1.2] * len(LAYOUTS)), predicted)
    near = residual.factor(MODEL, Layouts.of(LAYOUTS))
    assert (near > 1.1).all()
    assert (near < 1.2).all()
    far = residual.factor(replace(MODEL, hidden=16384), Layouts.of(LAYOUTS))
    np.testing.assert_allclose(far, 1.0, atol=1e-6)
    long = residual.factor(replace(MODEL, sequence=32768), Layouts.of(LAYOUTS))
    np.testing.assert_allclose(long, 1.0, atol=1e-6)


def test_a_corrected_prediction_still_adds_up() -> None:
    inner = TransformerPredictor(MODEL, machine(8), global_batch=64)
    residual = fit_residual(rows([1.2] * len(LAYOUTS)), np.ones(len(LAYOUTS)))
    some = Layouts.of(LAYOUTS)
    plain, corrected = inner.predict(some), CorrectedPredictor(inner, MODEL, residual).predict(some)
    np.testing.assert_allclose(corrected.step_seconds, plain.step_seconds * residual.factor(MODEL, some))
    np.testing.assert_allclose(sum(corrected.phases.values()), corrected.step_seconds)
    np.testing.assert_array_equal(
        corrected.memory_bytes, CorrectedPredictor(inner, MODEL, residual).memory(some)
    )


def test_a_residual_needs_a_prediction_for_each_row() -> None:
    with pytest.raises(InputError, match="a prediction for each row"):
        fit_residual(rows(), np.ones(2))


def test_tables_are_read_as_they_are_published(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text(HEADER + "8,16,4,2048,16,24,1024,2,1,4,410.5\n")
    (row,) = vtrain.read_rows(tmp_path / "rows.csv")
    assert row.layout == Layout(tensor=2, data=1, pipeline=4, micro_batch=4, recompute="full")
    assert (row.seconds, row.num_gpus, row.global_batch) == (0.4105, 8, 16)
    (tmp_path / "rows.csv").write_text(HEADER + "8,16,4,2048,16,24,1024,2,1,4,soon\n")
    with pytest.raises(InputError, match=r"rows\.csv, row 2"):
        vtrain.read_rows(tmp_path / "rows.csv")


def test_all_reduce_tables_become_a_level(tmp_path: Path) -> None:
    for num_devices in (2, 4, 8):
        lines = "".join(f"{1048576 * n},0,float,{1000 * n * num_devices},1,1,1\n" for n in range(1, 101))
        (tmp_path / f"allreduce_a100_{num_devices}gpu.txt").write_text("size(B)\n" + lines)
    tables = vtrain.read_all_reduces(tmp_path)
    assert [table[0] for table in tables] == [2, 4, 8]
    assert tables[0][1][0] == 1048576
    assert tables[2][1][-1] == 100 * 1048576
    assert tables[2][2][-1] == pytest.approx(800e-6)


def test_missing_data_say_where_to_get_them(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        vtrain.find_vtrain([tmp_path])
    assert "LEPTON_DATA" in (caught.value.hint or "")
    with pytest.raises(InputError, match="LEPTON_DATA is not set"):
        vtrain.find_vtrain([])
    with pytest.raises(InputError, match="cannot be read"):
        vtrain.read_all_reduces(tmp_path)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 10**6), st.booleans()), max_size=60))
def test_distinct_rows_spread_back_to_all(rows: list[tuple[int, int, bool]]) -> None:
    columns = [np.array([row[place] for row in rows], np.int64) for place in range(3)]
    first, kind = distinct(columns)
    assert len(first) == len(set(rows))
    for column in columns:
        np.testing.assert_array_equal(column[first][kind], column)

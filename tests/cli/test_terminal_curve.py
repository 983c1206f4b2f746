from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leptonai.cli.terminal_curve import Line, draw_lines

finite = st.floats(-1e6, 1e6)
points = st.lists(st.tuples(st.integers(0, 1000), finite), max_size=30).map(sorted)


@given(st.lists(points, max_size=4), st.integers(24, 120), st.integers(2, 20))
def test_a_drawing_never_leaves_its_frame(
    series: list[list[tuple[float, float]]], width: int, height: int
) -> None:
    text = draw_lines([Line(points=each, mark="A") for each in series], width=width, height=height).plain
    rows = text.split("\n")
    if any(series):
        assert len(rows) == height + 2
    assert max(len(row) for row in rows) <= width


def test_a_rising_line_begins_below_and_ends_above() -> None:
    rows = draw_lines([Line(points=[(0, 0.0), (10, 10.0)])], width=40, height=5).plain.split("\n")
    assert [row[11:].strip() != "" for row in rows[:5]] == [True] * 5
    starts = [len(row[11:]) - len(row[11:].lstrip()) for row in rows[:5]]
    assert starts == sorted(starts, reverse=True)
    assert starts[4] == 0
    assert len(rows[0]) == 40


def test_the_axes_tell_the_range() -> None:
    rows = draw_lines([Line(points=[(5, 2.0), (50, 8.0)])], width=40, height=5, across="epoch").plain.split(
        "\n"
    )
    assert rows[0].split()[0] == "8"
    assert rows[2].split()[0] == "5"
    assert rows[4].split()[0] == "2"
    assert rows[6].split() == ["5", "epoch", "50"]


def test_a_log_axis_puts_equal_factors_at_equal_heights() -> None:
    line = Line(points=[(0, 100.0), (1, 10.0), (2, 1.0)])
    rows = draw_lines([line], width=40, height=5, log=True).plain.split("\n")
    assert [rows[row].split()[0] for row in (0, 2, 4)] == ["100", "10", "1"]


def test_marks_of_lines_that_end_together_are_all_seen() -> None:
    same = [(0, 1.0), (1, 2.0)]
    text = draw_lines([Line(points=same, mark=mark) for mark in "ABC"], width=40, height=4).plain
    assert all(text.count(mark) == 1 for mark in "ABC")


def test_each_line_has_its_own_style() -> None:
    text = draw_lines(
        [Line(points=[(0, 0.0), (1, 0.0)]), Line(points=[(0, 1.0), (1, 1.0)])], width=30, height=4
    )
    assert {"cyan", "yellow"} <= {str(span.style) for span in text.spans}


@pytest.mark.parametrize("lines", [[], [Line(points=[])]])
def test_nothing_to_draw_is_said(lines: list[Line]) -> None:
    assert draw_lines(lines).plain == "no values yet"


def test_one_point_and_a_flat_line_can_be_drawn() -> None:
    for only, num_cells in (([(3, 7.0)], 1), ([(0, 7.0), (9, 7.0)], 19)):
        text = draw_lines([Line(points=only)], width=30, height=3).plain
        assert sum("\u2800" < character <= "\u28ff" for character in text) == num_cells

"""Curves drawn with braille dots: two columns by four rows of dots in each character cell."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rich.text import Text

STYLES = ("cyan", "yellow", "magenta", "green", "red", "blue")
_BLANK = 0x2800
# Bit of each dot within a braille character, by row and column (Unicode 15, block 2800-28FF).
_DOT_BITS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
_AXIS_WIDTH = 9


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One curve: points in order of ``across``, and a letter that marks its end where several are drawn."""

    points: Sequence[tuple[float, float]]
    mark: str = ""


@dataclass(frozen=True, slots=True)
class _Scale:
    """Maps values of [low, high] to [0, 1]; ``log`` compares their logarithms."""

    low: float
    high: float
    log: bool = False

    def share(self, value: float) -> float:
        low, high, value = (math.log(x) if self.log else x for x in (self.low, self.high, value))
        return 0.5 if high == low else (value - low) / (high - low)

    def at(self, share: float) -> float:
        if self.log:
            return float(self.low * (self.high / self.low) ** share)
        return self.low + (self.high - self.low) * share


def draw_lines(
    lines: Sequence[Line], *, width: int = 80, height: int = 10, log: bool = False, across: str = "step"
) -> Text:
    """The curves over one pair of axes, as text of at most ``width`` columns and ``height + 2`` rows.

    Args:
        lines: those without points are left out; if none has any the text says so.
        width: columns in all, >= 20.
        height: rows of the drawing, >= 2.
        log: logarithmic upward axis; every value must be > 0.
        across: name of the axis to the right.

    >>> print(draw_lines([Line(points=[(0, 0), (5, 5), (10, 10)])], width=24, height=3))
           10 ┤         ⣀⠤⠒⠉
            5 ┤    ⢀⡠⠤⠒⠉
            0 ┤⣀⠤⠒⠉⠁
              └─────────────
               0     step 10
    """
    lines = [line for line in lines if line.points]
    if not lines:
        return Text("no values yet")
    columns = width - _AXIS_WIDTH - 2
    every = [point for line in lines for point in line.points]
    horizontal = _Scale(min(x for x, _ in every), max(x for x, _ in every))
    vertical = _Scale(min(y for _, y in every), max(y for _, y in every), log)
    cells = _Cells(columns, height)
    for order, line in enumerate(lines):
        cells.draw(line, horizontal, vertical, order)
    text = Text()
    for row in range(height):
        text.append(_axis_label(row, height, vertical), style="dim")
        cells.append_row(text, row)
        text.rstrip()
        text.append("\n")
    text.append(" " * _AXIS_WIDTH + " └" + "─" * columns + "\n", style="dim")
    text.append(" " * (_AXIS_WIDTH + 2) + _foot(horizontal, across, columns), style="dim")
    return text


class _Cells:
    """A grid of braille characters; each remembers which line touched it last, for its colour."""

    def __init__(self, columns: int, rows: int) -> None:
        self._columns, self._rows = columns, rows
        self._bits = [[0] * columns for _ in range(rows)]
        self._orders = [[0] * columns for _ in range(rows)]
        self._marks: dict[tuple[int, int], str] = {}

    def draw(self, line: Line, horizontal: _Scale, vertical: _Scale, order: int) -> None:
        dots = [self._dot(horizontal.share(x), vertical.share(y)) for x, y in line.points]
        for start, stop in zip(dots, dots[1:] or dots, strict=False):
            for x, y in _between(start, stop):
                self._bits[y // 4][x // 2] |= _DOT_BITS[y % 4][x % 2]
                self._orders[y // 4][x // 2] = order
        if line.mark:
            x, y = dots[-1]
            self._place_mark(x // 2, y // 4, line.mark, order)

    def append_row(self, text: Text, row: int) -> None:
        for column in range(self._columns):
            mark = self._marks.get((column, row))
            bits = self._bits[row][column]
            character = mark or (chr(_BLANK + bits) if bits else " ")
            style = STYLES[self._orders[row][column] % len(STYLES)]
            text.append(character, style=f"bold {style}" if mark else style if bits else None)

    def _dot(self, across: float, up: float) -> tuple[int, int]:
        return round(across * (2 * self._columns - 1)), round((1 - up) * (4 * self._rows - 1))

    def _place_mark(self, column: int, row: int, mark: str, order: int) -> None:
        """Go left from the end to a cell without another line's mark, so that none is lost."""
        while (column, row) in self._marks and column > 0:
            column -= 1
        self._marks[(column, row)] = mark
        self._orders[row][column] = order


def _between(start: tuple[int, int], stop: tuple[int, int]) -> list[tuple[int, int]]:
    """Dots of the straight way from ``start`` to ``stop``, both included."""
    num_moves = max(abs(stop[0] - start[0]), abs(stop[1] - start[1]), 1)
    return [
        (
            round(start[0] + (stop[0] - start[0]) * move / num_moves),
            round(start[1] + (stop[1] - start[1]) * move / num_moves),
        )
        for move in range(num_moves + 1)
    ]


def _axis_label(row: int, height: int, vertical: _Scale) -> str:
    labelled = row in {0, height // 2, height - 1}
    if not labelled:
        return f"{'':>{_AXIS_WIDTH}} │"
    value = vertical.at(1 - row / (height - 1))
    label = next(text for digits in (4, 3, 2) if len(text := f"{value:.{digits}g}") <= _AXIS_WIDTH)
    return f"{label:>{_AXIS_WIDTH}} ┤"


def _foot(horizontal: _Scale, across: str, columns: int) -> str:
    left, right = short(horizontal.low), f"{across} {short(horizontal.high)}"
    return left + right.rjust(columns - len(left))


def short(value: float) -> str:
    """A number to four significant digits.

    >>> short(0.98765), short(12.0), short(1234567.0), short(0.0000123)
    ('0.9877', '12', '1.235e+06', '1.23e-05')
    """
    return f"{value:.4g}"

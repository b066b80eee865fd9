"""A scatter plot in letters: two objectives against each other, or one over the search.

Own code rather than a library: textual-plotext is bound to an old plotext and has had no release
since 2024, and textual-plot reads labels as markup, which names from strangers must never be.

P = points; across = columns of the terminal, down = its rows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from rich.text import Text

from evomerge.core.arrays import BoolArray, FloatArray, IntArray
from evomerge.watch.snapshot import Points

MARKED, OTHER = "●", "·"
MIN_WIDTH, MIN_HEIGHT = 24, 6  # of a plot that can be read


@dataclass(frozen=True, eq=False)
class Scatter:
    """What is plotted.

    Attributes:
        x: (P,) across.
        y: (P,) up.
        marked: (P,) points that stand out, drawn over the others.
    """

    x: FloatArray
    y: FloatArray
    marked: BoolArray

    @classmethod
    def of(cls, points: Points, pair: tuple[int, int]) -> Scatter:
        """Return two objectives of candidates, the front marked; of a single one, its rises.

        Args:
            points: The candidates.
            pair: Which objectives are across and up; with one objective it is not looked at.
        """
        if len(points.names) > 1:
            return cls(points.values[:, pair[0]], points.values[:, pair[1]], points.on_front)
        y = points.values[:, 0]
        return cls(points.ids.astype(np.float64), y, y >= np.maximum.accumulate(y))

    def draw(self, width: int, height: int) -> Text:
        """Return the plot with axes and numbers: `height` lines of at most `width` letters."""
        if not len(self.x):
            return Text("nothing is scored yet", style="dim")
        if width < MIN_WIDTH or height < MIN_HEIGHT:
            return Text("no room for the plot", style="dim")
        y_axis = Axis.of(self.y, height - 2, most=max(2, (height - 2) // 2))
        gutter = max(map(len, y_axis.labels)) + 1
        n_columns = width - gutter - 1
        x_axis = Axis.fitting(self.x, n_columns)
        cells = self._cells(x_axis, y_axis)
        text = Text(no_wrap=True)
        y_labels = dict(zip(y_axis.places, y_axis.labels, strict=True))
        for row in range(y_axis.n_cells):
            place = y_axis.n_cells - 1 - row
            label = y_labels.get(place, "")
            text.append(f"{label:>{gutter - 1}} ", style="dim")
            text.append("┤" if label else "│", style="dim")
            for column in range(n_columns):
                is_marked = cells.get((column, place))
                if is_marked is None:
                    text.append(" ")
                else:
                    text.append(*((MARKED, "bold green") if is_marked else (OTHER, "")))
            text.append("\n")
        line = ["─"] * n_columns
        for place in x_axis.places:
            line[place] = "┬"
        text.append(" " * gutter + "└" + "".join(line) + "\n", style="dim")
        return text.append(" " * (gutter + 1) + x_axis.label_line(), style="dim")

    def _cells(self, x_axis: Axis, y_axis: Axis) -> dict[tuple[int, int], bool]:
        """Return (column, row from below) -> whether there is a marked point."""
        columns, rows = x_axis.cells_of(self.x), y_axis.cells_of(self.y)
        cells: dict[tuple[int, int], bool] = {}
        for column, row, is_marked in zip(columns, rows, self.marked, strict=True):
            key = (int(column), int(row))
            cells[key] = cells.get(key, False) or bool(is_marked)
        return cells


@dataclass(frozen=True)
class Axis:
    """One direction of a plot.

    Attributes:
        low: Value at the first cell's edge.
        high: Value at the last cell's edge.
        n_cells: Columns or rows.
        labels: Of the ticks.
        places: Cells of the ticks.
    """

    low: float
    high: float
    n_cells: int
    labels: tuple[str, ...]
    places: tuple[int, ...]

    @classmethod
    def of(cls, values: FloatArray, n_cells: int, *, most: int) -> Axis:
        """Return an axis that holds all values, with at most `most` ticks at round numbers."""
        low, high = float(values.min()), float(values.max())
        size = max(abs(low), abs(high))
        is_point = high - low <= 1e-9 * size
        margin = (0.05 * size or 1.0) if is_point else 0.04 * (high - low)
        low, high = low - margin, high + margin
        step = _round_step((high - low) / max(most, 1))
        first, last = math.ceil(low / step), math.floor(high / step)
        decimals = max(0, -math.floor(math.log10(step)))
        ticks = [index * step for index in range(first, last + 1)]
        is_plain = size < 1e6 and decimals <= 6
        # "+ 0.0" turns -0.0 into 0.0.
        labels = tuple(f"{t + 0.0:.{decimals}f}" if is_plain else f"{t:.4g}" for t in ticks)
        axis = cls(low, high, n_cells, (), ())
        places = tuple(int(cell) for cell in axis.cells_of(np.array(ticks)))
        return cls(low, high, n_cells, labels, places)

    @classmethod
    def fitting(cls, values: FloatArray, n_cells: int) -> Axis:
        """Return a horizontal axis with as many ticks as have room for their labels."""
        for most in range(max(1, n_cells // 6), 0, -1):
            axis = cls.of(values, n_cells, most=most)
            if axis._label_spans_are_apart():
                return axis
        return axis

    def cells_of(self, values: FloatArray) -> IntArray:
        """Return the (P,) cells that values fall into."""
        share = (values - self.low) / (self.high - self.low)
        return np.clip((share * self.n_cells).astype(np.int64), 0, self.n_cells - 1)

    def label_line(self) -> str:
        """Return the labels under their ticks."""
        line = [" "] * self.n_cells
        for start, label in self._label_starts():
            line[start : start + len(label)] = label
        return "".join(line[: self.n_cells])

    def _label_starts(self) -> list[tuple[int, str]]:
        return [
            (min(max(0, place - len(label) // 2), max(0, self.n_cells - len(label))), label)
            for place, label in zip(self.places, self.labels, strict=True)
        ]

    def _label_spans_are_apart(self) -> bool:
        spans = self._label_starts()
        return all(start + len(label) + 1 < after for (start, label), (after, _) in pairwise(spans))


def _round_step(least: float) -> float:
    """Return the smallest of 1, 2 and 5 times a power of ten that is no smaller than `least`."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(
        factor * power for factor in (1.0, 2.0, 5.0, 10.0) if factor * power >= least * (1 - 1e-9)
    )


def captions(points: Points, pair: tuple[int, int]) -> tuple[str, str]:
    """Return which objective is up and which across, and what marks mean."""
    if len(points.names) == 1:
        return f"{points.names[0]} ↑ over candidates →", f"{MARKED} best so far  {OTHER} others"
    return (
        f"{points.names[pair[1]]} ↑ over {points.names[pair[0]]} →",
        f"{MARKED} front  {OTHER} others",
    )


def pairs(n_objectives: int) -> list[tuple[int, int]]:
    """Return the pairs of objectives that can be plotted, first against second first."""
    found = [(a, b) for a in range(n_objectives) for b in range(a + 1, n_objectives)]
    return found or [(0, 0)]

"""Plots as positions: where on its axis, from 0 to 100 %, each mark of a report stands. The page draws them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

_TICKS = 5  # at most about so many on an axis; a phone is narrow
_MARGIN = 3.0  # percent on either side
_STEPS = (1, 2, 2.5, 5, 10)


@dataclass(frozen=True, slots=True)
class Mark:
    """One thing on a row: a ``dot``, ``bar``, ``line``, ``limit`` or ``base``, in percent of the width."""

    kind: str
    start: float
    end: float = 0.0
    bad: bool = False


@dataclass(frozen=True, slots=True)
class Row:
    """A line of a plot: what it is, its value as text, and what is drawn."""

    label: str
    value: str
    marks: tuple[Mark, ...]
    bad: bool = False


@dataclass(frozen=True, slots=True)
class RowPlot:
    """Rows over one axis."""

    caption: str
    rows: tuple[Row, ...]
    ticks: tuple[tuple[float, str], ...]


@dataclass(frozen=True, slots=True)
class LinePlot:
    """A value over an order, and its limit; points are ``(x, y, text, bad)`` and limits ``(x, y)`` in percent."""

    caption: str
    points: tuple[tuple[float, float, str, bool], ...]
    limits: tuple[tuple[float, float], ...]
    ticks: tuple[tuple[float, str], ...]


@dataclass(slots=True)
class Axis:
    """Where a value stands between the smallest and the largest that are shown.

    Args:
        values: All that are to be shown; infinite ones stand at the end.
        log: Whether decades are equally far apart.
    """

    values: Iterable[float]
    log: bool = True
    low: float = field(init=False)
    high: float = field(init=False)

    def __post_init__(self) -> None:
        finite = [value for value in self.values if math.isfinite(value) and (value > 0 or not self.log)]
        scaled = [self._scaled(value) for value in finite] or [0.0]
        self.low, self.high = min(scaled), max(scaled)
        if not self.log:
            self.low = min(self.low, 0.0)
        if self.high - self.low < 1e-12:
            self.low, self.high = self.low - 0.5, self.high + 0.5

    def _scaled(self, value: float) -> float:
        return math.log10(value) if self.log else value

    def at(self, value: float) -> float:
        """Percent from the left."""
        if math.isinf(value):
            return 100.0
        if self.log and value <= 0:
            return 0.0
        share = (self._scaled(value) - self.low) / (self.high - self.low)
        return round(_MARGIN + share * (100 - 2 * _MARGIN), 2)

    def ticks(self) -> tuple[tuple[float, str], ...]:
        """Round values, as position and text."""
        values = self._round_logs() if self.log else _round_values(self.low, self.high)
        return tuple((self.at(value), f"{value:.3g}") for value in values)

    def _round_logs(self) -> list[float]:
        """Every so many decades; where there are few, 1, 2 and 5 of each; where there is hardly one, as if linear."""
        first, last = math.floor(self.low), math.ceil(self.high)
        step = max(1, math.ceil((last - first) / _TICKS))
        for digits in ((1,), (1, 3), (1, 2, 5)):
            values = [digit * 10.0**power for power in range(first, last + 1, step) for digit in digits]
            shown = [value for value in values if self.low - 1e-9 <= math.log10(value) <= self.high + 1e-9]
            if len(shown) > 2:
                return shown
        return _round_values(10**self.low, 10**self.high)


def _round_values(low: float, high: float) -> list[float]:
    rough = (high - low) / _TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * each for each in _STEPS if power * each >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [index * step for index in range(first, math.floor(high / step + 1e-9) + 1)]


def number(value: Any) -> float:
    """A number of a report, in which infinity is text."""
    return math.inf if value == "inf" else float(value)


def parity_plots(rows: Sequence[dict[str, Any]]) -> list[RowPlot]:
    """Per output: the largest error on each batch, with its limit; of the batches of text, the worst one.

    Tokens have none: they are the same or not.
    """
    plots, rows = [], [row for row in rows if "max_abs_error" in row["metrics"]]
    for output in dict.fromkeys(row["output"] for row in rows):
        mine = _shown([row for row in rows if row["output"] == output])
        checks = [row["metrics"]["max_abs_error"] for row in mine]
        axis = Axis([number(check[key]) for check in checks for key in ("value", "limit")])
        drawn = []
        for row, check in zip(mine, checks, strict=True):
            error = number(check["value"])
            marks = (Mark("limit", axis.at(check["limit"])), Mark("dot", axis.at(error), bad=not row["passed"]))
            shape = "x".join(map(str, row["shape"]))
            drawn.append(Row(f"{row['batch']} {shape}", f"{error:.1e}", marks, bad=not row["passed"]))
        plots.append(RowPlot(f"Largest absolute error of {output}, and its limit", tuple(drawn), axis.ticks()))
    return plots


def _shown(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    text = [row for row in rows if row["batch"].startswith("data-")]
    worst = max(text, key=lambda row: number(row["metrics"]["max_abs_error"]["value"]), default=None)
    return [row for row in rows if row not in text or row is worst]


def layer_plot(layers: Sequence[dict[str, Any]]) -> LinePlot:
    """The error's growth through the layers, each relative to the layer's own scale."""
    shares = [(number(row["error"]) / (row["scale"] or 1.0), row["limit"] / (row["scale"] or 1.0)) for row in layers]
    axis = Axis([value for pair in shares for value in pair])
    step = 100 / max(1, len(layers) - 1)
    points, limits = [], []
    for index, (row, (error, limit)) in enumerate(zip(layers, shares, strict=True)):
        text = f"{row['layer']}: {error:.1e} of its largest value, limit {limit:.1e}"
        points.append((round(index * step, 2), 100 - axis.at(error), text, row["diverges"]))
        limits.append((round(index * step, 2), 100 - axis.at(limit)))
    ticks = tuple((100 - at, text) for at, text in axis.ticks())
    return LinePlot("Error of each layer over its largest value", tuple(points), tuple(limits), ticks)


def latency_plots(latencies: Sequence[dict[str, Any]]) -> list[RowPlot]:
    """Per shape: how the runs of each side are distributed."""
    plots = []
    for shape in dict.fromkeys(row["shape"] for row in latencies):
        mine = [row for row in latencies if row["shape"] == shape]
        axis = Axis(
            [row["quantiles_ms"][index] for row in mine for index in (1, -2)] + [row["p99_ms"] for row in mine]
        )
        drawn = []
        for row in mine:
            levels = row["quantiles_ms"]  # 0, 5, ... 100 %
            marks = (
                Mark("line", axis.at(levels[1]), axis.at(levels[19])),
                Mark("bar", axis.at(levels[5]), axis.at(levels[15])),
                Mark("base", axis.at(levels[10])),
                Mark("dot", axis.at(row["p99_ms"])),
            )
            drawn.append(Row(row["side"], f"{row['p50_ms']:.2f} ms", marks))
        caption = f"{shape}: milliseconds; line 5-95 %, box 25-75 %, stroke median, dot p99"
        plots.append(RowPlot(caption, tuple(drawn), axis.ticks()))
    return plots


def speedup_plot(latencies: Sequence[dict[str, Any]], reference: str) -> RowPlot | None:
    """Every ratio to the reference with its interval; ``None`` where there is one side only."""
    found = [row for row in latencies if row["speedup"]]
    if not found:
        return None
    axis = Axis([1.0, *(row["speedup"][key] for row in found for key in ("low", "high"))])
    rows = tuple(
        Row(
            f"{row['side']} {row['shape']}", f"{row['speedup']['estimate']:.2f}x", _interval(axis, row["speedup"], 1.0)
        )
        for row in found
    )
    return RowPlot(f"Times faster than {reference}, with the 95 % interval", rows, axis.ticks())


def regression_plot(regressions: Sequence[dict[str, Any]]) -> RowPlot | None:
    """Every change since the baseline with its interval and the limit; ``None`` without a baseline."""
    if not regressions:
        return None
    ends = [100 * (row["slowdown"][key] - 1) for row in regressions for key in ("low", "high")]
    axis = Axis([0.0, *ends, *(100 * (row["limit"] - 1) for row in regressions)], log=False)
    rows = []
    for row in regressions:
        change = {key: 100 * (value - 1) for key, value in row["slowdown"].items()}
        bad = not row["passed"]
        limit = Mark("limit", axis.at(100 * (row["limit"] - 1)))
        marks = (limit, *_interval(axis, change, 0.0, bad=bad))
        rows.append(Row(f"{row['side']} {row['shape']}", f"{change['estimate']:+.1f} %", marks, bad=bad))
    return RowPlot("Percent slower than the baseline, with the 95 % interval and the limit", tuple(rows), axis.ticks())


def load_plot(loads: Sequence[dict[str, Any]]) -> RowPlot | None:
    """Median to 99th percentile under every load; ``None`` where none was measured."""
    if not loads:
        return None
    values = [number(row[key]) for row in loads for key in ("p50_ms", "p99_ms")]
    axis = Axis(values)
    rows = []
    for row in loads:
        p50, p99 = number(row["p50_ms"]), number(row["p99_ms"])
        marks = (
            Mark("line", axis.at(p50), axis.at(p99)),
            Mark("base", axis.at(p50)),
            Mark("dot", axis.at(p99), bad=math.isinf(p99)),
        )
        text = f"{p99:.2f} ms" if math.isfinite(p99) else "falls behind"
        rows.append(Row(f"{row['side']} {row['shape']}, {row['scenario']}", text, marks, bad=math.isinf(p99)))
    return RowPlot("Under load, milliseconds: stroke median, dot p99", tuple(rows), axis.ticks())


def _interval(axis: Axis, values: dict[str, float], base: float, *, bad: bool = False) -> tuple[Mark, ...]:
    return (
        Mark("base", axis.at(base)),
        Mark("line", axis.at(values["low"]), axis.at(values["high"]), bad=bad),
        Mark("dot", axis.at(values["estimate"]), bad=bad),
    )

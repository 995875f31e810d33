"""Pictures of results, as SVG."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

_ROW_INCHES, _PANEL_INCHES = 0.32, 3.4


def draw_bars(file: Path, title: str, panels: Mapping[str, Mapping[str, float]]) -> None:
    """One panel of horizontal bars per shape, each with its value.

    Args:
        file: Where to, ending in ``.svg``.
        title: Above all panels.
        panels: Values by side, by shape; all shapes have the same sides.
    """
    sides = list(next(iter(panels.values())))
    height = 1.1 + _ROW_INCHES * len(sides)
    figure = Figure(figsize=(2.2 + _PANEL_INCHES * len(panels), height), layout="constrained")
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for each, (shape, values) in zip(axes, panels.items(), strict=True):
        bars = each.barh(sides, [values[side] for side in sides], color="#4477aa")
        each.bar_label(bars, [f"{values[side]:.{0 if values[side] >= 100 else 1}f}" for side in sides], padding=3)
        each.set_title(shape)
        each.margins(x=0.2)
        each.spines[["top", "right"]].set_visible(False)
    axes[0].invert_yaxis()
    figure.suptitle(title)
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": file.stem}):
        figure.savefig(file, metadata={"Date": None})

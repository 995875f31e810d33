"""The picture of a run: loss and metric over the steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from adakron_export.extras import require

_SMOOTH = 0.9  # of the running mean that is drawn through the noisy loss


def draw_curves(history: Sequence[Mapping[str, Any]], file: Path, *, metric: str, best_step: int | None) -> None:
    """Draw the curves as a PNG.

    Args:
        history: The Trainer's log.
        file: The picture.
        metric: Drawn beside the losses.
        best_step: Marked; the checkpoint that was kept.
    """
    figure_module = require("matplotlib.figure", extra="train")
    figure = figure_module.Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    steps, losses = _series(history, "loss")
    left.plot(steps, losses, color="tab:blue", alpha=0.25, linewidth=1)
    left.plot(steps, _smoothed(losses), color="tab:blue", label="training")
    left.plot(*_series(history, "eval_loss"), color="tab:orange", marker="o", label="evaluation")
    left.set(title="loss", xlabel="step", ylim=(0, None))
    left.legend(frameon=False)
    right.plot(*_series(history, f"eval_{metric}"), color="tab:orange", marker="o")
    right.set(title=f"{metric.replace('_', ' ')} on the evaluation data", xlabel="step")
    if best_step is not None:
        right.axvline(best_step, color="gray", linestyle=":", label=f"kept: step {best_step}")
        right.legend(frameon=False)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    figure.savefig(file, dpi=120)


def _series(history: Sequence[Mapping[str, Any]], name: str) -> tuple[list[int], list[float]]:
    rows = [row for row in history if name in row]
    return [row["step"] for row in rows], [row[name] for row in rows]


def _smoothed(values: Sequence[float]) -> list[float]:
    """Exponential running mean without the bias of its start."""
    smoothed, mean = [], 0.0
    for index, value in enumerate(values, 1):
        mean = _SMOOTH * mean + (1 - _SMOOTH) * value
        smoothed.append(mean / (1 - _SMOOTH**index))
    return smoothed

"""How the values are best rounded to int8 or fp8, found on real text."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from adakron_export.artifacts.manifest import Manifest
from adakron_export.graph.emulation import emulate
from adakron_export.graph.passes.static_quantization import Kind, Rounding, products_by_input, weight_of
from adakron_export.probing.watching import graph_runner
from adakron_export.runtimes.base import Array
from adakron_export.runtimes.ort import OrtRunner
from adakron_export.runtimes.space import NamedBatch

_log = logging.getLogger(__name__)

BINS = 2048
_LEVELS, _SMALLEST_BIN = 127, 32
_EXPONENTS = (0.25, 0.5, 0.65, 0.8, 1.0)
_NARROWEST = 1e-3  # of the widest channel; a channel that was always 0 in the text may not be in another


@dataclass(slots=True)
class MagnitudeHistogram:
    """How much of which magnitude there is; its range doubles as larger values come.

    Attributes:
        top: Where the last bin ends.
        counts: Contents of the bins, each ``top / BINS`` wide: the sums of the values' weights.
    """

    top: float = 0.0
    counts: Array = field(default_factory=lambda: np.zeros(BINS))

    def add(self, values: Array, weights: Array | float = 1.0) -> None:
        """Count values of any shape; an error in one matters as its weight says, which is broadcast to them."""
        magnitudes = np.abs(values.ravel()).astype(np.float64)
        largest = float(magnitudes.max(initial=0.0))
        if self.top == 0.0:
            self.top = largest
        while largest > self.top:
            self.top *= 2
            self.counts = np.concatenate([self.counts.reshape(-1, 2).sum(axis=1), np.zeros(BINS // 2)])
        if self.top > 0.0:
            matter = np.broadcast_to(weights, values.shape).ravel()
            self.counts += np.histogram(magnitudes, BINS, (0.0, self.top), weights=matter)[0]

    def best_range(self) -> float:
        """The magnitude that 127 shall stand for: the one with the smallest weighted squared error.

        What is smaller is rounded, with an error of ``step ** 2 / 12``; what is larger is cut off.
        """
        centers = (np.arange(BINS) + 0.5) * self.top / BINS
        ends = np.arange(_SMALLEST_BIN, BINS + 1)
        ranges = ends * self.top / BINS
        # Sums over the bins from each end on, of 1, of the magnitude and of its square: no loop over ranges.
        above = [
            np.concatenate([np.cumsum((self.counts * centers**power)[::-1])[::-1], [0.0]])[ends] for power in range(3)
        ]
        cut = above[2] - 2 * ranges * above[1] + ranges**2 * above[0]
        rounded = (self.counts.sum() - above[0]) * (ranges / _LEVELS) ** 2 / 12
        return float(ranges[np.argmin(cut + rounded)])


@dataclass(slots=True)
class ChannelStatistics:
    """The largest magnitude and the sum of squares of each channel, ``[channels]``."""

    largest: Array
    squares: Array
    count: int = 0

    def add(self, rows: Array) -> None:
        """Count rows, ``[n, channels]``."""
        np.maximum(self.largest, np.abs(rows).max(axis=0, initial=0.0), out=self.largest)
        self.squares += np.square(rows, dtype=np.float64).sum(axis=0)
        self.count += len(rows)


def best_smoothing(found: ChannelStatistics, weight: Array) -> Array | None:
    """What to divide each channel by, so that rounding it and the weights costs the least.

    Tried are powers of each channel's largest magnitude: 0 leaves the rounding error to the widest channel, 1 moves
    all of the difference between channels into the weights. Of each the squared error of the product is estimated:
    a value is off by ``step ** 2 / 12`` and weighs as the squares of its row of weights do; a weight likewise, by its
    column's step and the mean square of its channel.

    Args:
        found: Statistics of the values.
        weight: What they are multiplied with, ``[channels, out]``.

    Returns:
        ``[channels]``, with a geometric mean of 1; ``None`` where no power is better than 0.
    """
    widest = float(found.largest.max())
    if widest == 0.0:
        return None
    largest = np.maximum(found.largest, _NARROWEST * widest)
    rows, squares = np.square(weight).sum(axis=1), found.squares / max(found.count, 1)

    def error(smoothing: Array) -> float:
        step = (largest / smoothing).max() / _LEVELS
        columns = np.abs(smoothing[:, None] * weight).max(axis=0) / _LEVELS
        return float((smoothing**2 * rows).sum() * step**2 + (squares / smoothing**2).sum() * (columns**2).sum())

    tried = [np.exp(power * (np.log(largest) - np.log(largest).mean())) for power in _EXPONENTS]
    best = min(tried, key=error)
    return best if error(best) < error(np.ones_like(best)) else None


def calibrate(
    captured: ir.Model, manifest: Manifest, batches: Sequence[NamedBatch], *, kind: Kind = Kind.INT8,
    smoothing: Mapping[str, Array] | None = None,
) -> dict[str, Rounding]:  # fmt: skip
    """How every value is rounded that `StaticQuantizationPass` rounds.

    To fp8 small values are rounded as finely as large ones, so that neither smoothing nor cutting off would help.

    Args:
        captured: A graph in half precision, which is emulated.
        manifest: Its inputs.
        batches: Batches of real text; padding does not count.
        kind: What they are rounded to.
        smoothing: Divisors of the channels, by name of the value; found on the text by default, which is then run
            twice.
    """
    if kind is Kind.FP8:
        return _largest(captured, manifest, batches)
    weights = {
        str(value.name): np.concatenate([weight_of(node) for node in nodes], axis=1)
        for value, nodes in products_by_input(captured).items()
    }
    histograms = {name: MagnitudeHistogram() for name in weights}
    runner = _watched(captured, manifest, list(weights))
    if smoothing is None:
        smoothing = _smoothing(weights, _rows(runner, batches, "magnitudes"))
    divisors = {name: smoothing.get(name, np.ones(len(weight))) for name, weight in weights.items()}
    matter = {name: divisors[name] ** 2 * np.square(weight).sum(axis=1) for name, weight in weights.items()}
    for name, rows in _rows(runner, batches, "ranges"):
        histograms[name].add(rows / divisors[name], matter[name])
    return {name: Rounding(histograms[name].best_range(), smoothing.get(name)) for name in weights}


def _largest(captured: ir.Model, manifest: Manifest, batches: Sequence[NamedBatch]) -> dict[str, Rounding]:
    found = {str(value.name): 0.0 for value in products_by_input(captured)}
    runner = _watched(captured, manifest, list(found))
    for name, rows in _rows(runner, batches, "magnitudes"):
        found[name] = max(found[name], float(np.abs(rows).max(initial=0.0)))
    return {name: Rounding(largest) for name, largest in found.items()}


def _smoothing(weights: Mapping[str, Array], values: Iterable[tuple[str, Array]]) -> dict[str, Array]:
    channels = {name: ChannelStatistics(*np.zeros((2, len(weight)))) for name, weight in weights.items()}
    for name, rows in values:
        channels[name].add(rows)
    best = {name: best_smoothing(channels[name], weight) for name, weight in weights.items()}
    return {name: found for name, found in best.items() if found is not None}


def _watched(captured: ir.Model, manifest: Manifest, names: Sequence[str]) -> OrtRunner:
    """A runner whose outputs are the values of these names."""
    watched = emulate(captured)
    values = {str(value.name): value for node in watched.graph for value in node.outputs}
    watched.graph.outputs.clear()
    watched.graph.outputs.extend(values[name] for name in names)
    return graph_runner(watched, manifest.in_fp32(), watched=names)


def _rows(runner: OrtRunner, batches: Sequence[NamedBatch], what: str) -> Iterator[tuple[str, Array]]:
    """The values of each batch by name, ``[n, channels]``, without padding."""
    for number, batch in enumerate(batches, 1):
        _log.info("calibration: %s, batch %s of %s", what, number, len(batches))
        mask = batch.inputs.get("attention_mask")
        for name, value in runner.run(batch.inputs).items():
            whole = mask is None or value.shape[: mask.ndim] != mask.shape
            kept = value if whole or mask is None else value[mask.astype(bool)]
            yield name, kept.reshape(-1, kept.shape[-1])

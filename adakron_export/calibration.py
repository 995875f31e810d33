"""How large the values become that int8 rounds, found on real text."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir

from adakron_export.artifact import Artifact, Manifest, TensorInfo
from adakron_export.graph.emulation import emulate
from adakron_export.graph.passes.static_int8 import inputs_of_products
from adakron_export.onnx_file import write_model
from adakron_export.runtimes.base import Array
from adakron_export.runtimes.ort import OrtRunner
from adakron_export.validation.batches import NamedBatch

BINS = 2048
_LEVELS, _SMALLEST_BIN = 127, 32


@dataclass(slots=True)
class MagnitudeHistogram:
    """How often which magnitude occurs; its range doubles as larger values come.

    Attributes:
        top: Where the last bin ends.
        counts: Of the bins, each ``top / BINS`` wide.
    """

    top: float = 0.0
    counts: Array = field(default_factory=lambda: np.zeros(BINS))

    def add(self, values: Array) -> None:
        """Count values of any shape."""
        magnitudes = np.abs(values.ravel()).astype(np.float64)
        largest = float(magnitudes.max(initial=0.0))
        if self.top == 0.0:
            self.top = largest
        while largest > self.top:
            self.top *= 2
            self.counts = np.concatenate([self.counts.reshape(-1, 2).sum(axis=1), np.zeros(BINS // 2)])
        if self.top > 0.0:
            self.counts += np.histogram(magnitudes, BINS, (0.0, self.top))[0]

    def best_range(self) -> float:
        """The magnitude that 127 shall stand for: the one with the smallest mean squared error.

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


def calibrate(
    captured: ir.Model, manifest: Manifest, batches: Sequence[NamedBatch],
    progress: Callable[[str], None] = lambda _: None,
) -> dict[str, float]:  # fmt: skip
    """The range of every value that `StaticInt8Pass` rounds.

    Args:
        captured: A graph in half precision, which is emulated.
        manifest: Its inputs.
        batches: Of real text; padding does not count.
        progress: Told of each batch.

    Returns:
        By name, the magnitude that 127 shall stand for.
    """
    names = inputs_of_products(captured)
    found = {name: MagnitudeHistogram() for name in names}
    watched = emulate(captured)
    values = {str(value.name): value for node in watched.graph for value in node.outputs}
    watched.graph.outputs.clear()
    watched.graph.outputs.extend(values[name] for name in names)
    with tempfile.TemporaryDirectory() as folder:
        write_model(watched, Path(folder))
        outputs = tuple(TensorInfo(name, "float32", ()) for name in names)
        runner = OrtRunner(Artifact(Path(folder), replace(manifest, outputs=outputs)))
        for number, batch in enumerate(batches, 1):
            progress(f"batch {number} of {len(batches)} of the calibration")
            mask = batch.inputs.get("attention_mask")
            for name, value in runner.run(batch.inputs).items():
                whole = mask is None or value.shape[: mask.ndim] != mask.shape
                found[name].add(value if whole or mask is None else value[mask.astype(bool)])
    return {name: histogram.best_range() for name, histogram in found.items()}

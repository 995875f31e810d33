"""Compares two runners on batches and says whether they agree."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from adakron_export.runtimes.base import Array, Runner
from adakron_export.validation.batches import NamedBatch

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How far an output may be off: ``absolute + relative * the largest reference value``."""

    absolute: float
    relative: float = 0.0

    def limit(self, reference: Array) -> float:
        """The largest error allowed against these values."""
        return self.absolute + self.relative * float(np.abs(reference).max(initial=0.0))


# The relative part is what the dtype's own rounding, 2^-11 and 2^-8, comes to through the layers of a base model.
TOLERANCES = {
    "fp32": Tolerance(absolute=1e-4),
    "fp16": Tolerance(absolute=2e-3, relative=1e-2),
    "bf16": Tolerance(absolute=2e-2, relative=8e-2),
}


@dataclass(frozen=True, slots=True)
class OutputParity:
    """One output on one batch.

    Attributes:
        batch: What the batch is for.
        shape: Of ``input_ids`` or ``pixel_values``.
        output: The output's name.
        max_abs_error: The largest difference; ``inf`` where a value is not finite.
        mean_abs_error: The mean difference.
        limit: What ``max_abs_error`` may be.
        cosine: Of the two outputs as vectors.
        top1_agreement: Share of positions whose largest entry is the same one.
        non_finite: NaN and Inf in the candidate where the reference has none.
        passed: ``max_abs_error <= limit`` and nothing is non-finite.
    """

    batch: str
    shape: tuple[int, ...]
    output: str
    max_abs_error: float
    mean_abs_error: float
    limit: float
    cosine: float
    top1_agreement: float
    non_finite: int
    passed: bool


@dataclass(frozen=True, slots=True)
class ParityReport:
    """The comparison of a candidate with a reference.

    Attributes:
        reference: The reference's name.
        candidate: The candidate's name.
        tolerance: What was allowed.
        seed: Of the batches.
        rows: One per output and batch.
        overflow: In fp16, the first module with a value that is not finite, and on which batch.
        notes: What a reader should know.
    """

    reference: str
    candidate: str
    tolerance: Tolerance
    seed: int
    rows: tuple[OutputParity, ...]
    overflow: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether every row held and nothing overflowed."""
        return bool(self.rows) and all(row.passed for row in self.rows) and self.overflow is None

    @property
    def max_abs_error(self) -> float:
        """The largest difference of all; NaN counts as infinite."""
        return max((row.max_abs_error for row in self.rows), default=float("inf"))

    def to_json(self) -> dict[str, Any]:
        """As plain data; an infinite error is the string ``inf``, which JSON can hold."""
        content = asdict(self)
        for row in content["rows"]:
            for key in ("max_abs_error", "mean_abs_error"):
                if not np.isfinite(row[key]):
                    row[key] = "inf"
        worst = self.max_abs_error
        return {
            "format_version": 1,
            "passed": self.passed,
            "max_abs_error": worst if np.isfinite(worst) else "inf",
            **content,
        }


def compare(
    reference: Runner,
    candidate: Runner,
    batches: Sequence[NamedBatch],
    *,
    tolerance: Tolerance,
    progress: Progress = lambda _: None,
) -> list[OutputParity]:
    """Run both on every batch and compare every output; padding is not compared.

    Args:
        reference: What is right.
        candidate: What is held against it.
        batches: As of `make_batches`.
        tolerance: What is allowed.
        progress: Told of each batch before it runs.
    """
    rows = []
    for number, batch in enumerate(batches, 1):
        first = next(iter(batch.inputs.values()))
        progress(f"batch {number} of {len(batches)}: {batch.name}, {'x'.join(map(str, first.shape))}")
        expected, found = reference.run(batch.inputs), candidate.run(batch.inputs)
        for name in reference.output_names:
            mask = _token_mask(name, expected[name], batch)
            rows.append(_compare_output(name, batch, expected[name][mask], found[name][mask], tolerance))
    return rows


def _token_mask(name: str, output: Array, batch: NamedBatch) -> Any:
    """Selects what is no padding, where the output has a row per token."""
    mask = batch.inputs.get("attention_mask")
    per_token = output.ndim == 3 or name in ("start_logits", "end_logits")
    return mask.astype(bool) if mask is not None and per_token else ...


def _compare_output(name: str, batch: NamedBatch, expected: Array, found: Array, tolerance: Tolerance) -> OutputParity:
    expected, found = expected.astype(np.float64), found.astype(np.float64)
    error = np.abs(expected - found)
    worst = float(error.max(initial=0.0))
    limit = tolerance.limit(expected)
    non_finite = int((~np.isfinite(found) & np.isfinite(expected)).sum())
    norm = float(np.linalg.norm(expected) * np.linalg.norm(found))
    return OutputParity(
        batch=batch.name,
        shape=next(iter(batch.inputs.values())).shape,
        output=name,
        max_abs_error=worst if np.isfinite(worst) else float("inf"),
        mean_abs_error=float(error.mean()) if np.isfinite(worst) else float("inf"),
        limit=limit,
        cosine=float((expected * found).sum() / norm) if np.isfinite(norm) and norm > 0 else 0.0,
        top1_agreement=float((expected.argmax(-1) == found.argmax(-1)).mean()),
        non_finite=non_finite,
        passed=bool(worst <= limit and non_finite == 0),
    )

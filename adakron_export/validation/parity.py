"""Compares two runners on batches and says whether they agree."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from adakron_export.runtimes.base import Array, Runner
from adakron_export.validation.batches import NamedBatch
from adakron_export.validation.tolerance import Tolerance

if TYPE_CHECKING:
    from adakron_export.validation.accuracy import AccuracyReport
    from adakron_export.validation.divergence import Divergence, LayerError
    from adakron_export.validation.weights import WeightsReport

Progress = Callable[[str], None]
AT_LEAST = ("cosine", "top1_agreement")  # the other metrics are errors, of which less is better
_PER_TOKEN = ("start_logits", "end_logits")
_SCORES = ("logits", *_PER_TOKEN)
_ABOVE_NOISE = 10  # a vector shorter than so many times the error allowed has no direction to compare


@dataclass(frozen=True, slots=True)
class Check:
    """One metric of one output, and its verdict.

    Attributes:
        metric: Its name.
        value: As measured; NaN and Inf never pass.
        limit: At most this for an error, at least this for an agreement.
    """

    metric: str
    value: float
    limit: float

    @property
    def passed(self) -> bool:
        """Whether the value is within its limit."""
        return bool(self.value >= self.limit if self.metric in AT_LEAST else self.value <= self.limit)


@dataclass(frozen=True, slots=True)
class OutputParity:
    """One output on one batch.

    Attributes:
        batch: The batch's name.
        shape: Of ``input_ids`` or ``pixel_values``.
        output: The output's name.
        non_finite: NaN and Inf in the candidate where the reference has none.
        checks: One per metric that says something of this output: of the softmax only for logits, of directions
            only where a vector is longer than the error allowed.
    """

    batch: str
    shape: tuple[int, ...]
    output: str
    non_finite: int
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether every metric is within its limit and nothing is non-finite."""
        return self.non_finite == 0 and all(check.passed for check in self.checks)

    @property
    def failed(self) -> tuple[str, ...]:
        """The metrics that are not."""
        return tuple(check.metric for check in self.checks if not check.passed)

    def value(self, metric: str) -> float | None:
        """A metric's value; ``None`` where it says nothing of this output."""
        return next((check.value for check in self.checks if check.metric == metric), None)

    @property
    def max_abs_error(self) -> float:
        """The largest difference; ``inf`` where a value is not finite."""
        return next(check.value for check in self.checks if check.metric == "max_abs_error")

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        metrics = {
            check.metric: {"value": as_json(check.value), "limit": check.limit, "passed": check.passed}
            for check in self.checks
        }
        return {
            "batch": self.batch,
            "shape": list(self.shape),
            "output": self.output,
            "passed": self.passed,
            "non_finite": self.non_finite,
            "metrics": metrics,
        }


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
        accuracy: What labelled text showed, where there was some.
        divergence: Where the two part, if they do and it was looked for.
        layers: The layers of a comparison that held, where that was asked for.
        repeat: The command that repeats the smallest batch that failed.
        mismatches: In what the candidate is another model: inputs, lengths, labels, tokens or settings. Whatever the
            outputs say, the two are then not comparable.
        weights: What was found of the reference's parameters in the candidate's graph, where both show theirs.
    """

    reference: str
    candidate: str
    tolerance: Tolerance
    seed: int
    rows: tuple[OutputParity, ...]
    overflow: str | None = None
    notes: tuple[str, ...] = ()
    accuracy: AccuracyReport | None = None
    divergence: Divergence | None = None
    layers: tuple[LayerError, ...] = ()
    repeat: str | None = None
    mismatches: tuple[str, ...] = ()
    weights: WeightsReport | None = None

    @property
    def passed(self) -> bool:
        """Whether every row, the accuracy and the weights held, nothing overflowed, and the two are one model."""
        held = (self.accuracy is None or self.accuracy.passed) and (self.weights is None or self.weights.passed)
        same = self.overflow is None and not self.mismatches
        return bool(self.rows) and all(row.passed for row in self.rows) and held and same

    @property
    def max_abs_error(self) -> float:
        """The largest difference of all; NaN counts as infinite."""
        return max((row.max_abs_error for row in self.rows), default=float("inf"))

    def to_json(self) -> dict[str, Any]:
        """As plain data; an infinite error is the string ``inf``, which JSON can hold."""
        return {
            "format_version": 1,
            "passed": self.passed,
            "max_abs_error": as_json(self.max_abs_error),
            "reference": self.reference,
            "candidate": self.candidate,
            "tolerance": asdict(self.tolerance),
            "seed": self.seed,
            "rows": [row.to_json() for row in self.rows],
            "overflow": self.overflow,
            "notes": list(self.notes),
            "accuracy": self.accuracy.to_json() if self.accuracy else None,
            "divergence": self.divergence.to_json() if self.divergence else None,
            "layers": [layer.to_json() for layer in self.layers],
            "repeat": self.repeat,
            "mismatches": list(self.mismatches),
            "weights": self.weights.to_json() if self.weights else None,
        }


def as_json(value: float) -> float | str:
    """A number that JSON can hold."""
    return value if np.isfinite(value) else "inf"


def compare(
    reference: Runner,
    candidate: Runner,
    batches: Sequence[NamedBatch],
    *,
    tolerance: Tolerance,
    progress: Progress = lambda _: None,
) -> list[OutputParity]:
    """Run both on every batch and compare every output; padding is not compared.

    Of a row of nothing but padding no more is asked than that it is finite and leaves the other rows as they are:
    PyTorch's own attentions (`sdpa`, `eager`) answer it differently.

    Args:
        reference: What is right.
        candidate: What is held against it.
        batches: As of `make_batches`.
        tolerance: What is allowed.
        progress: Told of each batch before it runs.
    """
    rows = []
    for number, batch in enumerate(batches, 1):
        shape = next(iter(batch.inputs.values())).shape
        progress(f"batch {number} of {len(batches)}: {batch.name}, {'x'.join(map(str, shape))}")
        expected, found = reference.run(batch.inputs), candidate.run(batch.inputs)
        rows += compare_outputs(batch, expected, found, tolerance, outputs=reference.output_names)
    return rows


def compare_outputs(
    batch: NamedBatch, expected: Any, found: Any, tolerance: Tolerance, *, outputs: Iterable[str]
) -> list[OutputParity]:
    """Compare what two runners put out for one batch, one row per output."""
    return [_compare_output(name, batch, expected[name], found[name], tolerance) for name in outputs]


def _compare_output(name: str, batch: NamedBatch, expected: Array, found: Array, tolerance: Tolerance) -> OutputParity:
    shape = next(iter(batch.inputs.values())).shape
    if expected.shape != found.shape:
        raise ValueError(f"{name} has shape {found.shape} where the reference has {expected.shape}")
    mask = batch.inputs.get("attention_mask")
    undefined = 0
    if mask is not None:
        texts = mask.any(axis=1)
        undefined = int((~np.isfinite(found[~texts])).sum())
        expected, found, mask = expected[texts], found[texts], mask[texts]
    kept = mask.astype(bool) if mask is not None and (expected.ndim == 3 or name in _PER_TOKEN) else ...
    right, other = expected[kept].astype(np.float64), found[kept].astype(np.float64)
    if undefined:
        checks = [Check("max_abs_error", float("inf"), tolerance.limit(right))]
        return OutputParity(batch.name, shape, name, undefined, tuple(checks))
    with np.errstate(invalid="ignore", over="ignore"):
        error = np.abs(right - other)
    if not np.isfinite(error).all():
        non_finite = int((~np.isfinite(other) & np.isfinite(right)).sum())
        checks = [Check("max_abs_error", float("inf"), tolerance.limit(right))]
        return OutputParity(batch.name, shape, name, non_finite, tuple(checks))
    limit = tolerance.limit(right)
    checks = [
        Check("max_abs_error", float(error.max(initial=0.0)), limit),
        # An error that is everywhere is a shift, and no rounding.
        Check("mean_abs_error", float(error.mean()) if error.size else 0.0, limit / 2),
        *_norm_check(right, error, tolerance),
        *_direction_checks(right.reshape(-1, right.shape[-1]), other.reshape(-1, right.shape[-1]), tolerance),
    ]
    if name in _SCORES:
        left, second = (expected, found) if name in _PER_TOKEN else (right, other)
        checks += _softmax_checks(_scores(name, left, mask), _scores(name, second, mask), tolerance)
    return OutputParity(batch.name, shape, name, 0, tuple(checks))


def _norm_check(right: Array, error: Array, tolerance: Tolerance) -> list[Check]:
    """The relative error of the whole output; without a relative limit, against what the absolute one comes to."""
    norm, size = float(np.linalg.norm(right)), np.sqrt(right.size)
    if norm <= _ABOVE_NOISE * tolerance.absolute * size:
        return []
    limit = tolerance.relative + tolerance.absolute * size / norm
    return [Check("relative_error", float(np.linalg.norm(error)) / norm, limit)]


def _direction_checks(right: Array, other: Array, tolerance: Tolerance) -> list[Check]:
    """The smallest cosine of two vectors, of those that are long enough to have a direction."""
    norms = np.linalg.norm(right, axis=-1)
    known = norms > _ABOVE_NOISE * tolerance.absolute * np.sqrt(right.shape[-1])
    if right.shape[-1] < 2 or not known.any():
        return []
    products = (right * other).sum(-1)[known]
    both = norms[known] * np.linalg.norm(other[known], axis=-1)
    return [Check("cosine", float((products / np.maximum(both, np.finfo(float).tiny)).min()), tolerance.cosine)]


def _scores(name: str, output: Array, mask: Array | None) -> Array:
    """Scores that compete with one another, ``[rows, classes]``; a question's are those of its tokens."""
    scores = output.astype(np.float64)
    if name in _PER_TOKEN and mask is not None:
        return np.where(mask.astype(bool), scores, -1e30)
    return scores.reshape(-1, scores.shape[-1])


def _softmax_checks(right: Array, other: Array, tolerance: Tolerance) -> list[Check]:
    if right.shape[-1] < 2:
        return []
    ordered = np.sort(right, axis=-1)
    tied = ordered[:, -1] - ordered[:, -2] <= 2 * (tolerance.absolute + tolerance.relative * np.abs(ordered[:, -1]))
    agree = (right.argmax(-1) == other.argmax(-1)) | tied
    log_right, log_other = _log_softmax(right), _log_softmax(other)
    divergence = (np.exp(log_right) * (log_right - log_other)).sum(-1)
    return [
        Check("top1_agreement", float(agree.mean()), tolerance.top1),
        Check("kl", float(np.maximum(divergence, 0.0).max(initial=0.0)), tolerance.kl),
    ]


def _log_softmax(scores: Array) -> Array:
    shifted = scores - scores.max(-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(-1, keepdims=True)))

"""Compares two runners on batches and says whether they agree."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from adakron_export.graph.tolerance import Tolerance
from adakron_export.quantities import as_json
from adakron_export.runtimes.base import Array, Runner
from adakron_export.runtimes.space import NamedBatch
from adakron_export.tasks import PRESENT

if TYPE_CHECKING:
    from adakron_export.validation.accuracy import AccuracyReport
    from adakron_export.validation.divergence import Divergence, LayerError
    from adakron_export.validation.weights import WeightsReport

_log = logging.getLogger(__name__)

AT_LEAST = ("cosine", "top1_agreement", "token_identity")  # the other metrics are errors, of which less is better
_PER_TOKEN = ("start_logits", "end_logits")
_SCORES = ("logits", *_PER_TOKEN)
_ROWS = 64  # of scores whose softmax is compared at once
_ABOVE_NOISE = 10  # a vector shorter than so many times the error allowed has no direction to compare


@dataclass(frozen=True, slots=True)
class Check:
    """One metric of one output, and its verdict.

    Attributes:
        metric: Its name.
        value: What was measured; NaN and Inf never pass.
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
        shape: Shape of ``input_ids`` or ``pixel_values``.
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
        """The largest difference; ``inf`` where a value is not finite, and 0 of tokens, which differ or do not."""
        return next((check.value for check in self.checks if check.metric == "max_abs_error"), 0.0)

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
        seed: Seed of the batches.
        rows: One per output and batch.
        overflow: The first module of a half-precision model with a value that is not finite, and on which batch.
        notes: What a reader should know.
        accuracy: What labelled text showed, where there was some.
        divergence: Where the two part, if they do and it was looked for.
        layers: The layers of a comparison that held, where that was asked for.
        repeat: The command that repeats the smallest batch that failed.
        mismatches: What makes the candidate another model: inputs, lengths, labels, tokens or settings. Whatever the
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


def compare(
    reference: Runner,
    candidate: Runner,
    batches: Sequence[NamedBatch],
    *,
    tolerance: Tolerance,
) -> list[OutputParity]:
    """Run both on every batch and compare every output; padding is not compared.

    Of a row of nothing but padding no more is asked than that it is finite and leaves the other rows as they are:
    PyTorch's own attentions (`sdpa`, `eager`) answer it differently.

    Args:
        reference: What is right.
        candidate: What is held against it.
        batches: What `make_batches` made.
        tolerance: What is allowed.
    """
    rows = []
    for number, batch in enumerate(batches, 1):
        shape = next(iter(batch.inputs.values())).shape
        _log.info("batch %s of %s: %s, %s", number, len(batches), batch.name, "x".join(map(str, shape)))
        of_reference, of_candidate = _outputs(reference, batch), _outputs(candidate, batch)
        rows += compare_outputs(batch, of_reference, of_candidate, tolerance, outputs=reference.output_names)
        kept = [name for name in of_reference if name.startswith(PRESENT) and name in of_candidate]
        if kept:
            rows.append(_worst(compare_outputs(batch, of_reference, of_candidate, tolerance, outputs=kept)))
    return rows


def _outputs(runner: Any, batch: NamedBatch) -> dict[str, Array]:
    """All that a runner puts out, what it keeps among them."""
    run: Callable[..., dict[str, Array]] = getattr(runner, "run_cached", runner.run)
    return run(batch.inputs)


def _worst(rows: Sequence[OutputParity]) -> OutputParity:
    """Keys and values of all layers in one row: of each metric the one that is nearest to its limit, or over it."""
    worst: dict[str, Check] = {}
    for check in (check for row in rows for check in row.checks):
        known = worst.get(check.metric)
        if known is None or _share(check) > _share(known):
            worst[check.metric] = check
    return replace(
        rows[0], output="present", non_finite=sum(row.non_finite for row in rows), checks=tuple(worst.values())
    )


def _share(check: Check) -> float:
    """How much of what is allowed was used."""
    value, limit = (1 - check.value, 1 - check.limit) if check.metric in AT_LEAST else (check.value, check.limit)
    return value / limit if limit else float("inf") if value else 0.0


def compare_outputs(
    batch: NamedBatch, reference: Any, candidate: Any, tolerance: Tolerance, *, outputs: Iterable[str]
) -> list[OutputParity]:
    """Compare what two runners put out for one batch, one row per output."""
    return [_compare_output(name, batch, reference[name], candidate[name], tolerance) for name in outputs]


def _compare_output(
    name: str, batch: NamedBatch, reference: Array, candidate: Array, tolerance: Tolerance
) -> OutputParity:
    shape = next(iter(batch.inputs.values())).shape
    if reference.shape != candidate.shape:
        raise ValueError(f"{name} has shape {candidate.shape} where the reference has {reference.shape}")
    mask = batch.inputs.get("attention_mask")
    undefined = 0
    if mask is not None:
        texts = mask.any(axis=1)
        undefined = int((~np.isfinite(candidate[~texts])).sum())
        reference, candidate, mask = reference[texts], candidate[texts], mask[texts]
    if name.startswith(PRESENT):  # [batch, heads, tokens, width]
        reference, candidate = reference.swapaxes(1, 2), candidate.swapaxes(1, 2)
        kept: Any = mask.astype(bool) if mask is not None else ...
    else:
        if mask is not None and len(shape) == 2:
            mask = mask[:, -shape[1] :]  # of the new tokens
        kept = mask.astype(bool) if mask is not None and (reference.ndim == 3 or name in _PER_TOKEN) else ...
    kept_reference, kept_candidate = reference[kept].astype(np.float64), candidate[kept].astype(np.float64)
    if undefined:
        checks = [Check("max_abs_error", float("inf"), tolerance.limit(kept_reference))]
        return OutputParity(batch.name, shape, name, undefined, tuple(checks))
    with np.errstate(invalid="ignore", over="ignore"):
        error = np.abs(kept_reference - kept_candidate)
    if not np.isfinite(error).all():
        non_finite = int((~np.isfinite(kept_candidate) & np.isfinite(kept_reference)).sum())
        checks = [Check("max_abs_error", float("inf"), tolerance.limit(kept_reference))]
        return OutputParity(batch.name, shape, name, non_finite, tuple(checks))
    limit = tolerance.limit(kept_reference)
    checks = [
        Check("max_abs_error", float(error.max(initial=0.0)), limit),
        # An error that is everywhere is a shift, and no rounding.
        Check("mean_abs_error", float(error.mean()) if error.size else 0.0, limit / 2),
        *_norm_check(kept_reference, error, tolerance),
        *_direction_checks(_vectors(kept_reference), _vectors(kept_candidate), tolerance),
    ]
    if name in _SCORES:
        first, second = (reference, candidate) if name in _PER_TOKEN else (kept_reference, kept_candidate)
        checks += _softmax_checks(_scores(name, first, mask), _scores(name, second, mask), tolerance)
    return OutputParity(batch.name, shape, name, 0, tuple(checks))


def _vectors(output: Array) -> Array:
    """``[vectors, size]``."""
    return output.reshape(-1, output.shape[-1])


def _norm_check(reference: Array, error: Array, tolerance: Tolerance) -> list[Check]:
    """The relative error of the whole output; without a relative limit, against what the absolute one comes to."""
    norm, size = float(np.linalg.norm(reference)), np.sqrt(reference.size)
    if norm <= _ABOVE_NOISE * tolerance.absolute * size:
        return []
    limit = tolerance.relative + tolerance.absolute * size / norm
    return [Check("relative_error", float(np.linalg.norm(error)) / norm, limit)]


def _direction_checks(reference: Array, candidate: Array, tolerance: Tolerance) -> list[Check]:
    """The smallest cosine of two vectors, of those that are long enough to have a direction."""
    norms = np.linalg.norm(reference, axis=-1)
    known = norms > _ABOVE_NOISE * tolerance.absolute * np.sqrt(reference.shape[-1])
    if reference.shape[-1] < 2 or not known.any():
        return []
    products = (reference * candidate).sum(-1)[known]
    both = norms[known] * np.linalg.norm(candidate[known], axis=-1)
    return [Check("cosine", float((products / np.maximum(both, np.finfo(float).tiny)).min()), tolerance.cosine)]


def _scores(name: str, output: Array, mask: Array | None) -> Array:
    """Scores that compete with one another, ``[rows, classes]``; a question's are those of its tokens."""
    scores = output.astype(np.float64, copy=False)
    if name in _PER_TOKEN and mask is not None:
        return np.where(mask.astype(bool), scores, -1e30)
    return scores.reshape(-1, scores.shape[-1])


def _softmax_checks(reference: Array, candidate: Array, tolerance: Tolerance) -> list[Check]:
    if reference.shape[-1] < 2:
        return []
    agreed, divergence = 0, 0.0
    for start in range(0, len(reference), _ROWS):  # a decoder's logits are large, and this makes several copies
        one, other = reference[start : start + _ROWS], candidate[start : start + _ROWS]
        agreed += int(((one.argmax(-1) == other.argmax(-1)) | is_tied(one, tolerance)).sum())
        log_one, log_other = _log_softmax(one), _log_softmax(other)
        found = (np.exp(log_one) * (log_one - log_other)).sum(-1).max()
        divergence = float(np.maximum(divergence, found))  # NaN stays NaN
    return [
        Check("top1_agreement", agreed / max(1, len(reference)), tolerance.top1),
        Check("kl", divergence, tolerance.kl),
    ]


def is_tied(scores: Array, tolerance: Tolerance) -> Array:
    """Whether the two largest scores of each row, ``[rows, classes]``, are nearer than what is allowed of both."""
    ordered = np.sort(scores, axis=-1)
    allowed = 2 * (tolerance.absolute + tolerance.relative * np.abs(ordered[:, -1]))
    return np.asarray(ordered[:, -1] - ordered[:, -2] <= allowed)


def _log_softmax(scores: Array) -> Array:
    shifted = scores - scores.max(-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(-1, keepdims=True)))

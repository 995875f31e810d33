"""Tries dtypes from the fastest to the most accurate, and keeps the first one that holds on labelled text."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from adakron_export.artifacts.artifact import Artifact, Attempt
from adakron_export.errors import DataError, ExportError
from adakron_export.graph.dtypes import DTYPES, dtype_named
from adakron_export.graph.targets import GraphSpec
from adakron_export.runtimes.base import Array, Batch
from adakron_export.subjects.opening import Purpose, open_artifact_on
from adakron_export.validation.texts import EvaluationData, TextPair, compare_on_data

if TYPE_CHECKING:
    from adakron_export.checkpoints.task_model import TaskModel
    from adakron_export.runtimes.eager import EagerRunner
    from adakron_export.validation.accuracy import AccuracyReport

_log = logging.getLogger(__name__)


def rungs_of(spec: GraphSpec, max_drop: float | None, *, has_text: bool) -> list[GraphSpec]:
    """From the fastest to the most accurate; the spec alone, where no accuracy is asked for.

    Args:
        spec: The first one; complete.
        max_drop: `Limits.max_drop`.
        has_text: Whether there is text to measure it on.

    Raises:
        ExportError: There is no text, or the spec is not quantised, so that there is nothing to fall back from.
    """
    if max_drop is None:
        return [spec]
    if not has_text:
        raise ExportError("max_drop needs labelled text, or any where the model writes; pass --data (data=...)")
    dtype = dtype_named(spec.dtype)
    if not dtype.quantised:
        able = ", ".join(row.name for row in DTYPES.values() if row.quantised)
        raise ExportError(f"max_drop is for {able}, which fall back to fp32 or fp16; not {spec.dtype}")
    rungs = [spec]
    while dtype.falls_back_to is not None:
        dtype = dtype_named(dtype.falls_back_to)
        rungs.append(replace(spec, dtype=dtype.name))
    if spec.target in (DTYPES["int8"].dynamic or ()) and not spec.per_token:
        rungs.append(replace(spec, dtype="int8", per_token=True))
    return [*rungs, replace(spec, dtype=spec.floating, per_token=False)]


def first_that_holds(
    rungs: Sequence[GraphSpec], make: Callable[[GraphSpec], Artifact], judge: Judge | None
) -> tuple[Artifact, tuple[Attempt, ...]]:
    """The artifact of the first rung that is good enough, or of the last one; without a judge of the first.

    Args:
        rungs: The specs, from the fastest to the most accurate.
        make: Makes the artifact of a rung in the place of the one before.
        judge: Says what is good enough.
    """
    attempts: list[Attempt] = []
    for rung in rungs:
        artifact = make(rung)
        if judge is None:
            break
        attempts.append(judge.judge(rung, artifact))
        if attempts[-1].held:
            break
    return artifact, tuple(attempts)


class Judge:
    """Holds artifacts to labelled text.

    Args:
        eager: The model, which eager PyTorch runs once.
        text: Labelled.
        max_drop: Largest drop of the first metric, such as 0.005 of an accuracy from 0 to 1.
        device: Where artifacts run.

    Raises:
        DataError: The text has no labels.
    """

    def __init__(self, eager: TaskModel, text: EvaluationData, *, max_drop: float, device: str) -> None:
        from adakron_export.runtimes.eager import EagerRunner

        if not text.metrics:
            raise DataError(f"{text.source} has no labels that this model knows; accuracy needs them")
        self._reference = _Remembering(EagerRunner(eager))
        self._device = device
        self._text = text
        self._max_drop = max_drop

    def judge(self, rung: GraphSpec, artifact: Artifact) -> Attempt:
        """Run an artifact on the text; half precision in ONNX Runtime on the CPU is emulated."""
        _log.info("hold %s to %s", rung.label, self._text.source)
        runner = open_artifact_on(artifact, self._device, purpose=Purpose.COMPARE)
        texts, tolerance = TextPair(self._text, self._text), dtype_named(artifact.manifest.spec.dtype).tolerance
        _, report = compare_on_data(self._reference, runner, texts, tolerance=tolerance, max_drop=self._max_drop)
        assert report is not None
        return _attempt(rung, report, artifact.size_bytes)


def _attempt(rung: GraphSpec, report: AccuracyReport, size_bytes: int) -> Attempt:
    first = report.metrics[0]
    return Attempt(rung.label, first.metric, first.reference, first.candidate, len(report.flips), report.examples,
                   size_bytes, report.passed)  # fmt: skip


class _Remembering:
    """A runner that computes each batch once."""

    def __init__(self, runner: EagerRunner) -> None:
        self._runner = runner
        self._known: dict[int, dict[str, Array]] = {}
        self.name, self.input_names, self.output_names = runner.name, runner.input_names, runner.output_names
        self.on_gpu = runner.on_gpu

    def run(self, batch: Batch) -> dict[str, Array]:
        """Run one batch; see `Runner.run`."""
        if id(batch) not in self._known:
            self._known[id(batch)] = self._runner.run(batch)
        return self._known[id(batch)]

    def prepare(self, batch: Batch) -> Callable[[], float]:
        """A timed run; see `Runner.prepare`."""
        return self._runner.prepare(batch)

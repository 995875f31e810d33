"""Tries dtypes from the fastest to the most accurate, and keeps the first one that holds on labelled text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adakron_export.artifact import INT4, QUANTISED_DTYPES, Artifact, Attempt
from adakron_export.device import Device
from adakron_export.errors import DataError, ExportError
from adakron_export.evaluation_data import EvaluationData, compare_on_data
from adakron_export.runtimes.base import Array, Batch
from adakron_export.sides import artifact_runner
from adakron_export.validation.tolerance import tolerance_for

if TYPE_CHECKING:
    from adakron_export.adapter.task_model import TaskModel
    from adakron_export.graph.targets import Target
    from adakron_export.runtimes.eager import EagerRunner
    from adakron_export.validation.accuracy import AccuracyReport


@dataclass(frozen=True, slots=True)
class Rung:
    """What is tried.

    Attributes:
        dtype: Of the graph.
        per_token: As of `DynamicInt8Pass`.
    """

    dtype: str
    per_token: bool = False

    @property
    def label(self) -> str:
        """As people read it."""
        return f"{self.dtype}, scales per token" if self.per_token else self.dtype


def rungs_of(target: Target, dtype: str, max_accuracy_drop: float | None, data: str | None) -> list[Rung]:
    """From the fastest to the most accurate; the dtype alone, where no accuracy is asked for.

    Raises:
        ExportError: The first one is not in 8 bits or 4, so that there is nothing to fall back from, the drop is no
            share of 100 points, or there is no text to measure it on.
    """
    if max_accuracy_drop is None:
        return [Rung(dtype)]
    if data is None:
        raise ExportError("a largest accuracy drop needs labelled text to measure it on; pass --data (data=...)")
    if not 0 <= max_accuracy_drop <= 100:
        raise ExportError(f"the largest accuracy drop is {max_accuracy_drop}; it must lie between 0 and 100 points")
    if dtype not in (*QUANTISED_DTYPES, INT4):
        able = ", ".join((*QUANTISED_DTYPES, INT4))
        raise ExportError(f"a largest accuracy drop is for {able}, which fall back to fp32 or fp16; not {dtype}")
    first = [Rung(INT4), Rung("int8")] if dtype == INT4 else [Rung(dtype)]
    between = [Rung("int8", per_token=True)] if target.dynamic_int8 else []
    return [*first, *between, Rung(target.floating(dtype))]


def first_that_holds(
    rungs: Sequence[Rung], make: Callable[[Rung], Artifact], judge: Judge | None
) -> tuple[Artifact, tuple[Attempt, ...]]:
    """The artifact of the first rung that is good enough, or of the last one; without a judge of the first.

    Args:
        rungs: From the fastest to the most accurate.
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
        max_drop: By how much the first metric may be worse, such as 0.005 of an accuracy from 0 to 1.
        device: Where artifacts run.
        progress: Told of each batch.

    Raises:
        DataError: The text has no labels.
    """

    def __init__(
        self, eager: TaskModel, text: EvaluationData, *, max_drop: float, device: Device,
        progress: Callable[[str], None],
    ) -> None:  # fmt: skip
        from adakron_export.runtimes.eager import EagerRunner

        if text.data is None:
            raise DataError(f"{text.source} has no labels that this model knows; accuracy needs them")
        self._reference = _Remembering(EagerRunner(eager))
        self._device = device
        self._text = text
        self._max_drop = max_drop
        self._progress = progress

    def judge(self, rung: Rung, artifact: Artifact) -> Attempt:
        """Run an artifact on the text; half precision in ONNX Runtime on the CPU is emulated."""
        self._progress(f"hold {rung.label} to {self._text.source}")
        runner = artifact_runner(artifact, self._device)
        tolerance = tolerance_for(artifact.manifest.dtype)
        _, report = compare_on_data(self._reference, runner, self._text, self._text, tolerance=tolerance,
                                    max_drop=self._max_drop, progress=self._progress)  # fmt: skip
        assert report is not None
        return _attempt(rung, report, artifact.size_bytes)


def _attempt(rung: Rung, report: AccuracyReport, size_bytes: int) -> Attempt:
    first = report.metrics[0]
    return Attempt(rung.label, first.metric, first.reference, first.candidate, len(report.flips), report.examples,
                   size_bytes, report.passed)  # fmt: skip


class _Remembering:
    """A runner that computes each batch once."""

    def __init__(self, runner: EagerRunner) -> None:
        self._runner = runner
        self._known: dict[int, dict[str, Array]] = {}
        self.name, self.input_names, self.output_names = runner.name, runner.input_names, runner.output_names

    def run(self, batch: Batch) -> dict[str, Array]:
        """Run one batch; see `Runner.run`."""
        if id(batch) not in self._known:
            self._known[id(batch)] = self._runner.run(batch)
        return self._known[id(batch)]

    def prepare(self, batch: Batch) -> Callable[[], float]:
        """A timed run; see `Runner.prepare`."""
        return self._runner.prepare(batch)

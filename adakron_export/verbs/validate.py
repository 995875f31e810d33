"""Proves an artifact against its checkpoint, or any two sides against each other."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from adakron_export.errors import CheckpointError, DataError, ExportError
from adakron_export.files.places import check_there
from adakron_export.options.fields import words_of
from adakron_export.runtimes.space import InputSpace, NamedBatch
from adakron_export.subjects.opened import Opened, OpenedArtifact, OpenedCheckpoint, tokenizer_folder
from adakron_export.subjects.opening import Purpose, open_subject, task_of_exported
from adakron_export.subjects.subject import Subject, as_subject
from adakron_export.validation.comparison import (
    Sides,
    common_space,
    compare_weights_of,
    dtype_of,
    graph_of,
    mismatches_of,
    not_comparable,
    same_signature,
)
from adakron_export.validation.diagnosis import compare_layers, find_divergence
from adakron_export.validation.limits import Batches, Limits
from adakron_export.validation.parity import ParityReport

if TYPE_CHECKING:
    import onnx_ir as ir

    from adakron_export.data.settings import TextSettings
    from adakron_export.validation.texts import EvaluationData

_log = logging.getLogger(__name__)


def validate(
    artifact: str | Path | Subject,
    *,
    against: str | Path | Subject,
    data: str | Path | None = None,
    text: TextSettings | None = None,
    limits: Limits | None = None,
    batches: Batches | None = None,
    layers: bool = False,
) -> ParityReport:
    """Compare a candidate with a reference: an artifact or an engine with its checkpoint in eager PyTorch, unfolded.

    Args:
        artifact: The candidate: an exported folder, that of an engine, or a checkpoint.
        against: The reference: the checkpoint, as for `export_onnx`, or another artifact or engine.
        data: Text to run both on, as for training; with labels, the task's metrics of both are compared.
        text: How that text is read.
        limits: How far the candidate may be off; the tolerance of its dtype by default.
        batches: What both are run on.
        layers: Compare the layers too where the outputs agree; where they do not, that is done anyway.

    Raises:
        ArtifactError: The artifact is damaged.
        EngineError: The engine is damaged, or does not belong to this machine.
        CheckpointError: The checkpoint cannot be read.
        RunnerError: The device is not available.
        DataError: The text cannot be read, or has labels that the model does not know.
        ExportError: An option has no use without another one, or a batch's name is unknown.
    """
    data = None if data is None else str(data)
    asked = _asked(artifact, against, data, text, limits, batches)
    reference = open_subject(asked.reference, Purpose.COMPARE)
    candidate = open_subject(asked.candidate, Purpose.COMPARE)
    graph = graph_of(candidate)
    tolerance = asked.limits.tolerance(dtype_of(candidate, graph))
    seed = asked.batches.seed
    mismatches = mismatches_of(reference, candidate, graph)
    if not same_signature(reference, candidate):
        return not_comparable(reference, candidate, tolerance=tolerance, seed=seed, mismatches=mismatches)
    sides = Sides(reference, _as_it_is(candidate, graph), common_space(reference, candidate, graph), tolerance)
    texts = _read_text(asked, reference, sides.space) if data is not None else None
    made = _chosen([*sides.batches(seed=seed), *(texts.batches if texts else ())], asked.batches.batch)
    one = asked.batches.batch is not None
    generated = [each for each in made if not each.name.startswith("data-")]
    report = sides.compare(made if one else generated, seed=seed)
    weights = compare_weights_of(reference, candidate, graph)
    report = replace(report, mismatches=(*mismatches, *report.mismatches), weights=weights)
    if texts is not None and not one:
        own = _read_text(asked, candidate, candidate.space) if mismatches and asked.candidate.is_exported else texts
        report = _with_text(report, sides, texts, own, asked.limits)
    smallest = _smallest_wrong(report, made)
    if smallest is None:
        return _with_layers(report, sides, made[-1]) if layers and report.rows else report
    _log.info("look for the first layer that diverges")
    found = find_divergence(reference, sides.candidate, smallest, tolerance=tolerance)
    return replace(report, divergence=found, repeat=asked.command(smallest))


@dataclass(frozen=True, slots=True)
class _Asked:
    """What was asked for, complete."""

    candidate: Subject
    reference: Subject
    data: str | None
    text: TextSettings | None
    limits: Limits
    batches: Batches

    def command(self, batch: NamedBatch) -> str:
        """The command line that repeats a batch, defaults left out."""
        against = f"{self.candidate.adapter}={self.reference.path}" if self.candidate.adapter else self.reference.path
        words = ["adakron-export", "validate", str(self.candidate.path), "--against", str(against)]
        words += words_of(self.candidate, "device", "backbone", "allow_engine_code")
        words += words_of(self.reference, "backbone")
        words += words_of(self.reference, "device", "precision", prefix="against-")
        words += words_of(replace(self.limits, max_drop=None))
        of_text = batch.name.startswith("data-")
        words += ["--data", str(self.data)] if of_text else []
        words += words_of(self.text) if of_text and self.text is not None else []
        made_of = replace(self.batches, batch=batch.name, limit=self.batches.limit if of_text else None)
        return shlex.join([*words, "--seed", str(made_of.seed), *words_of(made_of, "batch", "limit")])


def _asked(
    artifact: str | Path | Subject, against: str | Path | Subject, data: str | None, text: TextSettings | None,
    limits: Limits | None, batches: Batches | None,
) -> _Asked:  # fmt: skip
    """The records with their defaults, and the reference's task; what has no use is refused.

    Raises:
        ExportError: An option is about text, and there is none.
    """
    candidate, reference = as_subject(artifact), as_subject(against)
    limits, batches = limits or Limits(), batches or Batches()
    useless = {"text": text, "max_drop": limits.max_drop, "limit": batches.limit}
    for name, value in useless.items():
        if data is None and value is not None:
            raise ExportError(f"{name} is about the text to run both sides on; pass --data (data=...) too")
    if batches.batch is not None and limits.max_drop is not None:
        raise ExportError("max_drop is about all of the text, and batch names one; leave out one of them")
    for side in (candidate, reference):
        check_there(side.path, CheckpointError)
    if not reference.is_exported and reference.task is None and candidate.is_exported:
        reference = replace(reference, task=task_of_exported(candidate.path))
    return _Asked(candidate, reference, data, text, limits, batches)


def _with_text(
    report: ParityReport, sides: Sides, texts: EvaluationData, own: EvaluationData, limits: Limits
) -> ParityReport:
    """With what text shows; the candidate reads it by its own tokenizer and labels."""
    from adakron_export.validation.texts import TextPair, compare_on_data

    if limits.max_drop is not None and not (texts.metrics and own.metrics):
        raise DataError(f"{texts.source} has no labels that this model knows; max_drop needs them")
    runners, pair = (sides.reference.runner, sides.candidate.runner), TextPair(texts, own)
    rows, accuracy = compare_on_data(*runners, pair, tolerance=sides.tolerance, max_drop=limits.drop)
    return replace(report, rows=(*report.rows, *rows), accuracy=accuracy)


def _with_layers(report: ParityReport, sides: Sides, batch: NamedBatch) -> ParityReport:
    _log.info("compare the layers")
    layers = compare_layers(sides.reference, sides.candidate, batch, tolerance=sides.tolerance)
    return replace(report, layers=layers)


def _as_it_is(candidate: Opened, graph: ir.Model | None) -> Opened:
    """The candidate with what its graph holds in the place of what its manifest says."""
    if not isinstance(candidate, OpenedArtifact):
        return candidate
    manifest = candidate.artifact.manifest
    manifest = replace(manifest, spec=replace(manifest.spec, dtype=dtype_of(candidate, graph)))
    return OpenedArtifact(candidate.subject, candidate.runner, replace(candidate.artifact, manifest=manifest))


def _smallest_wrong(report: ParityReport, batches: Sequence[NamedBatch]) -> NamedBatch | None:
    failed = {row.batch for row in report.rows if not row.passed}
    wrong = [batch for batch in batches if batch.name in failed]
    return min(wrong, key=lambda batch: next(iter(batch.inputs.values())).size, default=None)


def _read_text(asked: _Asked, side: Opened, space: InputSpace) -> EvaluationData:
    """The text as the tokenizer and the labels of a side make it."""
    from adakron_export.data.settings import TextSettings
    from adakron_export.validation.texts import Text, TextModel, read_evaluation, tokenizer_of

    loaded = side.checkpoint if isinstance(side, OpenedCheckpoint) else None
    folder = tokenizer_folder(loaded) if loaded is not None else side.folders[0]
    model = TextModel(side.task, side.config, tokenizer_of(folder), space)
    text = Text(str(asked.data), asked.text or TextSettings())
    return read_evaluation(text, model, limit=asked.batches.limit, seed=asked.batches.seed)


def _chosen(batches: list[NamedBatch], name: str | None) -> list[NamedBatch]:
    chosen = [batch for batch in batches if name in (None, batch.name)]
    if not chosen:
        raise ExportError(f"there is no batch {name!r}; there are {', '.join(batch.name for batch in batches)}")
    return chosen

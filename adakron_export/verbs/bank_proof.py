"""Compares the adapters of a bank with their eager models, alone and in batches with one another."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from adakron_export.artifacts.adapters import adapter_folder
from adakron_export.artifacts.artifact import Artifact
from adakron_export.artifacts.manifest import BASE, PARITY
from adakron_export.errors import ArtifactError
from adakron_export.files.records import write_json
from adakron_export.runtimes.bank import BankRunner, OneAdapter
from adakron_export.subjects.opened import OpenedArtifact
from adakron_export.subjects.opening import Purpose, is_bank, open_artifact_on, open_subject, task_of_exported
from adakron_export.subjects.subject import Subject, as_subject
from adakron_export.validation.comparison import (
    Sides,
    common_space,
    compare_weights_of,
    dtype_of,
    graph_of,
    mismatches_of,
)
from adakron_export.validation.limits import Batches, Limits
from adakron_export.validation.mixing import Answers, answered, compare_mixed, completed
from adakron_export.verbs.members import Member
from adakron_export.verbs.validate import validate

if TYPE_CHECKING:
    from adakron_export.data.settings import TextSettings
    from adakron_export.validation.parity import ParityReport

_log = logging.getLogger(__name__)


def prove(artifact: Artifact, members: Sequence[Member], limits: Limits) -> dict[str, ParityReport]:
    """Compare members of a bank with their eager models, alone and in batches with the others.

    Args:
        artifact: The bank, with the members in it; it may be one that is being made.
        members: Those to compare.
        limits: How far each may be off; by default the tolerance of what the graph holds.

    Returns:
        A report for each, which is written into its folder too.
    """
    device = artifact.manifest.spec.lowered_for.runtime
    runner = open_artifact_on(artifact, device, purpose=Purpose.COMPARE)
    assert isinstance(runner, BankRunner)
    reports: dict[str, ParityReport] = {}
    answers, held = None, artifact.manifest.spec.dtype
    for member in members:
        _log.info("compare adapter %s", member.name)
        subject = Subject(str(artifact.folder), device=device, adapter=member.name)
        candidate = OpenedArtifact(subject, runner.adapter(member.name), artifact)
        graph = candidate.graph()
        held = dtype_of(candidate, graph)
        with member.eager() as reference:
            sides = Sides(reference, candidate, common_space(reference, candidate, graph), limits.tolerance(held))
            report = sides.compare(sides.batches(), seed=0)
            answers = answered(answers, member.name, reference)
            if member.name != BASE:  # whose labels and weights are those of no checkpoint
                mismatches = (*report.mismatches, *mismatches_of(reference, candidate, graph))
                weights = compare_weights_of(reference, candidate, graph)
                report = replace(report, mismatches=mismatches, weights=weights)
        reports[member.name] = report
    assert answers is not None
    found = _with_mixed(reports, completed(answers, runner, held), runner)
    for name, report in found.items():
        write_json(adapter_folder(artifact.folder, name) / PARITY, report.to_json())
    return found


def validate_bank(
    bank: str | Path | Subject,
    *,
    against: Mapping[str, str | Path | Subject],
    data: str | Path | None = None,
    text: TextSettings | None = None,
    limits: Limits | None = None,
    batches: Batches | None = None,
) -> dict[str, ParityReport]:
    """Compare adapters of a bank, or of its engine, with their checkpoints, alone and in batches with one another.

    Args:
        bank: The bank.
        against: The checkpoints by the names of their adapters.
        data: Text to run each adapter on too, as for `validate`.
        text: How that text is read.
        limits: How far an adapter may be off.
        batches: What both are run on.

    Returns:
        A report for each adapter. Where one diverges, it names the layer and the node.

    Raises:
        ArtifactError: The folder is no bank, or has no such adapter, or none is named.
        CheckpointError: A checkpoint cannot be read.
    """
    subject = as_subject(bank)
    path = Path(subject.path)
    if not is_bank(path) or not against:
        raise ArtifactError(f"{path} is no bank, or no adapter of it is named; see `adakron-export bank list`")
    for name in against:
        adapter_folder(path, name)
    reports, answers = {}, None
    for name, checkpoint in against.items():
        _log.info("compare adapter %s", name)
        reports[name] = validate(
            replace(subject, adapter=name), against=checkpoint, data=data, text=text, limits=limits, batches=batches
        )
        if (batches or Batches()).batch is None and not reports[name].mismatches:
            reference = as_subject(checkpoint).on(task=as_subject(checkpoint).task or task_of_exported(path))
            answers = answered(answers, name, open_subject(reference, Purpose.COMPARE))
    if answers is None:
        return reports
    candidate = open_subject(replace(subject, adapter=next(iter(answers.of))), Purpose.COMPARE)
    assert isinstance(candidate.runner, OneAdapter)
    runner, held = candidate.runner.bank, dtype_of(candidate, graph_of(candidate))
    compared = {name: reports[name] for name in answers.of}
    return {**reports, **_with_mixed(compared, completed(answers, runner, held), runner)}


def _with_mixed(reports: Mapping[str, ParityReport], answers: Answers, runner: BankRunner) -> dict[str, ParityReport]:
    """The reports with what batches of mixed rows showed."""
    tolerance = next(iter(reports.values())).tolerance
    mixed = compare_mixed(runner, answers, first=tuple(reports), tolerance=tolerance)
    return {name: replace(report, rows=(*report.rows, *mixed[name])) for name, report in reports.items()}

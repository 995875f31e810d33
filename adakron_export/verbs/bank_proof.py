"""Compares the adapters of a bank with their eager models, alone and in batches with one another."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from adakron_export.artifacts.adapters import adapter_folder
from adakron_export.artifacts.artifact import Artifact
from adakron_export.artifacts.manifest import BASE, PARITY
from adakron_export.files.records import write_json
from adakron_export.graph.tolerance import Tolerance
from adakron_export.runtimes.bank import BankRunner
from adakron_export.subjects.opening import OpenedArtifact, Purpose, open_artifact_on
from adakron_export.subjects.subject import Subject
from adakron_export.validation.batches import make_batches
from adakron_export.validation.comparison import Sides, compare_weights_of
from adakron_export.validation.identity import differences, identity_of
from adakron_export.validation.mixing import Answers, answered, compare_mixed, completed
from adakron_export.verbs.members import Member

if TYPE_CHECKING:
    from adakron_export.validation.parity import ParityReport

_log = logging.getLogger(__name__)


def prove(artifact: Artifact, members: Sequence[Member], *, tolerance: Tolerance) -> dict[str, ParityReport]:
    """Compare members of a bank with their eager models, alone and in batches with the others.

    Args:
        artifact: The bank, with the members in it; it may be one that is being made.
        members: Those to compare.
        tolerance: What is allowed.

    Returns:
        A report for each, which is written into its folder too.
    """
    device = artifact.manifest.spec.lowered_for.runtime
    runner = open_artifact_on(artifact, device, purpose=Purpose.COMPARE)
    assert isinstance(runner, BankRunner)
    reports: dict[str, ParityReport] = {}
    answers: Answers | None = None
    for member in members:
        _log.info("compare adapter %s", member.name)
        with member.eager() as reference:
            subject = Subject(str(artifact.folder), device=device, adapter=member.name)
            candidate = OpenedArtifact(subject, runner.adapter(member.name), artifact)
            space = replace(reference.space, vocabulary=artifact.calibration_tokens())
            report = Sides(reference, candidate, space, tolerance).compare(make_batches(space), seed=0)
            answers = answered(answers, member.name, reference)
            if member.name != BASE:  # whose labels and weights are those of no checkpoint
                mismatches = (*report.mismatches, *differences(identity_of(reference), identity_of(candidate)))
                weights = compare_weights_of(reference, candidate, candidate.graph())
                report = replace(report, mismatches=mismatches, weights=weights)
        reports[member.name] = report
    assert answers is not None
    answers = completed(answers, runner)
    mixed = compare_mixed(runner, answers, first=tuple(reports), tolerance=tolerance)
    for name, report in reports.items():
        reports[name] = replace(report, rows=(*report.rows, *mixed[name]))
        write_json(adapter_folder(artifact.folder, name) / PARITY, reports[name].to_json())
    return reports

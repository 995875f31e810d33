"""The main job: a checkpoint becomes a verified artifact."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from adakron_export.artifacts.artifact import Artifact, Attempt, write_manifest
from adakron_export.artifacts.card import model_card
from adakron_export.artifacts.layouts import check_layout, lay_out_for_javascript
from adakron_export.artifacts.listing import written_files
from adakron_export.artifacts.manifest import CARD, LADDER, PARITY
from adakron_export.errors import ExportError
from adakron_export.files.records import write_json
from adakron_export.files.staging import check_replaceable, put_in_place, staged_folder
from adakron_export.graph.targets import GraphSpec, check_spec
from adakron_export.subjects.subject import Subject, as_subject
from adakron_export.validation.comparison import find_overflow, prove
from adakron_export.validation.ladder import Judge, first_that_holds, rungs_of
from adakron_export.validation.limits import Limits
from adakron_export.validation.parity import ParityReport
from adakron_export.verbs.making import Making, check_places, check_runtimes, load_source
from adakron_export.verbs.settings import ExportSettings

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ExportResult:
    """What an export came to.

    Attributes:
        folder: Where the artifact was to stand.
        written: Whether it does.
        parity: What validation said; ``None`` where it was left out.
        artifact: The artifact, where it was written.
        attempts: What was tried for the largest drop of a metric, in its order; the last one is the artifact.
    """

    folder: Path
    written: bool
    parity: ParityReport | None
    artifact: Artifact | None
    attempts: tuple[Attempt, ...] = ()


def export_onnx(
    checkpoint: str | Path | Subject,
    output: str | Path,
    *,
    target: str = "portable",
    dtype: str = "fp32",
    data: str | Path | None = None,
    overwrite: bool = False,
    limits: Limits | None = None,
    settings: ExportSettings | None = None,
) -> ExportResult:
    """Load a checkpoint, fold its adapters, export it to ONNX and prove that the outputs are the same.

    Args:
        checkpoint: A PEFT folder, a reference file or a hub id; a `Subject` where its backbone or task is to be named.
        output: The artifact's folder.
        target: The runtime to export for, a name of `TARGETS`, such as ``portable`` or ``ort-cpu``.
        dtype: What the graph computes in, a name of `DTYPES`, such as ``fp32`` or ``int8``. Outputs are float32 in any
            case.
        data: Text to find fixed scales on, where target and dtype have such, and to measure the accuracy on.
        overwrite: Replace an artifact that is there, in one step, at the end.
        limits: How far the artifact may be off; its dtype's tolerance by default. With ``max_drop`` the dtypes are
            tried from this one to the most accurate, and the first that holds on ``data`` is kept.
        settings: How the artifact is made and written.

    Raises:
        CheckpointError: The checkpoint cannot be read or does not fit its backbone.
        BackboneError: The backbone cannot be loaded.
        ExportError: The model or an option cannot be exported.
        ArtifactError: ``output`` is something that must not be replaced.
        MissingPackageError: ONNX Runtime is not installed.
    """
    subject, limits, settings = as_subject(checkpoint), limits or Limits(), settings or ExportSettings()
    data = None if data is None else str(data)
    spec = GraphSpec(target, dtype, settings.opset, settings.per_token).complete()
    check_layout(settings.layout, spec.dtype)
    rungs = rungs_of(spec, limits.max_drop, has_text=data is not None)
    calibrated = data is not None and (limits.max_drop is None or spec.needs_text)
    check_spec(spec, calibrated=calibrated)
    limits.tolerance(spec.dtype)
    if data is None and settings.text is not None:
        raise ExportError("text is about how data is read; pass --data (data=...) too")
    folder = Path(output)
    check_places([subject], folder, overwrite=overwrite)
    check_runtimes(spec, runs=settings.validate or data is not None)
    source = load_source(subject, data=data, text=settings.text, force=settings.force)
    judge = None
    if limits.max_drop is not None:
        judge = Judge(source.eager, source.read_text(), max_drop=limits.drop, device=spec.lowered_for.runtime)
    with ThreadPoolExecutor(1) as beside, staged_folder(folder) as staged:
        make = Making(source, beside.submit(source.files), rungs[0])
        artifact, attempts = first_that_holds(rungs, lambda rung: make(rung, staged), judge)
        if attempts:
            tried = [row.to_json() for row in attempts]
            write_json(
                staged / LADDER,
                {"data": Path(str(data)).name, "max_accuracy_drop": limits.max_drop, "attempts": tried},
            )
        report = _proven(artifact, make, limits) if settings.validate else None
        sound = (report is None or report.passed) and (not attempts or attempts[-1].held)
        if not sound and not settings.force:
            return ExportResult(folder, False, report, None, attempts)
        (staged / CARD).write_text(model_card(artifact, folder.name), encoding="utf-8")
        if settings.layout == "transformers.js":
            lay_out_for_javascript(staged, artifact.manifest.spec.dtype)
        artifact = write_manifest(staged, artifact.manifest)
        put_in_place(
            staged, folder, problem=partial(check_replaceable, folder, ours=written_files, overwrite=overwrite)
        )
    return ExportResult(folder, True, report, Artifact(folder, artifact.manifest, artifact.stamp), attempts)


def _proven(artifact: Artifact, make: Making, limits: Limits) -> ParityReport:
    """Compare with eager PyTorch, and write down what came out."""
    _log.info("validate against eager PyTorch")
    spec = artifact.manifest.spec
    tolerance, device = limits.tolerance(spec.dtype), spec.lowered_for.runtime
    report = prove(artifact, make.source.eager, make.folded, tolerance=tolerance, device=device)
    if any(row.non_finite for row in report.rows):
        report = replace(report, overflow=find_overflow(make.folded))
    write_json(artifact.folder / PARITY, report.to_json())
    return report

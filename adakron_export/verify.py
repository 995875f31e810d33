"""Proves an artifact against its checkpoint, or any two sides against each other."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adakron_export.artifact import EXACT_SUMS, Artifact, sha256_of
from adakron_export.device import Device
from adakron_export.diagnosis import compare_layers, find_divergence
from adakron_export.engines.profiles import bounds_text
from adakron_export.errors import ArtifactError, CheckpointError, ExportError
from adakron_export.input_space import model_space, read_config
from adakron_export.places import check_there
from adakron_export.sides import (
    Side,
    artifact_runner,
    eager_side,
    graph_runner,
    open_side,
    task_of_exported,
    tokenizer_folder,
)
from adakron_export.validation.batches import NamedBatch, make_batches
from adakron_export.validation.parity import ParityReport, compare
from adakron_export.validation.tolerance import Tolerance, tolerance_for

if TYPE_CHECKING:
    from adakron_export.adapter.task_model import TaskModel
    from adakron_export.evaluation_data import EvaluationData

Progress = Callable[[str], None]
PRECISIONS = ("fp32", "fp64")
_EMULATED_TOKENS = 24  # of a batch in which saturation is emulated: 4 s for BERT-base
_DEFAULTS = {"device": "cpu", "against-device": "cpu", "reference": "fp32"}


def validate(
    artifact: str | Path,
    *,
    against: str | Path,
    backbone: str | Path | None = None,
    device: str = "cpu",
    against_device: str = "cpu",
    reference: str = "fp32",
    atol: float | None = None,
    rtol: float | None = None,
    tolerance: Mapping[str, float] | None = None,
    seed: int = 0,
    batch: str | None = None,
    data: str | None = None,
    limit: int | None = None,
    max_drop: float = 0.005,
    layers: bool = False,
    progress: Progress = lambda _: None,
) -> ParityReport:
    """Compare an artifact or an engine with its checkpoint in eager PyTorch, unfolded; or any two sides.

    Args:
        artifact: The exported folder, or that of an engine; a checkpoint is run in eager PyTorch.
        against: What is right: the checkpoint, as for `export_onnx`, or another artifact or engine.
        backbone: The checkpoint's backbone; what it names by default.
        device: Where the artifact runs: ``cpu``, ``cuda``, ``tensorrt`` or ``tensorrt-rtx``. An engine runs
            on its GPU.
        against_device: Where the other side runs.
        reference: Precision of the checkpoint in eager PyTorch, ``fp32`` or ``fp64``.
        atol: Largest absolute error of an output; the dtype's own tolerance by default.
        rtol: Added to ``atol``, as a share of the largest reference value.
        tolerance: Other limits by name: ``cosine``, ``top1``, ``kl``.
        seed: Of the batches.
        batch: Only the batch of this name.
        data: Text to run both on, as for training; with labels, the task's metrics of both are compared.
        limit: Draw so many of its rows.
        max_drop: By how much the first metric may be worse, such as 0.005 of an accuracy from 0 to 1.
        layers: Compare the layers too where the outputs agree; where they do not, that is done anyway.
        progress: Told of each stage as it begins.

    Raises:
        ArtifactError: The artifact is damaged, or the two have other inputs or outputs.
        EngineError: The engine is damaged, or does not belong to this machine.
        CheckpointError: The checkpoint cannot be read.
        RunnerError: The device is not available.
        DataError: The text cannot be read, or has labels that the model does not know.
        ExportError: A limit, a precision or a batch's name makes no sense.
    """
    if reference not in PRECISIONS:
        raise ExportError(f"reference {reference!r} is unknown; choose fp32 or fp64")
    for side in (artifact, against):
        check_there(side, CheckpointError)
    right = open_side(against, device=against_device, backbone=backbone, task=task_of_exported(artifact),
                      precision=reference, progress=progress)  # fmt: skip
    candidate = open_side(artifact, device=device, backbone=backbone, progress=progress)
    right = replace(right, space=right.space.narrowed(candidate.space))
    limits = tolerance_for(candidate.exported.manifest.dtype if candidate.exported else "fp32")
    limits = limits.changed({"absolute": atol, "relative": rtol, **(tolerance or {})})
    text = _read_text(right, data, limit, seed, progress) if data is not None else None
    batches = _chosen([*make_batches(right.space, seed=seed), *(text.batches if text else ())], batch)
    generated = [each for each in batches if not each.name.startswith("data-")]
    report = _compare_sides(right, candidate, generated if batch is None else batches, limits, seed, progress)
    if text is not None and batch is None:
        report = _with_text(report, right, candidate, text, max_drop, progress)
    smallest = _smallest_wrong(report, batches)
    if smallest is None:
        return _with_layers(report, right, candidate, batches[-1], progress) if layers else report
    progress("look for the first layer that diverges")
    found = find_divergence(right, candidate, smallest, tolerance=limits)
    options = {"against": against, "backbone": backbone, "device": device, "against-device": against_device,
               "reference": reference, "atol": atol, "rtol": rtol, "seed": seed, "batch": smallest.name}  # fmt: skip
    if smallest.name.startswith("data-"):
        options |= {"data": data, "limit": limit}
    return replace(report, divergence=found, repeat=_command(artifact, options, tolerance or {}))


def _with_text(
    report: ParityReport, right: Side, candidate: Side, text: EvaluationData, max_drop: float, progress: Progress
) -> ParityReport:
    from adakron_export.evaluation_data import compare_on_data

    rows, accuracy = compare_on_data(right.runner, candidate.runner, text, tolerance=report.tolerance,
                                     max_drop=max_drop, progress=progress)  # fmt: skip
    return replace(report, rows=(*report.rows, *rows), accuracy=accuracy)


def _with_layers(
    report: ParityReport, right: Side, candidate: Side, batch: NamedBatch, progress: Progress
) -> ParityReport:
    progress("compare the layers")
    return replace(report, layers=compare_layers(right, candidate, batch, tolerance=report.tolerance))


def _smallest_wrong(report: ParityReport, batches: Sequence[NamedBatch]) -> NamedBatch | None:
    failed = {row.batch for row in report.rows if not row.passed}
    wrong = [batch for batch in batches if batch.name in failed]
    return min(wrong, key=lambda batch: next(iter(batch.inputs.values())).size, default=None)


def _command(artifact: str | Path, options: Mapping[str, Any], tolerance: Mapping[str, float]) -> str:
    """The command line of these options, defaults left out."""
    words = ["adakron-export", "validate", str(artifact)]
    for name, value in options.items():
        if value is not None and value != _DEFAULTS.get(name):
            words += [f"--{name}", str(value)]
    for name, limit in tolerance.items():
        words += ["--tolerance", f"{name}={limit}"]
    return shlex.join(words)


def prove(
    artifact: Artifact,
    eager: TaskModel,
    *,
    tolerance: Tolerance,
    device: Device = Device.CPU,
    seed: int = 0,
    progress: Progress = lambda _: None,
) -> ParityReport:
    """Compare an artifact with a loaded model on generated batches.

    Half precision on the CPU is emulated operator by operator (`emulate`): ONNX Runtime has no bf16 there, and
    computes fp16 in fp32 where it has no kernel, which would hide an overflow.

    Args:
        artifact: The exported folder, or one that is being made.
        eager: The unfolded model.
        tolerance: What is allowed.
        device: Where ONNX Runtime runs.
        seed: Of the batches.
        progress: Told of each batch.

    Raises:
        ArtifactError: The two have other inputs or outputs.
    """
    right = eager_side(eager, str(artifact.folder))
    right = replace(right, space=replace(right.space, vocabulary=artifact.calibration_tokens()))
    candidate = Side(str(artifact.folder), artifact_runner(artifact, device), right.space, artifact)
    return _compare_sides(right, candidate, make_batches(right.space, seed=seed), tolerance, seed, progress)


def find_overflow(folded: TaskModel) -> str | None:
    """The first module of a half-precision model that puts out NaN or Inf, and on which batch."""
    import numpy as np

    from adakron_export.runtimes.eager import EagerRunner

    runner = EagerRunner(folded)
    for batch in make_batches(model_space(folded)):
        for module, values in runner.trace(batch.inputs).items():
            if not np.isfinite(values).all():
                return f"{module} overflows on batch {batch.name!r}"
    return None


def _compare_sides(
    right: Side, candidate: Side, batches: Sequence[NamedBatch], tolerance: Tolerance, seed: int, progress: Progress
) -> ParityReport:
    left, other = right.runner, candidate.runner
    if set(left.input_names) != set(other.input_names) or set(left.output_names) != set(other.output_names):
        raise ArtifactError(
            f"{candidate.path} and {right.path} differ: inputs {other.input_names} and {left.input_names}, "
            f"outputs {other.output_names} and {left.output_names}"
        )
    try:
        rows = compare(left, other, batches, tolerance=tolerance, progress=progress)
    except ValueError as error:
        raise ArtifactError(f"{candidate.path} and {right.path} are different models: {error}") from error
    notes = [*_notes(right, candidate), *_without_vnni(candidate, batches)]
    return ParityReport(left.name, other.name, tolerance, seed, tuple(rows), notes=tuple(notes))


def _notes(right: Side, candidate: Side) -> list[str]:
    notes = []
    manifest = candidate.artifact.manifest if candidate.artifact else None
    if manifest is not None and ", emulated" in candidate.runner.name:
        notes.append(f"{manifest.dtype} on the CPU: fp32 operators, each result rounded")
    longest = manifest.max_length if manifest else None
    if longest is not None and longest > right.space.max_length:
        notes.append(f"validated up to {right.space.max_length} of {longest} tokens")
    if right.space.bounds:
        notes.append(f"validated within the engine's shapes: {bounds_text(right.space.bounds)}")
    if candidate.engine is not None:
        notes.append("an engine shows no layers: validate the artifact that it was built from for those")
    if right.space.vocabulary:
        notes.append(f"{manifest.dtype if manifest else '8 bits'}: texts are made of the words it was calibrated on")
    if not right.space.left_padding:
        notes.append("texts padded on the left were left out: this model's windows leave them undefined")
    if manifest and right.checkpoint and sha256_of(right.checkpoint.weights) != manifest.adapter_source.sha256:
        named = manifest.adapter_source.name
        notes.append(f"the artifact was exported from another {named} than {right.checkpoint.weights}")
    return notes


def _without_vnni(candidate: Side, batches: Sequence[NamedBatch]) -> list[str]:
    """What a small batch would give in a plain session on a CPU that saturates."""
    if candidate.artifact is None or candidate.artifact.manifest.dtype != "int8":
        return []
    import numpy as np
    import onnx_ir as ir

    from adakron_export.graph.passes.unsigned_weights import signed_products
    from adakron_export.graph.saturation import saturating

    graph = ir.load(candidate.artifact.model)
    if not signed_products(graph):
        return []
    runner = graph_runner(saturating(graph), candidate.artifact.manifest)
    batch = min(batches, key=lambda batch: abs(next(iter(batch.inputs.values())).size - _EMULATED_TOKENS))
    right, wrong = candidate.runner.run(batch.inputs), runner.run(batch.inputs)
    error = max(float(np.abs(right[name] - wrong[name]).max()) for name in right)
    return [
        f"in a plain session on an x86 CPU without VNNI, batch {batch.name} would be off by {error:.2g}: open_runner "
        f"prevents it, or set {EXACT_SUMS} to 1"
    ]


def _read_text(side: Side, source: str, limit: int | None, seed: int, progress: Progress) -> EvaluationData:
    from adakron_export.evaluation_data import read_evaluation, tokenizer_of
    from adakron_export.tasks import Task

    if side.exported is not None:
        folder, task = side.exported.folder, Task(side.exported.manifest.task)
        config = read_config(side.exported)
    else:
        assert side.eager is not None
        assert side.checkpoint is not None
        folder, task, config = tokenizer_folder(side.checkpoint), side.eager.task, side.eager.config.to_dict()
    tokenizer = tokenizer_of(folder)
    return read_evaluation(source, task=task, config=config, tokenizer=tokenizer, space=side.space, limit=limit,
                           seed=seed, say=progress)  # fmt: skip


def _chosen(batches: list[NamedBatch], name: str | None) -> list[NamedBatch]:
    chosen = [batch for batch in batches if name in (None, batch.name)]
    if not chosen:
        raise ExportError(f"there is no batch {name!r}; there are {', '.join(batch.name for batch in batches)}")
    return chosen

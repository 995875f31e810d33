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
from adakron_export.errors import CheckpointError, ExportError
from adakron_export.identity import differences
from adakron_export.input_space import model_space, read_config
from adakron_export.places import check_there
from adakron_export.sides import (
    Side,
    artifact_runner,
    eager_side,
    fold_side,
    graph_runner,
    identity_of,
    open_side,
    parameters_of,
    task_of_exported,
    tokenizer_folder,
)
from adakron_export.validation.batches import InputSpace, NamedBatch, make_batches
from adakron_export.validation.parity import ParityReport, compare
from adakron_export.validation.tolerance import Tolerance, tolerance_for

if TYPE_CHECKING:
    import onnx_ir as ir

    from adakron_export.adapter.task_model import TaskModel
    from adakron_export.evaluation_data import EvaluationData
    from adakron_export.validation.weights import WeightsReport

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
    allow_engine_code: bool = False,
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
        allow_engine_code: Let host code run that an engine may bring along.
        progress: Told of each stage as it begins.

    Raises:
        ArtifactError: The artifact is damaged.
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
                      precision=reference, allow_engine_code=allow_engine_code, progress=progress)  # fmt: skip
    candidate = open_side(artifact, device=device, backbone=backbone, allow_engine_code=allow_engine_code,
                          progress=progress)  # fmt: skip
    graph = _graph_of(candidate)
    limits = tolerance_for(_dtype_of(candidate, graph))
    limits = limits.changed({"absolute": atol, "relative": rtol, **(tolerance or {})})
    mismatches = _mismatches(right, candidate, graph)
    if not _same_signature(right, candidate):
        return _not_comparable(right, candidate, limits, seed, mismatches)
    right = replace(right, space=_space_of(right, candidate, graph))
    candidate = _as_it_is(candidate, graph)
    text = _read_text(right, data, limit, seed, progress) if data is not None else None
    batches = _chosen([*make_batches(right.space, seed=seed), *(text.batches if text else ())], batch)
    generated = [each for each in batches if not each.name.startswith("data-")]
    report = _compare_sides(right, candidate, generated if batch is None else batches, limits, seed, progress)
    weights = _weights(right, graph, progress)
    report = replace(report, mismatches=(*mismatches, *report.mismatches), weights=weights)
    if text is not None and batch is None:
        own = _own_text(candidate, text, limit, seed, progress) if mismatches else text
        report = _with_text(report, right, candidate, text, own, max_drop, progress)
    smallest = _smallest_wrong(report, batches)
    if smallest is None:
        return _with_layers(report, right, candidate, batches[-1], progress) if layers and report.rows else report
    progress("look for the first layer that diverges")
    found = find_divergence(right, candidate, smallest, tolerance=limits)
    options = {"against": against, "backbone": backbone, "device": device, "against-device": against_device,
               "reference": reference, "atol": atol, "rtol": rtol, "seed": seed, "batch": smallest.name}  # fmt: skip
    if smallest.name.startswith("data-"):
        options |= {"data": data, "limit": limit}
    return replace(report, divergence=found, repeat=_command(artifact, options, tolerance or {}))


def _graph_of(candidate: Side) -> ir.Model | None:
    """The candidate's graph; ``None`` where it shows none."""
    if candidate.artifact is None:
        return None
    import onnx_ir as ir

    return ir.load(candidate.artifact.model)


def _dtype_of(candidate: Side, graph: ir.Model | None) -> str:
    """What the limits are for: what the graph holds, whatever the artifact says of itself."""
    if graph is not None:
        from adakron_export.validation.weights import graph_dtype

        return graph_dtype(graph)
    return candidate.engine.manifest.dtype if candidate.engine else "fp32"


def _mismatches(right: Side, candidate: Side, graph: ir.Model | None) -> tuple[str, ...]:
    """In what the candidate is another model than the reference, or another one than it says."""
    found = differences(identity_of(right), identity_of(candidate))
    held = _dtype_of(candidate, graph)
    if candidate.artifact is not None and candidate.artifact.manifest.dtype != held:
        said = candidate.artifact.manifest.dtype
        found.append(f"dtype: the manifest says {said}, the graph holds {held}, whose limits count")
    return tuple(found)


def _as_it_is(candidate: Side, graph: ir.Model | None) -> Side:
    """The candidate with what its graph holds in the place of what its manifest says."""
    if candidate.artifact is None:
        return candidate
    manifest = replace(candidate.artifact.manifest, dtype=_dtype_of(candidate, graph))
    return replace(candidate, artifact=replace(candidate.artifact, manifest=manifest))


def _same_signature(right: Side, candidate: Side) -> bool:
    left, other = right.runner, candidate.runner
    return set(left.input_names) == set(other.input_names) and set(left.output_names) == set(other.output_names)


def _not_comparable(
    right: Side, candidate: Side, tolerance: Tolerance, seed: int, mismatches: tuple[str, ...]
) -> ParityReport:
    return ParityReport(right.runner.name, candidate.runner.name, tolerance, seed, (), mismatches=mismatches)


def _space_of(right: Side, candidate: Side, graph: ir.Model | None) -> InputSpace:
    """What the reference takes, as far as an engine's shapes reach.

    Fixed scales promise nothing of words that they were not found on, so such a graph is held to those of its
    calibration; its weights are compared whatever those are.
    """
    from adakron_export.validation.weights import has_fixed_scales

    words = candidate.space.vocabulary if graph is not None and has_fixed_scales(graph) else ()
    space = right.space.within(candidate.space.bounds)
    return replace(space, vocabulary=words, max_length=min(space.max_length, candidate.space.max_length))


def _weights(right: Side, graph: ir.Model | None, progress: Progress) -> WeightsReport | None:
    folded = fold_side(right) if graph is not None else None
    if graph is None or folded is None:
        return None
    from adakron_export.validation.weights import compare_weights

    progress("compare the weights")
    return compare_weights(graph, parameters_of(folded))


def _with_text(
    report: ParityReport, right: Side, candidate: Side, text: EvaluationData, own: EvaluationData, max_drop: float,
    progress: Progress,
) -> ParityReport:  # fmt: skip
    """With what text shows; the candidate reads it by its own tokenizer and labels."""
    from adakron_export.evaluation_data import compare_on_data

    rows, accuracy = compare_on_data(right.runner, candidate.runner, text, own, tolerance=report.tolerance,
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
    folded: TaskModel,
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
        folded: The folded one, whose parameters are looked for in the graph.
        tolerance: What is allowed.
        device: Where ONNX Runtime runs.
        seed: Of the batches.
        progress: Told of each batch.

    """
    from adakron_export.validation.weights import compare_weights

    right = eager_side(eager, str(artifact.folder))
    right = replace(right, space=replace(right.space, vocabulary=artifact.calibration_tokens()))
    candidate = Side(str(artifact.folder), artifact_runner(artifact, device), right.space, artifact)
    report = _compare_sides(right, candidate, make_batches(right.space, seed=seed), tolerance, seed, progress)
    graph = _graph_of(candidate)
    assert graph is not None
    progress("compare the weights")
    return replace(report, weights=compare_weights(graph, parameters_of(folded)))


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
    try:
        rows = compare(left, other, batches, tolerance=tolerance, progress=progress)
    except ValueError as error:
        return _not_comparable(right, candidate, tolerance, seed, (f"outputs: {error}",))
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
        dtype = candidate.engine.manifest.dtype
        notes.append(
            f"an engine shows neither weights nor layers: the limits are those of {dtype}, which its manifest names, "
            "and the artifact that it was built from is to be validated too"
        )
    if right.space.vocabulary:
        words, size = len(right.space.vocabulary), right.space.vocab_size
        notes.append(f"fixed scales: batches are made of the {words} of {size} tokens that they were found on")
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


def _own_text(
    candidate: Side, text: EvaluationData, limit: int | None, seed: int, progress: Progress
) -> EvaluationData:
    """The text as an exported candidate's own tokenizer and labels make it."""
    return _read_text(candidate, text.source, limit, seed, progress) if candidate.exported else text


def _chosen(batches: list[NamedBatch], name: str | None) -> list[NamedBatch]:
    chosen = [batch for batch in batches if name in (None, batch.name)]
    if not chosen:
        raise ExportError(f"there is no batch {name!r}; there are {', '.join(batch.name for batch in batches)}")
    return chosen

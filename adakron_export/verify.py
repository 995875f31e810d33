"""Proves an artifact against its checkpoint in eager PyTorch."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from adakron_export.artifact import Artifact, open_artifact, sha256_of
from adakron_export.errors import ArtifactError, ExportError
from adakron_export.onnx_file import write_model
from adakron_export.runtimes.ort import Device, OrtRunner
from adakron_export.validation.batches import InputSpace, make_batches
from adakron_export.validation.parity import TOLERANCES, ParityReport, Tolerance, compare

if TYPE_CHECKING:
    from adakron_export.adapter.task_model import TaskModel

Progress = Callable[[str], None]
VALIDATED_LENGTH = 2048  # decoders name 100,000 positions and more, which no CPU can run in a minute


def validate(
    artifact: str | Path,
    *,
    against: str | Path,
    backbone: str | Path | None = None,
    device: str = "cpu",
    atol: float | None = None,
    seed: int = 0,
    progress: Progress = lambda _: None,
) -> ParityReport:
    """Compare an artifact with its checkpoint in eager PyTorch, fp32 and unfolded.

    Args:
        artifact: The exported folder.
        against: The checkpoint, as for `export_onnx`.
        backbone: Its backbone; what the checkpoint names by default.
        device: Where ONNX Runtime runs, ``cpu`` or ``cuda``.
        atol: Largest absolute error of an output; the dtype's own tolerance by default.
        seed: Of the batches.
        progress: Told of each stage as it begins.

    Raises:
        ArtifactError: The artifact is damaged.
        CheckpointError: The checkpoint cannot be read, or has other inputs or outputs.
        RunnerError: The device is not available.
    """
    opened = open_artifact(artifact)
    manifest = opened.manifest
    progress("load the checkpoint and its backbone")
    from adakron_export.adapter.checkpoint import find_checkpoint
    from adakron_export.adapter.loading import load_task_model

    found = find_checkpoint(against, backbone)
    eager = load_task_model(found, task=manifest.task)
    tolerance = tolerance_for(manifest.dtype, atol)
    report = prove(opened, eager, tolerance=tolerance, device=Device.named(device), seed=seed, progress=progress)
    if sha256_of(found.weights) == manifest.adapter_source.sha256:
        return report
    note = f"the artifact was exported from another {manifest.adapter_source.name} than {found.weights}"
    return replace(report, notes=(*report.notes, note))


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
    from adakron_export.runtimes.eager import EagerRunner

    emulated = artifact.manifest.dtype != "fp32" and device is Device.CPU
    runner = _emulated_runner(artifact) if emulated else OrtRunner(artifact, device=device)
    reference = EagerRunner(eager)
    if reference.input_names != runner.input_names or reference.output_names != runner.output_names:
        raise ArtifactError(
            f"{artifact.folder} and the checkpoint differ: inputs {runner.input_names} and {reference.input_names}, "
            f"outputs {runner.output_names} and {reference.output_names}"
        )
    space = input_space(eager)
    rows = compare(reference, runner, make_batches(space, seed=seed), tolerance=tolerance, progress=progress)
    notes = []
    if emulated:
        notes.append(f"{artifact.manifest.dtype} on the CPU: fp32 operators, each result rounded")
    longest = artifact.manifest.max_length
    if longest is not None and longest > space.max_length:
        notes.append(f"validated up to {space.max_length} of {longest} tokens")
    if not space.left_padding:
        notes.append("texts padded on the left were left out: this model's windows leave them undefined")
    return ParityReport(reference.name, runner.name, tolerance, seed, tuple(rows), notes=tuple(notes))


def _emulated_runner(artifact: Artifact) -> OrtRunner:
    import onnx_ir as ir

    from adakron_export.graph.emulation import emulate

    with tempfile.TemporaryDirectory() as folder:
        write_model(emulate(ir.load(artifact.model)), Path(folder))
        runner = OrtRunner(Artifact(Path(folder), replace(artifact.manifest, dtype="fp32")))
    runner.name = f"onnxruntime CPUExecutionProvider, emulated {artifact.manifest.dtype}"
    return runner


def find_overflow(folded: TaskModel) -> str | None:
    """The first module of a half-precision model that puts out NaN or Inf, and on which batch."""
    from adakron_export.runtimes.eager import EagerRunner

    runner = EagerRunner(folded)
    for batch in make_batches(input_space(folded)):
        module = runner.first_non_finite(batch.inputs)
        if module is not None:
            return f"{module or 'the model'} overflows on batch {batch.name!r}"
    return None


def tolerance_for(dtype: str, atol: float | None) -> Tolerance:
    """The tolerance of a dtype, or an absolute one.

    Raises:
        ExportError: The dtype is unknown or the number is negative.
    """
    if dtype not in TOLERANCES:
        raise ExportError(f"dtype {dtype!r} is unknown; choose one of {', '.join(TOLERANCES)}")
    if atol is None:
        return TOLERANCES[dtype]
    if not atol >= 0:
        raise ExportError(f"atol is {atol}; it must be a number of at least 0")
    return Tolerance(absolute=atol)


def input_space(model: TaskModel) -> InputSpace:
    """What a model accepts."""
    from adakron_export.adapter.task_model import position_limit

    config = model.config
    names = tuple(model.signature.inputs)
    if "pixel_values" in names:
        shape = (config.num_channels, config.image_size, config.image_size)
        return InputSpace(names, vocab_size=0, pad_id=0, max_length=0, image_shape=shape)
    longest = position_limit(model.model) or getattr(config, "max_position_embeddings", None) or VALIDATED_LENGTH
    return InputSpace(
        names,
        vocab_size=config.vocab_size,
        pad_id=config.pad_token_id if config.pad_token_id is not None else 0,
        max_length=min(longest, VALIDATED_LENGTH),
        # A padded first token whose window holds only padding attends to nothing: PyTorch leaves its value open.
        left_padding=getattr(config, "local_attention", None) is None,
    )

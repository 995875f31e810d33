"""Opens whatever can run."""

from __future__ import annotations

from pathlib import Path

from adakron_export.artifact import is_artifact, open_artifact
from adakron_export.runtimes.base import Runner
from adakron_export.runtimes.ort import Device, OrtRunner


def open_runner(
    path: str | Path, *, device: str = "cpu", threads: int | None = None, backbone: str | Path | None = None
) -> Runner:
    """Open an artifact in ONNX Runtime, or a checkpoint in eager PyTorch.

    Args:
        path: An artifact (needs no torch), or a checkpoint as for `load_model`.
        device: ``cpu``, ``cuda`` or, for artifacts, ``tensorrt``; never replaced by another one.
        threads: Threads of one operator (artifacts); the runtime's choice by default.
        backbone: The checkpoint's backbone, where it names none.

    Raises:
        ArtifactError: The artifact is damaged.
        RunnerError: The device is not available.
        CheckpointError: The checkpoint cannot be read.
    """
    if is_artifact(Path(path)):
        return OrtRunner(open_artifact(path), device=Device.named(device), threads=threads)
    from adakron_export.adapter.loading import load_task_model
    from adakron_export.runtimes.eager import EagerRunner

    return EagerRunner(load_task_model(path, backbone=backbone), device=device)

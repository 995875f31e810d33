"""Opens whatever can run."""

from __future__ import annotations

from pathlib import Path

from adakron_export.artifact import Artifact, is_artifact, opened_with
from adakron_export.device import Device
from adakron_export.engines.folder import is_engine, open_engine
from adakron_export.runtimes.base import Runner
from adakron_export.runtimes.graph_file import check_graph_file
from adakron_export.runtimes.openvino import OpenVinoRunner
from adakron_export.runtimes.ort import OrtRunner
from adakron_export.runtimes.tensorrt import TensorRTRunner

ArtifactRunner = OrtRunner | OpenVinoRunner


def open_runner(
    path: str | Path, *, device: str = "cpu", threads: int | None = None, backbone: str | Path | None = None,
    allow_engine_code: bool = False,
) -> Runner:  # fmt: skip
    """Open an artifact in ONNX Runtime, an engine in TensorRT, or a checkpoint in eager PyTorch.

    Args:
        path: An artifact (needs no torch), an engine, whose plan is code that must be trusted, or a checkpoint as for
            `load_model`.
        device: ``cpu``, ``cuda`` or, for artifacts, ``openvino``, ``tensorrt`` and ``tensorrt-rtx``; never replaced by
            another one. An engine runs on its GPU.
        threads: Threads of one operator (artifacts); the runtime's choice by default.
        backbone: The checkpoint's backbone, where it names none.
        allow_engine_code: Let host code run that an engine may bring along.

    Raises:
        ArtifactError: The artifact is damaged.
        EngineError: The engine is damaged, or does not belong to this machine.
        RunnerError: The device is not available.
        CheckpointError: The checkpoint cannot be read.
    """
    if is_engine(Path(path)):
        return TensorRTRunner(open_engine(path, allow_code=allow_engine_code))
    if is_artifact(Path(path)):
        where = Device.named(device)
        return opened_with(path, lambda artifact: open_on(artifact, where, threads=threads))
    from adakron_export.adapter.loading import load_task_model
    from adakron_export.runtimes.eager import EagerRunner

    return EagerRunner(load_task_model(path, backbone=backbone), device=device)


def open_on(
    artifact: Artifact, device: Device, *, threads: int | None = None, cuda_graphs: bool = False
) -> ArtifactRunner:
    """Open an artifact with what computes on a device; arguments and errors are those of the runner."""
    check_graph_file(artifact)
    if device is Device.OPENVINO:
        return OpenVinoRunner(artifact, threads=threads)
    return OrtRunner(artifact, device=device, threads=threads, cuda_graphs=cuda_graphs)

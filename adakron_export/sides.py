"""The two sides of a comparison: an artifact in ONNX Runtime, an engine in TensorRT, a checkpoint in eager PyTorch."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from adakron_export.artifact import Artifact, Manifest, is_artifact, open_artifact
from adakron_export.companions import tokenizer_source
from adakron_export.device import Device
from adakron_export.engines.folder import EngineFolder, is_engine, open_engine
from adakron_export.identity import Identity
from adakron_export.input_space import exported_space, full_config, model_space
from adakron_export.onnx_file import write_model
from adakron_export.runtimes.base import Array
from adakron_export.runtimes.graph_file import check_graph_file
from adakron_export.runtimes.opening import open_on
from adakron_export.runtimes.openvino import OpenVinoRunner
from adakron_export.runtimes.ort import OrtRunner
from adakron_export.runtimes.tensorrt import TensorRTRunner
from adakron_export.validation.batches import InputSpace

if TYPE_CHECKING:
    import onnx_ir as ir
    from peft import PeftModel

    from adakron_export.adapter.checkpoint import Checkpoint
    from adakron_export.adapter.task_model import TaskModel
    from adakron_export.runtimes.base import Runner


@dataclass(frozen=True, slots=True)
class Side:
    """One side of a comparison, opened.

    Attributes:
        path: As it was named.
        runner: What computes.
        space: What it accepts.
        artifact: Where it is one.
        engine: Where it is one.
        checkpoint: Where it is one.
        eager: The checkpoint's model.
        peft_model: The same as PEFT has it, which can be folded.
    """

    path: str
    runner: Runner
    space: InputSpace
    artifact: Artifact | None = None
    engine: EngineFolder | None = None
    checkpoint: Checkpoint | None = None
    eager: TaskModel | None = None
    peft_model: PeftModel | None = None

    @property
    def exported(self) -> Artifact | EngineFolder | None:
        """The artifact or the engine."""
        return self.artifact or self.engine


def open_side(
    path: str | Path, *, device: str, backbone: str | Path | None = None, task: str | None = None,
    precision: str = "fp32", allow_engine_code: bool = False, progress: Callable[[str], None] = lambda _: None,
) -> Side:  # fmt: skip
    """Open an artifact, an engine or a checkpoint to compare it.

    An engine runs on its GPU, whatever the device; `precision` is that of a checkpoint.
    """
    if is_engine(Path(path)):
        engine = open_engine(path, allow_code=allow_engine_code)
        progress("load the engine: its plan is code, take only what you trust")
        return Side(str(path), TensorRTRunner(engine), exported_space(engine), engine=engine)
    if Path(path).is_dir() and is_artifact(Path(path)):
        opened = open_artifact(path)
        runner = artifact_runner(opened, Device.named(device))
        return Side(str(path), runner, exported_space(opened), opened)
    progress("load the checkpoint and its backbone")
    from adakron_export.adapter.checkpoint import find_checkpoint
    from adakron_export.adapter.loading import load_model, task_model_of

    found = find_checkpoint(path, backbone)
    model = load_model(found, task=task)
    eager = task_model_of(found, model)
    if precision == "fp64":
        eager = eager.double()
    side = eager_side(eager, str(path), folder=tokenizer_folder(found), device=device)
    return replace(side, checkpoint=found, peft_model=model)


def eager_side(eager: TaskModel, path: str, *, folder: Path | None = None, device: str = "cpu") -> Side:
    """A loaded model, and the folder of its tokenizer."""
    from adakron_export.runtimes.eager import EagerRunner

    return Side(path, EagerRunner(eager, device=device), model_space(eager, folder), eager=eager)


def parameters_of(folded: TaskModel) -> dict[str, Array]:
    """The numbers that a folded model computes with, by the names that a graph has them by, in fp32."""
    seen: set[int] = set()
    found = {}
    for name, tensor in folded.state_dict().items():
        if tensor.is_floating_point() and tensor.data_ptr() not in seen:
            seen.add(tensor.data_ptr())
            found[name.removeprefix("model.")] = tensor.detach().float().cpu().numpy()
    return found


def identity_of(side: Side) -> Identity:
    """What is held against another side beside its numbers."""
    runner = side.runner
    if side.exported is not None:
        folder, longest = side.exported.folder, side.exported.manifest.max_length
        plain = side.artifact is not None and side.artifact.manifest.plain_tokenizer
        config = full_config(side.exported)
        return Identity((folder,), config, runner.input_names, runner.output_names, longest, plain)
    from adakron_export.adapter.task_model import position_limit

    assert side.eager is not None
    assert side.checkpoint is not None
    sources = (side.checkpoint.folder, side.checkpoint.backbone_folder)
    return Identity(sources, side.eager.config.to_dict(), runner.input_names, runner.output_names,
                    position_limit(side.eager.model))  # fmt: skip


def fold_side(side: Side) -> TaskModel | None:
    """A checkpoint's model folded; ``None`` for what is none."""
    if side.peft_model is None or side.eager is None:
        return None
    from adakron_export.adapter.folding import fold
    from adakron_export.adapter.task_model import TaskModel

    return TaskModel(fold(side.peft_model), side.eager.task, pooling=side.eager.pooling)


def artifact_runner(artifact: Artifact, device: Device) -> OrtRunner | OpenVinoRunner:
    """An artifact where it computes; half precision in ONNX Runtime on the CPU is emulated."""
    if not artifact.manifest.computes_in_half or device is not Device.CPU:
        return open_on(artifact, device)
    check_graph_file(artifact)
    import onnx_ir as ir

    from adakron_export.graph.emulation import emulate

    exact = replace(artifact.manifest, dtype="fp32", float_dtype="fp32")
    runner = graph_runner(emulate(ir.load(artifact.model)), exact)
    runner.name = f"onnxruntime CPUExecutionProvider, emulated {artifact.manifest.dtype}"
    return runner


def graph_runner(model: ir.Model, manifest: Manifest) -> OrtRunner:
    """A graph in ONNX Runtime on the CPU, without an artifact."""
    with tempfile.TemporaryDirectory() as folder:
        write_model(model, Path(folder))
        return OrtRunner(Artifact(Path(folder), manifest))


def tokenizer_folder(found: Checkpoint) -> Path:
    """Where a checkpoint's tokenizer is: beside the adapter, or with the backbone, as the artifact gets it."""
    return tokenizer_source((found.folder, found.backbone_folder)) or found.backbone_folder


def task_of_exported(path: str | Path) -> str | None:
    """The task of an artifact or an engine; ``None`` for what is neither."""
    if is_engine(Path(path)):
        return open_engine(path).manifest.task
    return open_artifact(path).manifest.task if is_artifact(Path(path)) else None

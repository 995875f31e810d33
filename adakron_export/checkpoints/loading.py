"""Loads a checkpoint of either kind onto its backbone."""

from __future__ import annotations

from pathlib import Path

from peft import PeftModel
from torch import nn

from adakron_export.adapter.layer import AdaKronLayer
from adakron_export.checkpoints.checkpoint import Checkpoint, find_checkpoint, load_peft
from adakron_export.checkpoints.pooling import read_pooling
from adakron_export.checkpoints.reference_loading import load_reference
from adakron_export.checkpoints.task_model import TaskModel
from adakron_export.tasks import Task, task_named, task_of_architecture


def load_model(
    checkpoint: str | Path | Checkpoint,
    *,
    backbone: str | Path | None = None,
    task: str | Task | None = None,
) -> PeftModel:
    """Load a checkpoint onto its backbone, in fp32 and eval mode.

    Args:
        checkpoint: What `find_checkpoint` takes, or what it returned.
        backbone: Folder or hub id; what the checkpoint names when left out.
        task: What the model is for, such as ``text-classification``; inferred when left out.

    Raises:
        CheckpointError: The checkpoint does not fit: tensors are missing, extra or misshapen.
        BackboneError: The backbone cannot be loaded.
    """
    found = checkpoint if isinstance(checkpoint, Checkpoint) else find_checkpoint(checkpoint, backbone)
    wanted = task_named(task) if isinstance(task, str) and not isinstance(task, Task) else task
    model = load_reference(found, wanted) if found.is_reference else load_peft(found, wanted)
    return model.eval()


def task_of(model: PeftModel) -> Task:
    """The task a loaded model was loaded for."""
    return task_of_architecture(type(model.get_base_model()).__name__)


def adapter_layers(model: nn.Module) -> dict[str, AdaKronLayer]:
    """The AdaKron layers of a model by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, AdaKronLayer)}


def task_model_of(found: Checkpoint, model: PeftModel) -> TaskModel:
    """A loaded model behind its signature."""
    pooling = read_pooling(found.backbone_folder)
    return TaskModel(model.get_base_model(), task_of(model), pooling=pooling)

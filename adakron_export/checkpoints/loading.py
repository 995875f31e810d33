"""Loads a checkpoint of any kind onto its backbone."""

from __future__ import annotations

from pathlib import Path

from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from adakron_export.adapter.layer import AdaKronLayer
from adakron_export.checkpoints.checkpoint import Checkpoint
from adakron_export.checkpoints.finding import find_checkpoint
from adakron_export.checkpoints.kinds import KINDS, Loaded
from adakron_export.checkpoints.pooling import read_pooling
from adakron_export.checkpoints.task_model import TaskModel
from adakron_export.tasks import Task, task_named


def load_model(
    checkpoint: str | Path | Checkpoint,
    *,
    backbone: str | Path | None = None,
    task: str | Task | None = None,
) -> PeftModel | PreTrainedModel:
    """Load a checkpoint onto its backbone, in fp32 and eval mode.

    Args:
        checkpoint: What `find_checkpoint` takes, or what it returned.
        backbone: Folder or hub id; what the checkpoint names when left out.
        task: What the model is for, such as ``text-classification``; inferred when left out.

    Returns:
        A `peft.PeftModel` with the adapter unfolded; of a checkpoint without an adapter the model of transformers.

    Raises:
        CheckpointError: The checkpoint does not fit: tensors are missing, extra or misshapen.
        BackboneError: The backbone cannot be loaded.
    """
    found = checkpoint if isinstance(checkpoint, Checkpoint) else find_checkpoint(checkpoint, backbone)
    return load_checkpoint(found, task=task).model


def load_checkpoint(found: Checkpoint, *, task: str | Task | None = None) -> Loaded:
    """A checkpoint with its kind and its model; arguments and errors as of `load_model`."""
    wanted = task_named(task) if isinstance(task, str) and not isinstance(task, Task) else task
    model = KINDS[found.kind].load(found, wanted.trained if wanted is not None else None).eval()
    return Loaded(found, model, wanted)


def adapter_layers(model: nn.Module) -> dict[str, AdaKronLayer]:
    """The AdaKron layers of a model by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, AdaKronLayer)}


def task_model_of(loaded: Loaded, module: nn.Module | None = None) -> TaskModel:
    """A loaded model behind its signature.

    Args:
        loaded: The model.
        module: What it was folded to; the eager model by default.
    """
    pooling = read_pooling(loaded.checkpoint.backbone_folder)
    return TaskModel(loaded.base if module is None else module, loaded.task, pooling=pooling).eval()

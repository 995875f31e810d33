"""Models without an adapter: folders as `save_pretrained` of transformers writes them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from torch import nn
from transformers import PreTrainedModel

from adakron_export.adapter.folding import static_copy
from adakron_export.checkpoints.backbone import check_head, load_backbone, load_config, weight_files
from adakron_export.checkpoints.checkpoint import Checkpoint
from adakron_export.errors import CheckpointError
from adakron_export.tasks import Task, infer_task

MODEL_CONFIG = "config.json"


def is_plain_model(path: Path, settings: Mapping[str, Any] | None) -> bool:
    """Whether a folder is one; an adapter's own ``config.json`` makes none."""
    return settings is None and (path / MODEL_CONFIG).is_file() and bool(weight_files(path))


def find_plain(path: Path, _settings: Mapping[str, Any] | None, backbone: str | None) -> Checkpoint:
    """The folder, which is its own backbone.

    Raises:
        CheckpointError: Another backbone is named.
    """
    if backbone is not None and Path(backbone).resolve() != path.resolve():
        raise CheckpointError(f"{path} is a whole model, which no backbone is for; leave --backbone out")
    return Checkpoint(path, weight_files(path)[0], str(path), path, "none")


def load_plain(checkpoint: Checkpoint, task: Task | None) -> PreTrainedModel:
    """Load a fine-tuned model; errors as of `load_model`."""
    config = load_config(checkpoint)
    model, new = load_backbone(checkpoint.backbone, checkpoint.backbone_folder, config, task or infer_task(config))
    check_head(checkpoint, new, set())
    return model


def fold_plain(model: nn.Module) -> nn.Module:
    """The model without its dropout; it shares the storage of ``model``."""
    return static_copy(cast(PreTrainedModel, model))

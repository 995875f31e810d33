"""Loads a file of the reference implementation onto its backbone."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from adakron_export.adapter.config import AdaKronConfig
from adakron_export.adapter.tuner import layer_index
from adakron_export.backbones.table import default_target
from adakron_export.checkpoints.backbone import backbone_folder, check_head, load_backbone, load_config, set_labels
from adakron_export.checkpoints.checkpoint import Checkpoint
from adakron_export.checkpoints.peft_folder import check_tensors, with_adapter
from adakron_export.checkpoints.reference import ReferenceFile, is_reference_name, read_reference
from adakron_export.errors import CheckpointError, first_few
from adakron_export.tasks import Task, infer_task, peft_task_type

_PEFT_HEADS = {"classifier", "score", "qa_outputs"}  # what PEFT's task types save by themselves


def is_reference(path: Path, _settings: Mapping[str, Any] | None) -> bool:
    """Whether a path is a file, which no other kind is."""
    return path.is_file()


def find_reference(path: Path, _settings: Mapping[str, Any] | None, backbone: str | None) -> Checkpoint:
    """The file and its backbone.

    Raises:
        CheckpointError: The file has another ending, or no backbone is named.
        BackboneError: The backbone is not there.
    """
    if not is_reference_name(path):
        raise CheckpointError(
            f"{path} is a {path.suffix or 'nameless'} file; a checkpoint is a PEFT folder, or a .bin, .pt or .pth "
            "file of the reference implementation"
        )
    if backbone is None:
        raise CheckpointError(f"{path} does not name its backbone; pass --backbone with its folder or hub id")
    return Checkpoint(path, path, backbone, backbone_folder(backbone), "adakron-reference")


def load_reference(checkpoint: Checkpoint, task: Task | None) -> PeftModel:
    """Load a file of the reference implementation; see `load_model`."""
    file = read_reference(checkpoint.path)
    config = load_config(checkpoint)
    set_labels(config, file.others)
    task = task or _reference_task(config, file)
    model, new = load_backbone(checkpoint.backbone, checkpoint.backbone_folder, config, task)
    targets = _reference_targets(checkpoint, model, file)
    head = _head_modules(checkpoint, model, file)
    adapter = AdaKronConfig(
        r=file.r,
        k=file.k,
        kron_order=file.order.value,
        num_experts=file.num_experts,
        target_modules=default_target(config.model_type),
        layers_to_transform=_layers(model, list(targets.values())),
        modules_to_save=sorted(head - _PEFT_HEADS) or None,
        task_type=peft_task_type(task),
        base_model_name_or_path=checkpoint.backbone,
        inference_mode=True,
    )
    loaded = with_adapter(model, adapter)
    tensors = _reference_tensors(file, targets)
    tensors.update(
        {f"base_model.model.{name}": tensor for name, tensor in file.others.items() if name.partition(".")[0] in head}
    )
    expected = get_peft_model_state_dict(loaded, save_embedding_layers=False)
    check_tensors(checkpoint, expected=expected, found=tensors)
    check_head(checkpoint, new, {key.removeprefix("base_model.model.") for key in tensors})
    set_peft_model_state_dict(loaded, tensors)
    return loaded


def _reference_task(config: PretrainedConfig, file: ReferenceFile) -> Task:
    heads = {name.partition(".")[0] for name in file.others}
    if "qa_outputs" in heads:
        return Task.QUESTION_ANSWERING
    inferred = infer_task(config)
    has_classifier = bool(heads & {"classifier", "score"})
    if has_classifier and inferred not in (Task.TEXT_CLASSIFICATION, Task.TOKEN_CLASSIFICATION):
        return Task.TEXT_CLASSIFICATION
    return inferred


def _reference_targets(checkpoint: Checkpoint, model: nn.Module, file: ReferenceFile) -> dict[str, str]:
    """From the reference's owner of an adapter to the projection in the backbone."""
    pattern = re.compile(default_target(getattr(model.config, "model_type", None)))
    projections = {name.rpartition(".")[0]: name for name, _ in model.named_modules() if pattern.fullmatch(name)}
    targets = {}
    for owner in file.adapters:
        fits = [parent for parent in projections if parent == owner or parent.endswith(f".{owner}")]
        if len(fits) != 1:
            raise CheckpointError(
                f"{checkpoint.path}: has an adapter at {owner}, where the backbone {checkpoint.backbone!r} has no "
                f"FFN output; its own are at {first_few(projections, 3)}"
            )
        targets[owner] = projections[fits[0]]
    return targets


def _layers(model: nn.Module, targets: list[str]) -> list[int] | None:
    """The layers with an adapter, or ``None`` for all of them."""
    layers = sorted({index for name in targets if (index := layer_index(name)) is not None})
    return None if len(layers) == getattr(model.config, "num_hidden_layers", None) else layers


def _head_modules(checkpoint: Checkpoint, model: PreTrainedModel, file: ReferenceFile) -> set[str]:
    """The top-level modules that the file brings; everything else in it must be the backbone's own."""
    own = model.state_dict()
    prefix = f"{model.base_model_prefix}."
    heads: set[str] = set()
    extra, changed = [], []
    for name, tensor in file.others.items():
        known = own.get(name, own.get(prefix + name))
        if known is None:
            extra.append(name)
        elif not name.startswith(prefix) and name in own and not _is_tied(model, name):
            heads.add(name.partition(".")[0])
        elif known.shape != tensor.shape or not torch.equal(known, tensor.to(known.dtype)):
            changed.append(name)
    if extra or changed:
        parts = [
            f"{len(names)} {title}: {first_few(sorted(names), 3)}"
            for title, names in (("it does not have", extra), ("it has with other values", changed))
            if names
        ]
        raise CheckpointError(
            f"{checkpoint.path} was trained on another backbone than {checkpoint.backbone!r}; tensors that "
            + "; tensors that ".join(parts)
        )
    return heads


def _is_tied(model: PreTrainedModel, name: str) -> bool:
    parameters = dict(model.named_parameters(remove_duplicate=False))
    embedding = model.get_input_embeddings().weight if hasattr(model, "get_input_embeddings") else None
    return embedding is not None and parameters.get(name) is embedding


def _reference_tensors(file: ReferenceFile, targets: Mapping[str, str]) -> dict[str, Tensor]:
    """The adapters under the names that PEFT saves them."""
    tensors: dict[str, Tensor] = {}
    for owner, adapter in file.adapters.items():
        for name, small in (("a1", adapter.a1), ("a2", adapter.a2), ("up", adapter.up)):
            key = f"base_model.model.{targets[owner]}.adakron_{name}"
            mixture = small.experts > 1
            tensors[f"{key}.weight"] = small.weight if mixture else small.weight[0]
            tensors[f"{key}.bias"] = small.bias if mixture else small.bias[0]
            if mixture:
                tensors[f"{key}.expert_scores"] = small.scores
    return tensors

"""Reads AdapterHub's checkpoints: folders as `save_adapter` of the library `adapters` writes them, without it.

A folder has ``adapter_config.json`` with a ``config`` part, ``adapter.safetensors`` or ``pytorch_adapter.bin``, and
where a head was saved ``head_config.json`` with ``model_head.safetensors`` or ``pytorch_model_head.bin``. Bottlenecks
become this package's own PEFT method, LoRA and IA3 PEFT's.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peft import PeftModel
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict

from adakron_export.checkpoints.adapterhub_bottlenecks import bottleneck_adapter_of, bottleneck_settings
from adakron_export.checkpoints.adapterhub_head import AdapterHubHead, first_there, read_tensors
from adakron_export.checkpoints.adapterhub_lora import lora_adapter_of, lora_settings
from adakron_export.checkpoints.backbone import backbone_folder, check_head, load_config
from adakron_export.checkpoints.checkpoint import ADAPTER_CONFIG, Checkpoint
from adakron_export.checkpoints.peft_folder import adapter_settings, beside, check_tensors, with_adapter
from adakron_export.errors import CheckpointError, told_as
from adakron_export.tasks import Task

WEIGHTS = ("adapter.safetensors", "pytorch_adapter.bin")
_METHODS = {None: (bottleneck_settings, bottleneck_adapter_of), "lora": (lora_settings, lora_adapter_of)}
_REFUSED = {
    "mtl_lora": "LoRA of several tasks",
    "prefix_tuning": "prefix tuning, whose trained keys and values stand beside the text's own",
    "prompt_tuning": "prompt tuning, whose trained vectors stand in front of each text",
    "reft": "ReFT",
    "union": "a union of several methods",
}


def is_adapterhub(_path: Path, settings: Mapping[str, Any] | None) -> bool:
    """Whether a folder holds an adapter of AdapterHub's library: its configuration has a part of its own."""
    return settings is not None and "peft_type" not in settings and "config" in settings


def find_adapterhub(path: Path, settings: Mapping[str, Any] | None, backbone: str | None) -> Checkpoint:
    """The folder and its backbone.

    Raises:
        CheckpointError: The method cannot be exported, or the folder lacks weights or a backbone's name.
        BackboneError: The backbone is not there.
    """
    assert settings is not None
    check, _ = _METHODS[_method_of(path, settings)]
    check(path, settings["config"])  # refuses at once what cannot be taken
    weights = first_there(path, WEIGHTS)
    if weights is None:
        raise CheckpointError(
            f"{path}: neither {' nor '.join(WEIGHTS)} is there; save the adapter with save_adapter()"
        )
    named = backbone or settings.get("model_name")
    if not isinstance(named, str) or not named:
        raise CheckpointError(f"{path}: names no backbone; pass --backbone with its folder or hub id")
    place = beside(path, named)
    return Checkpoint(path, weights, place, backbone_folder(place), "adapterhub")


def _method_of(path: Path, settings: Mapping[str, Any]) -> str | None:
    file, config = path / ADAPTER_CONFIG, settings["config"]
    if not isinstance(config, dict):
        raise CheckpointError(f"{file}: config is {config!r:.60}; save the adapter with a current release of adapters")
    method = config.get("architecture")
    if method not in (None, "lora"):
        raise CheckpointError(
            f"{file}: the adapter is {_REFUSED.get(str(method), repr(method)[:60])}, which is not read from "
            "AdapterHub's files; bottlenecks, Compacter, LoRA and IA3 are"
        )
    return method


def load_adapterhub(checkpoint: Checkpoint, task: Task | None) -> PeftModel:
    """Load an AdapterHub checkpoint as a PEFT model; errors as of `load_model`."""
    content = adapter_settings(checkpoint.path)
    _, adapter_of = _METHODS[_method_of(checkpoint.path, content)]
    head = AdapterHubHead.read(checkpoint.path, str(content.get("name")))
    model, new = head.model(checkpoint, load_config(checkpoint), task)
    adapter, own = adapter_of(checkpoint.path, content["config"], model, read_tensors(checkpoint.weights))
    adapter.modules_to_save = head.modules or None
    adapter.base_model_name_or_path = checkpoint.backbone
    adapter.inference_mode = True
    with told_as(CheckpointError, f"{checkpoint.path / ADAPTER_CONFIG} does not fit the backbone"):
        loaded = with_adapter(model, adapter)
    tensors = {f"base_model.model.{name}": tensor for name, tensor in {**own, **head.tensors}.items()}
    check_tensors(checkpoint, expected=get_peft_model_state_dict(loaded, save_embedding_layers=False), found=tensors)
    check_head(checkpoint, new, {*own, *head.tensors})
    set_peft_model_state_dict(loaded, tensors)
    return loaded

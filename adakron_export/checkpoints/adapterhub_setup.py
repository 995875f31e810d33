"""AdapterHub's setups of several adapters, as `save_adapter_setup` writes them: AdapterFusion, and stacks.

A folder has ``adapter_setup.json``, a folder for each adapter, for a fusion one that is called ``a,b``, and the head's
files in the folder itself or in one of the head's name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from peft import PeftModel
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor
from transformers import PreTrainedModel

from adakron_export.adapter.bottleneck.config import BottleneckConfig
from adakron_export.adapter.bottleneck.fusion import Fusion
from adakron_export.adapter.bottleneck.layer import BottleneckLayer
from adakron_export.adapter.tuner import layer_index
from adakron_export.checkpoints.adapterhub import WEIGHTS
from adakron_export.checkpoints.adapterhub_bottlenecks import behind, bottleneck_adapter_of
from adakron_export.checkpoints.adapterhub_head import AdapterHubHead, first_there, read_tensors
from adakron_export.checkpoints.backbone import backbone_folder, check_head, load_config
from adakron_export.checkpoints.checkpoint import ADAPTER_CONFIG, Checkpoint
from adakron_export.checkpoints.peft_folder import adapter_settings, beside, check_tensors, with_adapter
from adakron_export.errors import CheckpointError, first_few, told_as
from adakron_export.files.records import read_object, record_of
from adakron_export.tasks import Task

SETUP = "adapter_setup.json"
FUSION_CONFIG = "adapter_fusion_config.json"
FUSION_WEIGHTS = ("model_adapter_fusion.safetensors", "pytorch_model_adapter_fusion.bin")
_NAME = re.compile(r"[\w-]+")
_FUSION_KEY = re.compile(r"(?P<layer>.*?\.\d+)\.(?P<where>[\w.]+)\.adapter_fusion_layer\.[^.]+\.(?P<part>[\w.]+)")
_TRAINING = {"regularization", "value_initialized", "dropout_prob"}  # which change nothing of a trained fusion


@dataclass(frozen=True, slots=True)
class _Setup:
    type: Literal["Fuse", "Stack"]
    children: list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class _FusionSettings:
    """AdapterHub's `AdapterFusionConfig`, as far as it changes what a trained fusion answers."""

    key: bool
    query: bool
    value: bool
    query_before_ln: bool = False
    residual_before: bool = False
    temperature: bool = False
    value_before_softmax: bool = True


def is_setup(path: Path, settings: Mapping[str, Any] | None) -> bool:
    """Whether a folder holds a setup of several adapters."""
    return settings is None and (path / SETUP).is_file()


def find_setup(path: Path, _settings: Mapping[str, Any] | None, backbone: str | None) -> Checkpoint:
    """The folder and its backbone.

    Raises:
        CheckpointError: The setup is of a form that is not exported, or a part of it lacks.
        BackboneError: The backbone is not there.
    """
    fused, names, _ = _read_setup(path)
    weights = [first_there(path / name, WEIGHTS) for name in names]
    weights += [first_there(path / ",".join(names), FUSION_WEIGHTS)] if fused else []
    found = [each for each in weights if each is not None]
    if len(found) < len(weights) or not all((path / name / ADAPTER_CONFIG).is_file() for name in names):
        raise CheckpointError(
            f"{path}: files of an adapter or of the fusion lack; save all of it with save_adapter_setup()"
        )
    named = backbone or adapter_settings(path / names[0]).get("model_name")
    if not isinstance(named, str) or not named:
        raise CheckpointError(f"{path}: names no backbone; pass --backbone with its folder or hub id")
    place = beside(path, named)
    return Checkpoint(path, found[-1], place, backbone_folder(place), "adapterhub-setup")


def _read_setup(path: Path) -> tuple[bool, list[str], Path | None]:
    """Whether the adapters are fused, their names in their order, and the folder of the head."""
    file = path / SETUP
    try:
        content = read_object(file)
        setup = record_of(
            {key: value for key, value in dict(content["adapter_setup"]).items() if key != "kwargs"}, _Setup
        )
        names = [each["children"][0] for each in setup.children if each["type"] == "single"]
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise CheckpointError(
            f"{file}: a setup of this form is not exported ({error}); Fuse and Stack of adapters are"
        ) from error
    wrong = [str(name) for name in names if not isinstance(name, str) or not _NAME.fullmatch(name)]
    head = content.get("head_setup")
    if wrong or len(names) != len(setup.children) or len({*names}) < 2 or len({*names}) < len(names):
        raise CheckpointError(
            f"{file}: is not made of two adapters or more, each by its name: {first_few(wrong or names)}"
        )
    if head is not None and head is not True and not (isinstance(head, str) and _NAME.fullmatch(head)):
        raise CheckpointError(f"{file}: has heads {head!r:.60}; one head is exported")
    return setup.type == "Fuse", names, None if head is None else path if head is True else path / str(head)


def load_setup(checkpoint: Checkpoint, task: Task | None) -> PeftModel:
    """Load a setup: all its adapters active, in their order, and fused where they are; errors as of `load_model`."""
    path = checkpoint.path
    fused, names, head_folder = _read_setup(path)
    head = AdapterHubHead() if head_folder is None else AdapterHubHead.read(head_folder, head_folder.name)
    model, new = head.model(checkpoint, load_config(checkpoint), task)
    check_head(checkpoint, new, {*head.tensors})
    _load_head(checkpoint, model, head.tensors)
    loaded, configs = _with_adapters(checkpoint, model, names)
    _check_together(checkpoint, configs, fused=fused)
    loaded.base_model.set_adapter([*configs])
    if fused:
        _add_fusion(checkpoint, loaded, ",".join(names))
    return loaded


def _with_adapters(
    checkpoint: Checkpoint, model: PreTrainedModel, names: Sequence[str]
) -> tuple[PeftModel, dict[str, BottleneckConfig]]:
    """The model with all adapters, and their configurations by the names that PEFT has them by."""
    loaded: PeftModel | None = None
    configs: dict[str, BottleneckConfig] = {}
    for index, name in enumerate(names):
        part, folder = f"part_{index}", checkpoint.path / name  # PEFT takes not every name
        config = adapter_settings(folder).get("config")
        if not isinstance(config, dict) or config.get("architecture") is not None:
            raise CheckpointError(f"{folder / ADAPTER_CONFIG}: is no bottleneck, which setups are exported of")
        adapter, tensors = bottleneck_adapter_of(folder, config, model, _adapter_weights(folder))
        adapter.base_model_name_or_path, adapter.inference_mode = checkpoint.backbone, True
        configs[part] = adapter
        with told_as(CheckpointError, f"{folder / ADAPTER_CONFIG} does not fit the backbone"):
            if loaded is None:
                loaded = with_adapter(model, adapter, name=part)
            else:
                loaded.add_adapter(part, adapter)
        tensors = {f"base_model.model.{key}": tensor for key, tensor in tensors.items()}
        expected = get_peft_model_state_dict(loaded, adapter_name=part, save_embedding_layers=False)
        check_tensors(checkpoint, expected=expected, found=tensors)
        set_peft_model_state_dict(loaded, tensors, adapter_name=part)
    assert loaded is not None
    return loaded, configs


def _adapter_weights(folder: Path) -> dict[str, Tensor]:
    file = first_there(folder, WEIGHTS)
    assert file is not None
    return read_tensors(file)


def _load_head(checkpoint: Checkpoint, model: PreTrainedModel, tensors: Mapping[str, Tensor]) -> None:
    own = model.state_dict()
    expected = {key: own[key] for key in own if key.partition(".")[0] in {name.partition(".")[0] for name in tensors}}
    check_tensors(checkpoint, expected=expected, found=tensors)
    model.load_state_dict(dict(tensors), strict=False)


def _check_together(checkpoint: Checkpoint, configs: Mapping[str, BottleneckConfig], *, fused: bool) -> None:
    """Raise where adapters together would be computed otherwise than AdapterHub does."""
    first, *others = configs.values()
    places = {(each.position, str(each.layers_to_transform)) for each in configs.values()}
    if len(places) > 1:
        raise CheckpointError(f"{checkpoint.path}: its adapters sit in different places, which is not exported")
    if any(each.parallel for each in configs.values()):
        raise CheckpointError(f"{checkpoint.path}: has parallel adapters in a setup, which is not exported")
    if any(each.invertible for each in (others if not fused else configs.values())):
        raise CheckpointError(f"{checkpoint.path}: has an invertible adapter that is not the first of a stack")
    if not first.original_ln_after or any(each.original_ln_after != first.original_ln_after for each in others):
        raise CheckpointError(f"{checkpoint.path}: leaves out the LayerNorm after its adapters, which is not exported")


def _add_fusion(checkpoint: Checkpoint, model: PeftModel, name: str) -> None:
    folder = checkpoint.path / name
    file, weights = folder / FUSION_CONFIG, first_there(folder, FUSION_WEIGHTS)
    assert weights is not None
    try:
        config = read_object(file)["config"]
        known = {row.name for row in fields(_FusionSettings)}
        given = {key: value for key, value in config.items() if key not in _TRAINING and value is not None}
        settings = record_of(given, _FusionSettings)
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{file}: not readable ({error})") from error
    refused = [each for each in ("residual_before", "temperature") if getattr(settings, each)]
    if refused or (settings.value and not settings.value_before_softmax):
        raise CheckpointError(f"{file}: has {first_few(refused or sorted(known))} set, which is not exported")
    tensors = _by_place(weights, read_tensors(weights))
    for key, layer in model.get_base_model().named_modules():
        if not isinstance(layer, BottleneckLayer):
            continue
        fusion = Fusion(layer.hidden, query=settings.query, key=settings.key, value=settings.value,
                        query_before_ln=settings.query_before_ln)  # fmt: skip
        own = tensors.pop((layer_index(key), behind(key)), {})
        check_tensors(checkpoint, expected=fusion.state_dict(), found=own)
        fusion.load_state_dict(own)
        layer.fusion = fusion.eval().requires_grad_(requires_grad=False)
    if tensors:
        raise CheckpointError(f"{weights}: has a fusion where there is no adapter: {first_few(map(str, tensors))}")


def _by_place(file: Path, tensors: Mapping[str, Tensor]) -> dict[tuple[int | None, str], dict[str, Tensor]]:
    found: dict[tuple[int | None, str], dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        match = _FUSION_KEY.fullmatch(key)
        if match is None:
            raise CheckpointError(f"{file}: {key} is no part of a fusion that is known")
        found.setdefault((layer_index(f"{match['layer']}."), behind(match["where"])), {})[match["part"]] = tensor
    return found


def describe_setup(checkpoint: Checkpoint) -> dict[str, Any]:
    """What manifest and `inspect` say of a setup."""
    fused, names, _ = _read_setup(checkpoint.path)
    settings = {name: adapter_settings(checkpoint.path / name)["config"] for name in names}
    return {"peft_type": "BOTTLENECK", "setup": "Fuse" if fused else "Stack", "adapters": settings}

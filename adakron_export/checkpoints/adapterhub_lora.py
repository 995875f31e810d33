"""AdapterHub's LoRA and IA3, in PEFT's terms."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from peft import IA3Config, LoraConfig, PeftConfig
from torch import Tensor
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from adakron_export.adapter.tuner import layer_index
from adakron_export.checkpoints.adapterhub_settings import settings_as
from adakron_export.errors import CheckpointError

_TRAINING = {"dropout", "init_weights", "init_weights_seed"}  # which change nothing of a trained adapter
_REFUSED = {
    "use_gating": "a gate over the tokens",
    "use_dora": "DoRA, which AdapterHub computes otherwise than PEFT: it scales the bias too",
    "vera_d": "VeRA",
    "vera_b": "VeRA",
}
_KEY = re.compile(r"(?P<module>.+)\.loras\.[^.]+\.(?P<part>lora_[AB])")


@dataclass(frozen=True, slots=True)
class LoraSettings:
    """AdapterHub's `LoRAConfig`, as far as it changes what a trained adapter answers, with that class's defaults."""

    architecture: str
    r: Annotated[int, msgspec.Meta(gt=0, le=2**16)] = 8
    alpha: float = 8
    selfattn_lora: bool = True
    intermediate_lora: bool = False
    output_lora: bool = False
    leave_out: list[int] = field(default_factory=list)
    attn_matrices: list[str] = field(default_factory=lambda: ["q", "v"])
    composition_mode: Literal["add", "scale"] = "add"
    dtype: str | None = None


def lora_settings(path: Path, config: Mapping[str, Any]) -> LoraSettings:
    """The configuration, in AdapterHub's own terms.

    Raises:
        CheckpointError: A setting is not known or impossible.
    """
    return settings_as(LoraSettings, path, config, refused=_REFUSED, ignored=_TRAINING)


def lora_adapter_of(
    path: Path, config: Mapping[str, Any], model: PreTrainedModel, tensors: Mapping[str, Tensor]
) -> tuple[PeftConfig, dict[str, Tensor]]:
    """An adapter of a folder, for a backbone.

    Args:
        path: The folder.
        config: The configuration, in AdapterHub's terms.
        model: The backbone.
        tensors: The adapter's weights, in AdapterHub's names.

    Returns:
        PEFT's configuration, and the weights in PEFT's names.

    Raises:
        CheckpointError: A setting is impossible, or the weights do not fit.
    """
    settings, modules = lora_settings(path, config), dict(model.named_modules())
    parts: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for key, tensor in tensors.items():
        found = _KEY.fullmatch(key)
        if found is None or found["module"] not in modules:
            raise CheckpointError(f"{path}: {key} belongs to no module of a {type(model).__name__}")
        parts[found["module"]][found["part"]] = tensor
    _check_layers(path, settings, model, parts)
    names = sorted(parts)
    turned = {isinstance(modules[name], Conv1D) for name in names}
    if len(turned) > 1:
        raise CheckpointError(f"{path}: adapts linear layers and Conv1D at once, which PEFT does not")
    if settings.composition_mode == "scale":
        scaled = {f"{name}.ia3_l": _taken(path, name, own, "lora_B") * settings.alpha for name, own in parts.items()}
        adapter = IA3Config(target_modules=names, feedforward_modules=[], fan_in_fan_out=True in turned)
        return adapter, scaled
    own = {
        f"{name}.{part}.weight": _taken(path, name, each, part)
        for name, each in parts.items()
        for part in ("lora_A", "lora_B")
    }
    adapter = LoraConfig(r=settings.r, lora_alpha=settings.alpha, target_modules=names, fan_in_fan_out=True in turned)
    return adapter, own


def _taken(path: Path, module: str, own: Mapping[str, Tensor], part: str) -> Tensor:
    if part not in own:
        raise CheckpointError(f"{path}: {module}: {part} is missing")
    return own[part].contiguous()


def _check_layers(
    path: Path, settings: LoraSettings, model: PreTrainedModel, parts: Mapping[str, Mapping[str, Tensor]]
) -> None:
    """Raise where the file has other places than the configuration: each layer that is not left out has the same."""
    by_layer: dict[int | None, set[str]] = defaultdict(set)
    for name in parts:
        by_layer[layer_index(name)].add(re.sub(r"\.\d+\.", ".N.", name, count=1))
    count = int(model.config.num_hidden_layers)
    wanted = {index for index in range(count) if index not in settings.leave_out}
    places = {frozenset(each) for each in by_layer.values()}
    expected = len(settings.attn_matrices) * settings.selfattn_lora + settings.intermediate_lora + settings.output_lora
    if by_layer.keys() != wanted or len(places) != 1 or len(next(iter(places))) != expected:
        raise CheckpointError(
            f"{path}: has weights for {len(parts)} modules in {len(by_layer)} layers, where its configuration has "
            f"{expected} in each of {len(wanted)}"
        )

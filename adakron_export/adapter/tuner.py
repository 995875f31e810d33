"""The PEFT tuner: puts AdaKron layers into a model, and registers the method with PEFT."""

from __future__ import annotations

import re
from typing import Any, cast

import peft
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from torch import nn

from adakron_export.adapter.backbones import default_target
from adakron_export.adapter.config import PEFT_TYPE, AdaKronConfig
from adakron_export.adapter.layer import AdaKronLayer
from adakron_export.errors import AdapterConfigError

PREFIX = "adakron_"


def _output_width(module: nn.Module, name: str) -> int:
    for attribute in ("out_features", "nf"):  # nf: the Conv1D of transformers
        width = getattr(module, attribute, None)
        if isinstance(width, int):
            return width
    raise AdapterConfigError(
        f"{name} is a {type(module).__name__}, which does not say how wide its output is; "
        "target_modules must name linear projections (Linear, Conv1D or a quantised linear layer)"
    )


def layer_index(name: str, layers_pattern: list[str] | str | None = None) -> int | None:
    """The layer number in a module's name: after ``layers_pattern``, or the first number."""
    patterns = [layers_pattern] if isinstance(layers_pattern, str) else (layers_pattern or [r"[^.]+"])
    for pattern in patterns:
        found = re.search(rf"(?:^|\.){pattern}\.(\d+)(?:\.|$)", name)
        if found:
            return int(found.group(1))
    return None


class AdaKronModel(BaseTuner):  # type: ignore[misc,unused-ignore]
    """A model with AdaKron adapters; made by `peft.get_peft_model(model, AdaKronConfig(...))`."""

    prefix: str = PREFIX
    tuner_layer_cls = AdaKronLayer
    target_module_mapping: dict[str, list[str]] = {}  # noqa: RUF012 - PEFT's name; our table is backbones.py

    def _prepare_adapter_config(self, peft_config: AdaKronConfig, model_config: dict[str, Any]) -> AdaKronConfig:
        if peft_config.target_modules is None:
            peft_config.target_modules = default_target(model_config.get("model_type"))
        return peft_config

    @staticmethod
    def _check_target_module_exists(peft_config: AdaKronConfig, key: str) -> Any:
        # PEFT ignores layers_to_transform where target_modules is a regular expression, as our defaults are.
        found = BaseTuner._check_target_module_exists(peft_config, key)
        wanted = peft_config.layers_to_transform
        if not found or wanted is None:
            return found
        indices = [wanted] if isinstance(wanted, int) else list(wanted)
        return layer_index(key, peft_config.layers_pattern) in indices

    def _create_and_replace(
        self,
        peft_config: AdaKronConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        if isinstance(target, AdaKronLayer):
            target.update_layer(adapter_name, peft_config)
            return
        base = target.get_base_layer() if isinstance(target, BaseTunerLayer) else target
        width = _output_width(cast(nn.Module, base), current_key)
        layer = AdaKronLayer(target, adapter_name, peft_config, width)
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(requires_grad=False)
        self._replace_module(parent, target_name, layer, target)


def register() -> None:
    """Make PEFT know the method; calling it twice does nothing.

    PEFT's own `register_peft_method` takes only names of its `PeftType` enum (0.21), while the tables it fills
    are keyed by plain strings: so the three entries are written here.
    """
    from peft.mapping import PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING

    peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING[PEFT_TYPE] = AdaKronConfig
    PEFT_TYPE_TO_TUNER_MAPPING[PEFT_TYPE] = AdaKronModel
    PEFT_TYPE_TO_PREFIX_MAPPING[PEFT_TYPE] = PREFIX

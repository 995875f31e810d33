"""The PEFT tuner: puts AdaKron layers into a model, and registers the method with PEFT."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, cast

import peft
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer, check_target_module_exists
from peft.utils.other import AuxiliaryTrainingWrapper, get_pattern_key
from torch import nn

from adakron_export.adapter.config import PEFT_TYPE, AdaKronConfig
from adakron_export.adapter.layer import BASE, CANNOT_MERGE, AdaKronLayer
from adakron_export.backbones.table import BACKBONES, default_target
from adakron_export.errors import AdapterConfigError, AdapterUseError

PREFIX = "adakron_"


def widths(module: nn.Module, name: str) -> tuple[int | None, int]:
    """The widths of a projection's input, where it says so, and output.

    Raises:
        AdapterConfigError: The projection does not say how wide its output is.
    """
    for inputs, outputs in (("in_features", "out_features"), ("nx", "nf")):  # the latter: the Conv1D of transformers
        width = getattr(module, outputs, None)
        if isinstance(width, int):
            before = getattr(module, inputs, None)
            return (before if isinstance(before, int) else None), width
    raise AdapterConfigError(
        f"{name} is a {type(module).__name__}, which does not say how wide its output is; "
        "target_modules must name linear projections (Linear, Conv1D or a quantised linear layer)"
    )


def layer_index(name: str) -> int | None:
    """The layer number in a module's name: the first one."""
    found = re.search(r"(?:^|\.)[^.]+\.(\d+)(?:\.|$)", name)
    return int(found[1]) if found else None


def is_target(config: Any, key: str) -> Any:
    """PEFT's rule, which chooses layers only where target_modules is a list, and there below a parent only."""
    anywhere = copy.copy(config)
    anywhere.layers_to_transform = None
    found = check_target_module_exists(anywhere, key)
    if not found or config.layers_to_transform is None:
        return found
    by_name = copy.copy(config)
    by_name.target_modules = [key.rpartition(".")[2]]
    return check_target_module_exists(by_name, f"model.{key}")


class AdaKronModel(BaseTuner):  # type: ignore[misc,unused-ignore]
    """A model with AdaKron adapters; made by `peft.get_peft_model(model, AdaKronConfig(...))`."""

    prefix: str = PREFIX
    tuner_layer_cls = AdaKronLayer
    target_module_mapping: ClassVar[dict[str, str]] = {
        name: row.target for name, row in BACKBONES.items() if row.target
    }

    def _prepare_adapter_config(self, peft_config: AdaKronConfig, model_config: dict[str, Any]) -> AdaKronConfig:
        if peft_config.target_modules is None:
            peft_config.target_modules = default_target(model_config.get("model_type"))
        return peft_config

    @staticmethod
    def _check_target_module_exists(peft_config: AdaKronConfig, key: str) -> Any:
        return is_target(peft_config, key)

    @contextmanager
    def _enable_peft_forward_hooks(
        self, *_args: Any, adapter_names: Sequence[str] | None = None, alora_offsets: Any = None, **kwargs: Any
    ) -> Iterator[None]:
        """PEFT hands on here what it takes out of a forward call: the adapter of each text, in a mixed batch."""
        if alora_offsets is not None:
            raise AdapterUseError("alora_offsets is for aLoRA; AdaKron has no use for it")
        if adapter_names is None:
            yield
            return
        self._check_names(adapter_names)
        beams = kwargs.get("num_beams") or 1
        repeated = [name for name in adapter_names for _ in range(beams)]  # as `generate` repeats the texts

        def pass_on(_module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
            return args, {**kwargs, "adapter_names": repeated}

        hooks = [
            module.register_forward_pre_hook(pass_on, with_kwargs=True)
            for module in self.modules()
            if isinstance(module, (AdaKronLayer, AuxiliaryTrainingWrapper))
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _check_names(self, names: Sequence[str]) -> None:
        if self.training:
            raise AdapterUseError("adapter_names cannot be passed while the model is in training mode; call eval()")
        if isinstance(names, str) or not all(isinstance(name, str) for name in names):
            raise AdapterUseError(f"adapter_names is {names!r}; it must be a list with the adapter of each text")
        known = {name for module in self.modules() if isinstance(module, AdaKronLayer) for name in module.settings}
        unknown = sorted({*names} - known - {BASE})
        if unknown:
            raise AdapterUseError(
                f"adapter_names has {', '.join(map(repr, unknown))}; the model has "
                f"{', '.join(map(repr, sorted(known)))}, and {BASE!r} is the backbone alone"
            )

    def _check_merge_allowed(self) -> None:
        raise AdapterUseError(CANNOT_MERGE)

    def unmerge_adapter(self) -> None:
        """Never: nothing is merged."""
        raise AdapterUseError(CANNOT_MERGE)

    def add_weighted_adapter(self, *_args: Any, **_kwargs: Any) -> None:
        """Never: a sum of non-linear adapters is no such adapter."""
        raise AdapterUseError(
            "AdaKron adapters are non-linear, so that a weighted sum of them is none; activate several with "
            "set_adapter([...]), which adds up what they add"
        )

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
        r = peft_config.rank_pattern.get(get_pattern_key(peft_config.rank_pattern, current_key), peft_config.r)
        if isinstance(target, AdaKronLayer):
            target.update_layer(adapter_name, peft_config, r=r)
            return
        base = target.get_base_layer() if isinstance(target, BaseTunerLayer) else target
        before, width = widths(cast(nn.Module, base), current_key)
        layer = AdaKronLayer(target, adapter_name, peft_config, in_features=before, hidden=width, r=r)
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


@contextmanager
def rescale_adapter_scale(model: nn.Module, multiplier: float) -> Iterator[None]:
    """Within this, all AdaKron adapters of a model add ``multiplier`` times as much, as `peft.helpers` has it.

    Raises:
        AdapterUseError: The model has none.
    """
    layers = [module for module in model.modules() if isinstance(module, AdaKronLayer)]
    if not layers:
        raise AdapterUseError(f"a {type(model).__name__} without AdaKron adapters has no scale")
    before = [dict(layer.scaling) for layer in layers]
    for layer in layers:
        layer.scaling = {name: scale * multiplier for name, scale in layer.scaling.items()}
    try:
        yield
    finally:
        for layer, scaling in zip(layers, before, strict=True):
            layer.scaling = scaling

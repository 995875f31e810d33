"""The PEFT tuner: puts bottleneck adapters into a model, and registers the method with PEFT."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from torch import nn

from adakron_export.adapter.bottleneck.config import BOTTLENECK, BottleneckConfig, Position
from adakron_export.adapter.bottleneck.invertible import InvertibleLayer
from adakron_export.adapter.bottleneck.layer import CANNOT_MERGE, BottleneckLayer, Surroundings
from adakron_export.adapter.tuner import is_target, layer_index, widths
from adakron_export.backbones.table import Backbone, backbone_row
from adakron_export.errors import AdapterConfigError, AdapterUseError

PREFIX = "bottleneck_"


class BottleneckModel(BaseTuner):  # type: ignore[misc,unused-ignore]
    """A model with bottleneck adapters; made by `peft.get_peft_model(model, BottleneckConfig(...))`."""

    prefix: str = PREFIX
    tuner_layer_cls = (BottleneckLayer, InvertibleLayer)

    def _prepare_adapter_config(self, peft_config: BottleneckConfig, model_config: dict[str, Any]) -> BottleneckConfig:
        if peft_config.target_modules is None:
            peft_config.target_modules = backbone_row(model_config).block_targets(
                attention=peft_config.position in (Position.ATTENTION, Position.BOTH),
                ffn=peft_config.position in (Position.FFN, Position.BOTH),
            )
        if peft_config.invertible and self.model.get_output_embeddings() is not None:
            raise AdapterConfigError(
                f"invertible is {peft_config.invertible!r}, and a {type(self.model).__name__} writes with its "
                "embeddings, which would need the inverse; leave it out"
            )
        return peft_config

    @staticmethod
    def _check_target_module_exists(peft_config: BottleneckConfig, key: str) -> Any:
        return _takes_embeddings(peft_config, key) or is_target(peft_config, key)

    @contextmanager
    def _enable_peft_forward_hooks(self, *_args: Any, adapter_names: Any = None, **_kwargs: Any) -> Iterator[None]:
        if adapter_names is not None:
            raise AdapterUseError("adapter_names is for AdaKron and LoRA; one bottleneck answers for a whole batch")
        yield

    def _check_merge_allowed(self) -> None:
        raise AdapterUseError(CANNOT_MERGE)

    def unmerge_adapter(self) -> None:
        """Never: nothing is merged."""
        raise AdapterUseError(CANNOT_MERGE)

    def unload(self) -> nn.Module:
        """The backbone without the adapters."""
        for module in self.modules():
            if isinstance(module, BottleneckLayer) and module.around is not None:
                module.around.release()
        return cast(nn.Module, super().unload())

    def _create_and_replace(
        self,
        peft_config: BottleneckConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        layer: BottleneckLayer | InvertibleLayer
        if _takes_embeddings(peft_config, current_key):
            layer = self._invertible_layer(target)
            layer.update_layer(adapter_name, peft_config)
        else:
            layer = self._bottleneck_layer(peft_config, target, current_key)
            width = peft_config.width(layer.hidden, layer_index(current_key))
            layer.update_layer(adapter_name, peft_config, width=width)
            _check_orders(layer, adapter_name, current_key)
        if layer is target:
            return
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(requires_grad=False)
        self._replace_module(parent, target_name, layer, target)

    def _invertible_layer(self, target: nn.Module) -> InvertibleLayer:
        if isinstance(target, InvertibleLayer):
            return target
        config = self.model.config
        return InvertibleLayer(target, hidden=getattr(config, "embedding_size", None) or config.hidden_size)

    def _bottleneck_layer(self, config: BottleneckConfig, target: nn.Module, key: str) -> BottleneckLayer:
        around = self._surroundings(key) if config.reads_stream else None
        if isinstance(target, BottleneckLayer):
            target.around = target.around or around
            return target
        base = target.get_base_layer() if isinstance(target, BaseTunerLayer) else target
        _, hidden = widths(cast(nn.Module, base), key)
        return BottleneckLayer(target, hidden=hidden, around=around)

    def _surroundings(self, key: str) -> Surroundings:
        row: Backbone = backbone_row(self.get_model_config(self.model))
        found = row.block_of(key)
        if found is None:
            raise AdapterConfigError(
                f"{key} is no output of attention or FFN that is known of a {row.model_type}, so that its stream and "
                "LayerNorm are not known either; set original_ln_before to false, parallel to false and "
                "original_ln_after to true"
            )
        layer, block = found
        norm = None if block.norm is None else self.model.get_submodule(f"{layer}.{block.norm}")
        return Surroundings(self.model.get_submodule(f"{layer}.{block.source}"), norm)


def _takes_embeddings(config: BottleneckConfig, key: str) -> bool:
    """Whether a module is the whole of the embeddings, and gets a coupling block."""
    return bool(config.invertible) and key.rpartition(".")[2] == "embeddings"


def _check_orders(layer: BottleneckLayer, adapter: str, key: str) -> None:
    order = layer.adapter(adapter).order
    if order.residual == "post_add" and layer.around is not None and not layer.around.norm:
        raise AdapterConfigError(
            f"residual_before_ln is 'post_add', which needs a LayerNorm behind {key}; this backbone has it before"
        )


def register() -> None:
    """Make PEFT know the method; calling it twice does nothing."""
    import peft
    from peft.mapping import PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING

    peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING[BOTTLENECK] = BottleneckConfig
    PEFT_TYPE_TO_TUNER_MAPPING[BOTTLENECK] = BottleneckModel
    PEFT_TYPE_TO_PREFIX_MAPPING[BOTTLENECK] = PREFIX

"""Invertible adapters behind the embeddings (Pfeiffer et al., EMNLP 2020): coupling blocks, as AdapterHub has them.

The features are halved into ``x1`` and ``x2``: ``y1 = x1 + F(x2)`` and ``y2 = x2 + G(y1)``, with two small networks F
and G.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from adakron_export.adapter.bottleneck.config import BottleneckConfig, checked_width
from adakron_export.adapter.bottleneck.layer import CANNOT_MERGE, activate
from adakron_export.errors import AdapterUseError

PARTS = ("f_in", "f_out", "g_in", "g_out")


class InvertibleAdapter(nn.Module):
    """The embeddings, followed by one coupling block."""

    def __init__(self, embeddings: nn.Module, parts: dict[str, nn.Linear], activation: str) -> None:
        super().__init__()
        self.embeddings, self.activation = embeddings, activation
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """What the embeddings make of their inputs, ``[batch, tokens, hidden]``, coupled."""
        linears = {name: cast(nn.Linear, getattr(self, name)) for name in PARTS}
        return coupled(self.embeddings(*args, **kwargs), linears, self.activation)


def coupled(embedded: Tensor, parts: dict[str, nn.Linear], activation: str) -> Tensor:
    """The coupling block, ``[batch, tokens, hidden]`` to the same; it computes in its own dtype."""
    first, own = embedded.shape[-1] // 2, embedded.to(parts["f_in"].weight.dtype)
    x1, x2 = own[..., :first], own[..., first:]
    y1 = x1 + parts["f_out"](activate(activation)(parts["f_in"](x2)))
    y2 = x2 + parts["g_out"](activate(activation)(parts["g_in"](y1)))
    return torch.cat((y1, y2), dim=-1).to(embedded.dtype)


class InvertibleLayer(nn.Module, BaseTunerLayer):  # type: ignore[misc,unused-ignore]
    """The embeddings of a backbone, with invertible adapters, which follow one another.

    Args:
        base_layer: The embeddings.
        hidden: Width of their output.
    """

    adapter_layer_names = tuple(f"bottleneck_{name}" for name in PARTS)
    other_param_names = ("activations",)
    # What PEFT's base class has, said for the type checker: torch's own answer for any attribute is Tensor or Module.
    active_adapters: list[str]
    set_adapter: Callable[..., None]
    _move_adapter_to_device_of_base_layer: Callable[[str], None]

    def __init__(self, base_layer: nn.Module, *, hidden: int) -> None:
        super().__init__()
        self.base_layer, self.hidden = base_layer, hidden
        for name in PARTS:
            self.add_module(f"bottleneck_{name}", nn.ModuleDict())
        self.activations: dict[str, str] = {}
        self._disable_adapters = False
        self._active_adapter: list[str] = []
        self.merged_adapters: list[str] = []

    def update_layer(self, adapter_name: str, config: BottleneckConfig) -> None:
        """Add an adapter, which begins as the identity."""
        first = self.hidden // 2
        second = self.hidden - first
        for block, inputs, outputs in (("f", second, first), ("g", first, second)):
            width = checked_width(inputs // config.invertible_reduction_factor, "invertible_reduction_factor")
            out = nn.Linear(width, outputs)
            if config.init_weights:
                nn.init.zeros_(out.weight)
                nn.init.zeros_(out.bias)
            self._of(f"{block}_in")[adapter_name] = nn.Linear(inputs, width)
            self._of(f"{block}_out")[adapter_name] = out
        self.activations[adapter_name] = config.activation
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters or [adapter_name], inference_mode=config.inference_mode)

    def _of(self, part: str) -> nn.ModuleDict:
        return cast(nn.ModuleDict, getattr(self, f"bottleneck_{part}"))

    def parts(self, adapter: str) -> dict[str, nn.Linear]:
        """The four projections of an adapter."""
        return {name: cast(nn.Linear, self._of(name)[adapter]) for name in PARTS}

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:  # noqa: ARG002, RUF100
        """Never: see `CANNOT_MERGE`."""
        raise AdapterUseError(CANNOT_MERGE)

    def unmerge(self) -> None:
        """Never: nothing is merged."""
        raise AdapterUseError(CANNOT_MERGE)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """The embeddings' output, as the active adapters change it."""
        embedded: Tensor = self.base_layer(*args, **kwargs)
        if self.disable_adapters:
            return embedded
        for name in self.active_adapters:
            if name in self.activations:
                embedded = coupled(embedded, self.parts(name), self.activations[name])
        return embedded

"""Folds bottleneck adapters into a static module: one operator per adapter, and nothing of PEFT left.

The scaling moves into the up-projection. Its bias ``c`` moves into the projection's own where nothing nonlinear lies
between: with ``g = h + c``, ``h + c + act(h D + b) U`` is ``g + act(g D + (b - c D)) U``, and an addition of
``[batch, tokens, hidden]`` is saved.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import torch
from peft import PeftModel
from peft.utils.other import ModulesToSaveWrapper
from torch import Tensor, nn

from adakron_export.adapter.bottleneck.config import OPERATOR_ACTIVATIONS
from adakron_export.adapter.bottleneck.invertible import InvertibleAdapter, InvertibleLayer
from adakron_export.adapter.bottleneck.layer import (
    Bottleneck,
    BottleneckLayer,
    Order,
    Surroundings,
    activate,
    composed,
)
from adakron_export.adapter.bottleneck.op import bottleneck_adapter
from adakron_export.adapter.folding import active_adapter, put, shared_memo, with_bias_added, without_dropout


class BottleneckAdapter(nn.Module):
    """A projection followed by one bottleneck; see `bottleneck_adapter` for the shapes."""

    down_weight: Tensor
    down_bias: Tensor
    up_weight: Tensor
    up_bias: Tensor | None

    def __init__(
        self,
        projection: nn.Module,
        adapter: Bottleneck,
        around: Surroundings | None,
        weights: dict[str, Tensor],
    ) -> None:
        super().__init__()
        self.projection, self.around = projection, around
        for name in ("down_weight", "down_bias", "up_weight", "up_bias"):
            self.register_buffer(name, weights[name].contiguous() if name in weights else None)
        self.norm_before, self.norm_after, self.gate = adapter.norm_before, adapter.norm_after, adapter.gate
        self.order, self.activation = adapter.order, adapter.activation
        self.is_operator = (
            adapter.gate is None and adapter.norm_after is None and self.activation in OPERATOR_ACTIVATIONS
        )

    def forward(self, inner: Tensor) -> Tensor:
        """``[batch, tokens, intermediate]`` to ``[batch, tokens, hidden]``."""
        hidden = self.projection(inner)
        stream = self.around.stream.take() if self.around is not None else None
        norm = self.around.norm[0] if self.around is not None and self.around.norm else None
        read, residual = self.order.read(hidden, stream, norm)
        return self.order.close(self._adapted(read, residual), stream, self.around)

    def _adapted(self, read: Tensor, residual: Tensor) -> Tensor:
        normed = read if self.norm_before is None else self.norm_before(read)
        if self.is_operator:
            weights = (self.down_weight, self.down_bias, self.up_weight, self.up_bias)
            return cast(Tensor, bottleneck_adapter(normed, residual, *weights, self.activation))
        delta = activate(self.activation)(normed @ self.down_weight + self.down_bias) @ self.up_weight
        if self.up_bias is not None:
            delta = delta + self.up_bias
        if self.gate is not None:
            delta = delta * torch.sigmoid(self.gate(read)).mean(dim=1, keepdim=True)
        return self.order.add(delta, residual, self.norm_after)


class ComposedAdapters(nn.Module):
    """A projection followed by several bottlenecks, one after the other, or fused."""

    def __init__(self, layer: BottleneckLayer, names: Sequence[str]) -> None:
        super().__init__()
        self.projection, self.around, self.fusion = layer.base_layer, layer.around, layer.fusion
        self.adapters = [_scaled(layer.adapter(name)) for name in names if name in layer.settings]
        for index, adapter in enumerate(self.adapters):  # registered, so that they move along
            for part in ("down", "up", "norm_before", "norm_after", "gate"):
                self.add_module(f"{part}_{index}", getattr(adapter, part))

    def forward(self, inner: Tensor) -> Tensor:
        """``[batch, tokens, intermediate]`` to ``[batch, tokens, hidden]``."""
        hidden = self.projection(inner)
        stream = self.around.stream.take() if self.around is not None else None
        return composed(hidden, stream, self.around, self.adapters, self.fusion) if self.adapters else hidden


def _scaled(adapter: Bottleneck) -> Bottleneck:
    """An adapter whose scaling is part of its up-projection."""
    scale = adapter.scale.detach().double() if isinstance(adapter.scale, Tensor) else adapter.scale
    up = copy.deepcopy(adapter.up).requires_grad_(requires_grad=False)
    with torch.no_grad():
        up.weight.copy_((up.weight.double().T * scale).T)
        up.bias.copy_(up.bias.double() * scale)
    return replace(adapter, up=up, scale=1.0, dropout=nn.Identity())


def fold_bottlenecks(model: PeftModel, *, biases: bool = True) -> nn.Module:
    """The model without PEFT: scaling and biases folded, dropout gone, one `BottleneckAdapter` per adapter.

    Computed in float64 and cast back. The result shares the backbone's storage with ``model``, which stays as it is.
    Several adapters that are active together, as in a stack or a fusion, stay several small networks.

    Args:
        model: The loaded model.
        biases: Whether the biases of up-projections move into those of the projections, where they can; a bank's
            do not.

    Raises:
        ExportError: No adapter is active, or a projection is quantised.
    """
    base, active = model.get_base_model(), list(model.active_adapters)
    adapter = active[0] if len(active) > 1 else active_adapter(model)
    folded = copy.deepcopy(base, shared_memo(base))
    for name, module in list(folded.named_modules()):
        if isinstance(module, BottleneckLayer) and len(active) > 1:
            put(folded, name, ComposedAdapters(module, active))
        elif isinstance(module, BottleneckLayer):
            put(folded, name, _fold_layer(name, module, adapter, biases=biases))
        elif isinstance(module, InvertibleLayer):
            put(folded, name, _fold_invertible(module, adapter))
        elif isinstance(module, ModulesToSaveWrapper):
            put(folded, name, module.modules_to_save[adapter])
    return without_dropout(cast(nn.Module, folded))


def _fold_invertible(layer: InvertibleLayer, adapter: str) -> nn.Module:
    if adapter not in layer.activations:
        return layer.base_layer
    return InvertibleAdapter(layer.base_layer, layer.parts(adapter), layer.activations[adapter])


def _fold_layer(name: str, layer: BottleneckLayer, adapter: str, *, biases: bool) -> nn.Module:
    if adapter not in layer.settings:
        return layer.get_base_layer()
    own = layer.adapter(adapter)
    weights = scaled_weights(own)
    up_bias = None
    if biases and _bias_moves(own, own.order, layer.around):
        up_bias = weights.pop("up_bias")
        if not own.order.parallel:
            weights["down_bias"] = weights["down_bias"] - up_bias @ weights["down_weight"]
    projection = with_bias_added(name, layer.base_layer, up_bias)
    dtype = cast(Tensor, projection.weight).dtype
    cast_weights = {key: tensor.to(dtype) for key, tensor in weights.items()}
    return BottleneckAdapter(projection, own, layer.around, cast_weights)


def scaled_weights(adapter: Bottleneck) -> dict[str, Tensor]:
    """What an adapter computes with, in float64, its scaling in the up-projection.

    Returns:
        ``down_weight [hidden, r]``, ``down_bias [r]``, ``up_weight [r, hidden]`` and ``up_bias [hidden]``.
    """
    scale = adapter.scale.detach().double() if isinstance(adapter.scale, Tensor) else adapter.scale
    return {
        "down_weight": adapter.down.weight.detach().double().T,
        "down_bias": adapter.down.bias.detach().double(),
        "up_weight": adapter.up.weight.detach().double().T * scale,
        "up_bias": adapter.up.bias.detach().double() * scale,
    }


def _bias_moves(adapter: Bottleneck, order: Order, around: Surroundings | None) -> bool:
    """Whether what the adapter adds is linear in the bias, and reads the projection through nothing but sums."""
    if adapter.gate is not None or adapter.norm_after is not None:
        return False
    normed = order.reads_sum and around is not None and bool(around.norm)
    return order.parallel or not (normed or adapter.norm_before is not None)

"""Folds adapters into a static module: one KronAdapter operator per adapter, and nothing of PEFT left.

With ``h = u W + c`` the projection's output and ``b`` the bias of the up-projection, the layer computes
``y = h + act((h A2 + b2) (x) (h A1 + b1)) B + b``, where ``B`` and ``b`` hold the adapter's scale. Written with
``g = h + b`` that is
``y = g + act((g A2 + b2 - b A2) (x) (g A1 + b1 - b A1)) B``: so ``b`` moves into the projection's own bias and
into those of the small networks, exactly, and an addition of ``[batch, tokens, hidden]`` is saved.
"""

from __future__ import annotations

import copy
from collections.abc import Collection
from typing import Any, cast

import torch
from peft import PeftModel
from peft.utils.other import ModulesToSaveWrapper
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from adakron_export.adapter.config import Activation, KronOrder
from adakron_export.adapter.layer import AdaKronLayer
from adakron_export.adapter.op import kron_adapter
from adakron_export.errors import ExportError


class KronAdapter(nn.Module):
    """A projection followed by one `adakron::KronAdapter`; see `kron_adapter` for the shapes."""

    a1_weight: Tensor
    a1_bias: Tensor
    a2_weight: Tensor
    a2_bias: Tensor
    up_weight: Tensor

    def __init__(
        self, projection: nn.Module, weights: dict[str, Tensor], *, order: KronOrder, activation: Activation
    ) -> None:
        super().__init__()
        self.projection = projection
        for name, tensor in weights.items():
            self.register_buffer(name, tensor.contiguous())
        self.order = order
        self.activation = activation

    def forward(self, hidden: Tensor) -> Tensor:
        """``[batch, tokens, intermediate]`` to ``[batch, tokens, hidden]``; OPT has one axis of rows."""
        projected = self.projection(hidden)
        batched = projected if projected.dim() > 2 else projected.unsqueeze(0)  # the operator has three axes
        adapted = cast(
            Tensor,
            kron_adapter(
                batched,
                self.a1_weight,
                self.a1_bias,
                self.a2_weight,
                self.a2_bias,
                self.up_weight,
                self.order.value,
                self.activation.value,
            ),
        )
        return adapted if projected.dim() > 2 else adapted.squeeze(0)


def fold(model: PeftModel) -> nn.Module:
    """The model without PEFT: soups merged, biases folded, dropout gone, one `KronAdapter` per adapter.

    Computed in float64 and cast back. The result shares the backbone's storage with ``model``, which stays
    as it is.

    Args:
        model: The loaded model.

    Raises:
        ExportError: Not exactly one adapter is active, or a projection is quantised.
    """
    adapter = active_adapter(model)
    base = model.get_base_model()
    folded = copy.deepcopy(base, shared_memo(base))
    for name, module in list(folded.named_modules()):
        if isinstance(module, AdaKronLayer):
            put(folded, name, _fold_layer(name, module, adapter))
        elif isinstance(module, ModulesToSaveWrapper):
            put(folded, name, module.modules_to_save[adapter])
    return without_dropout(cast(nn.Module, folded))


def static_copy(model: nn.Module) -> nn.Module:
    """A model without an adapter, without its dropout; it shares the storage of ``model``."""
    return without_dropout(copy.deepcopy(model, shared_memo(model)))


def shared_memo(model: nn.Module, *, without: Collection[int] = ()) -> dict[int, Any]:
    """What lets `copy.deepcopy` share a model's storage, but for the tensors of some ids."""
    parameters = {id(tensor): nn.Parameter(tensor.detach(), requires_grad=False) for tensor in model.parameters()}
    buffers = {id(tensor): tensor for tensor in model.buffers()}
    return {key: tensor for key, tensor in {**parameters, **buffers}.items() if key not in without}


def without_dropout(model: nn.Module) -> nn.Module:
    """The model in eval mode, its dropout replaced in place."""
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Dropout):
            put(model, name, nn.Identity())
    return model.eval()


def active_adapter(model: PeftModel) -> str:
    """The name of the one adapter that is active.

    Raises:
        ExportError: There is not exactly one.
    """
    active = list(model.active_adapters)
    if len(active) != 1:
        raise ExportError(
            f"{len(active)} adapters are active ({', '.join(active)}); an export holds one: call set_adapter(NAME)"
        )
    return str(active[0])


def put(model: nn.Module, name: str, module: nn.Module) -> None:
    """Replace a module of a model."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


def folded_weights(layer: AdaKronLayer, adapter: str) -> dict[str, Tensor]:
    """What an adapter computes with on ``g = h + up_bias``, in float64; see the module's own text.

    Args:
        layer: The layer.
        adapter: An adapter that it has.

    Returns:
        ``a1_weight [hidden, r / k]``, ``a1_bias [r / k]``, ``a2_weight [hidden, k]``, ``a2_bias [k]``,
        ``up_weight [r, hidden]`` and ``up_bias [hidden]``.
    """
    (a1_weight, a1_bias), (a2_weight, a2_bias), (up_weight, up_bias) = (
        network.soup(torch.float64) for network in layer.networks(adapter)
    )
    up_weight, up_bias = up_weight * layer.scaling[adapter], up_bias * layer.scaling[adapter]
    weights = {
        "a1_weight": a1_weight.T,
        "a1_bias": a1_bias - a1_weight @ up_bias,
        "a2_weight": a2_weight.T,
        "a2_bias": a2_bias - a2_weight @ up_bias,
        "up_weight": up_weight.T,
        "up_bias": up_bias,
    }
    return {name: tensor.detach() for name, tensor in weights.items()}


def _fold_layer(name: str, layer: AdaKronLayer, adapter: str) -> nn.Module:
    if adapter not in layer.settings:  # layers_to_transform of this adapter leaves the layer alone
        return layer.get_base_layer()
    weights = folded_weights(layer, adapter)
    projection = with_bias_added(name, layer.base_layer, weights.pop("up_bias"))
    dtype = cast(Tensor, projection.weight).dtype
    order, activation = layer.settings[adapter]
    return KronAdapter(
        projection,
        {key: tensor.to(dtype) for key, tensor in weights.items()},
        order=order,
        activation=activation,
    )


def with_bias_added(name: str, projection: nn.Module, bias: Tensor | None) -> nn.Module:
    """The projection with ``bias [hidden]`` added to its own, where there is one; the weight is shared.

    Raises:
        ExportError: The projection is quantised.
    """
    if type(projection) not in (nn.Linear, Conv1D):
        raise ExportError(
            f"{name} is a {type(projection).__name__}; only backbones with plain Linear or Conv1D projections can "
            "be exported: load the backbone without quantisation"
        )
    if bias is None:
        return projection
    own = cast("Tensor | None", projection.bias)
    weight = cast(Tensor, projection.weight)
    total = bias if own is None else own.detach().to(torch.float64) + bias
    changed = copy.copy(projection)
    changed._parameters = dict(projection._parameters)
    changed._parameters["bias"] = nn.Parameter(total.detach().to(weight.dtype), requires_grad=False)
    return changed

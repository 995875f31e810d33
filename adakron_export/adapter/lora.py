"""LoRA that is not merged: beside the projection, as a bank computes it."""

from __future__ import annotations

from typing import Any, cast

from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from adakron_export.adapter.bottleneck.op import bottleneck_adapter
from adakron_export.errors import ExportError

_LEAVES_WEIGHTS = (True, False, "gaussian", "eva", "orthogonal")


class LowRankAdapter(nn.Module):
    """A projection, and beside it a bottleneck without an activation that reads the same input.

    Its weights are zero: a bank's graph has those of each text in their place.
    """

    def __init__(self, projection: nn.Module, width: int, *, reads: int, hidden: int) -> None:
        super().__init__()
        self.projection = projection
        weight = cast(Tensor, projection.weight)
        shapes = {"down_weight": (reads, width), "down_bias": (width,), "up_weight": (width, hidden)}
        for name, shape in shapes.items():
            self.register_buffer(name, weight.new_zeros(shape))

    def forward(self, inner: Tensor) -> Tensor:
        """``[batch, tokens, reads]`` to ``[batch, tokens, hidden]``; or ``[batch, ...]``, of a pooled text."""
        projected: Tensor = self.projection(inner)
        batched = inner.dim() > 2
        read, base = (inner, projected) if batched else (inner.unsqueeze(1), projected.unsqueeze(1))
        adapted = cast(
            Tensor,
            bottleneck_adapter(read, base, self.down_weight, self.down_bias, self.up_weight, None, "identity"),
        )
        return adapted if batched else adapted.squeeze(1)


def lora_weights(name: str, layer: LoraLayer, adapter: str) -> dict[str, Tensor]:
    """What LoRA adds to a projection of ``x``, as ``x down_weight up_weight``, in float64.

    Args:
        name: The projection's name, for messages.
        layer: PEFT's layer.
        adapter: An adapter that it has.

    Returns:
        ``down_weight [reads, r]``, and ``up_weight [r, hidden]`` with the scaling in it.

    Raises:
        ExportError: What it adds is something else.
    """
    kind = type(layer.get_base_layer())
    if kind not in (nn.Linear, Conv1D):
        raise ExportError(f"its LoRA of {name} is of a {kind.__name__}")
    if adapter in layer.lora_variant:
        variant = type(layer.lora_variant[adapter]).__name__.removesuffix("Variant")
        raise ExportError(f"its LoRA of {name} is a {variant}")
    if layer.lora_bias.get(adapter):
        raise ExportError(f"its LoRA of {name} has a bias (lora_bias)")
    down, up = layer.lora_A[adapter].weight.detach().double(), layer.lora_B[adapter].weight.detach().double()
    return {"down_weight": down.T, "up_weight": up.T * layer.scaling[adapter]}


def check_low_rank(config: Any) -> None:
    """Raise where LoRA changes more than what `lora_weights` says.

    Raises:
        ExportError: The adapter does.
    """
    if config.bias != "none":
        raise ExportError(f"it trains biases of the backbone (bias={config.bias!r})")
    if config.init_lora_weights not in _LEAVES_WEIGHTS:
        raise ExportError(
            f"its start (init_lora_weights={config.init_lora_weights!r}) changes weights of the backbone; save it "
            "with path_initial_model_for_weight_conversion"
        )
    for name in ("layer_replication", "target_parameters", "trainable_token_indices"):
        if getattr(config, name):
            raise ExportError(f"it has {name}")

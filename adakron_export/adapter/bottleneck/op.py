"""BottleneckAdapter as a PyTorch operator: `torch.ops.adakron.bottleneck_adapter`.

It stays one node through `torch.export`. Its meaning is that of the ONNX operator
(docs/reference/bottleneck_adapter.md).
"""

from __future__ import annotations

import torch
from torch import Tensor

from adakron_export.adapter.bottleneck.layer import activate


@torch.library.custom_op("adakron::bottleneck_adapter", mutates_args=())
def bottleneck_adapter(
    x: Tensor,
    residual: Tensor,
    down_weight: Tensor,
    down_bias: Tensor,
    up_weight: Tensor,
    up_bias: Tensor | None,
    activation: str,
) -> Tensor:
    """``residual + activation(x @ down_weight + down_bias) @ up_weight + up_bias``.

    Args:
        x: ``[batch, tokens, reads]``.
        residual: ``[batch, tokens, hidden]``.
        down_weight: ``[reads, width]``.
        down_bias: ``[width]``.
        up_weight: ``[width, hidden]``.
        up_bias: ``[hidden]``; ``None`` where it was moved elsewhere.
        activation: One of `OPERATOR_ACTIVATIONS`.

    Returns:
        ``[batch, tokens, hidden]``.
    """
    out = residual + activate(activation)(x @ down_weight + down_bias) @ up_weight
    return out if up_bias is None else out + up_bias


@bottleneck_adapter.register_fake
def _(_x: Tensor, residual: Tensor, *_weights_and_settings: object) -> Tensor:
    return torch.empty_like(residual)

"""KronAdapter as a PyTorch operator: `torch.ops.adakron.kron_adapter`.

It stays one node through `torch.export`, and computes the same numbers where it runs. Its meaning is that of
the ONNX operator (docs/reference/kron_adapter.md).
"""

from __future__ import annotations

import torch
from torch import Tensor

from adakron_export.adapter.config import Activation, KronOrder
from adakron_export.adapter.layer import adapter_delta


@torch.library.custom_op("adakron::kron_adapter", mutates_args=())
def kron_adapter(
    x: Tensor,
    a1_weight: Tensor,
    a1_bias: Tensor,
    a2_weight: Tensor,
    a2_bias: Tensor,
    up_weight: Tensor,
    order: str,
    activation: str,
) -> Tensor:
    """``x + activation(kron) @ up_weight``.

    Args:
        x: ``[batch, tokens, hidden]``.
        a1_weight: ``[hidden, r / k]``.
        a1_bias: ``[r / k]``.
        a2_weight: ``[hidden, k]``.
        a2_bias: ``[k]``.
        up_weight: ``[r, hidden]``.
        order: A `KronOrder`.
        activation: An `Activation`.

    Returns:
        ``[batch, tokens, hidden]``.
    """
    a1 = x @ a1_weight + a1_bias  # [batch, tokens, r / k]
    a2 = x @ a2_weight + a2_bias  # [batch, tokens, k]
    product = adapter_delta(a1, a2, order=KronOrder(order), activation=Activation(activation))
    return x + product @ up_weight


@kron_adapter.register_fake
def _(x: Tensor, *_weights_and_settings: object) -> Tensor:
    return torch.empty_like(x)

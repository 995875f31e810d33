"""Attention as it is exported: plain operators and an additive mask, made once per run.

transformers' own choices do not export well: `sdpa` becomes some 17 operators per layer with guards against NaN
(torch 2.13, opset 20), and its mask code gathers from index tensors. Here padding becomes a ``[batch, 1, 1, keys]``
bias. Masked scores get half the lowest number of the dtype: the softmax is the same to the last bit, and adding it
to a score cannot overflow to infinity, which in fp16 turned whole padded rows into NaN.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import bidirectional_mask_function, sdpa_mask

from adakron_export.errors import ExportError

IMPLEMENTATION = "adakron_export"


def masked_bias(dtype: torch.dtype) -> float:
    """What is added to the score of a masked position."""
    return torch.finfo(dtype).min / 2


def additive_mask(
    *, attention_mask: Tensor | None = None, mask_function: Any = None, dtype: torch.dtype = torch.float32, **rest: Any
) -> Tensor | None:
    """The mask as a bias, ``[batch, 1, 1 or queries, keys]``; called by transformers' mask builders."""
    if mask_function is bidirectional_mask_function:
        if attention_mask is None:
            return None
        allowed = attention_mask[:, None, None, :].to(torch.bool)
    else:
        rest["allow_is_causal_skip"] = rest["allow_is_bidirectional_skip"] = False
        built = sdpa_mask(attention_mask=attention_mask, mask_function=mask_function, **rest)
        if built is None:
            return None
        allowed = built
    zero = torch.zeros((), dtype=dtype, device=allowed.device)
    return torch.where(allowed, zero, masked_bias(dtype))


def plain_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **rest: Any,
) -> tuple[Tensor, None]:
    """Scaled dot-product attention of transformers' attention interface.

    Args:
        module: The attention layer; not read.
        query: ``[batch, heads, queries, width]``.
        key: ``[batch, key heads, keys, width]``; each of its heads serves ``heads / key heads`` of the query's.
        value: The values, in the shape of ``key``.
        attention_mask: A bias, ``[batch, 1, 1 or queries, keys]``.
        scaling: Factor of the scores; ``width ** -0.5`` by default.
        rest: What other implementations read; a soft cap or attention sinks are refused.

    Returns:
        ``[batch, queries, heads, width]`` and no weights.
    """
    refused = [name for name in ("softcap", "s_aux") if rest.get(name) is not None]
    if refused:
        raise ExportError(f"attention with {', '.join(refused)} ({type(module).__name__}) cannot be exported yet")
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = (tensor.repeat_interleave(groups, dim=1) for tensor in (key, value))
    factor = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = (query * factor) @ key.transpose(-1, -2)  # [batch, heads, queries, keys]
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    return (weights @ value).transpose(1, 2).contiguous(), None


def use_plain_attention(model: Any) -> None:
    """Switch a model to the attention of this module, or to transformers' eager one where it has no choice."""
    AttentionInterface.register(IMPLEMENTATION, plain_attention)
    AttentionMaskInterface.register(IMPLEMENTATION, additive_mask)
    supported = getattr(model, "_supports_attention_backend", False)
    model.set_attn_implementation(IMPLEMENTATION if supported else "eager")

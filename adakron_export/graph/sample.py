"""The batch a model is traced with."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from adakron_export.checkpoints.task_model import Signature

_TEXTS, _TOKENS, _PAST, _IMAGES = 2, 8, 5, 2  # no axis may be 0 or 1: torch.export takes those for constants


def sample_batch(config: Any, signature: Signature) -> dict[str, Tensor]:
    """Every input of the signature: 2 texts of 8 random tokens, with a past of 5 where there is one, or 2 images.

    Args:
        config: The model's configuration: its vocabulary, or the size of its images.
        signature: Inputs of the model.
    """
    sample = {name: _SAMPLES[name](config) for name in signature.texts}
    if signature.past:
        sample |= {name: torch.randn(_TEXTS, heads, _PAST, width) for name, (heads, width) in signature.past.items()}
        sample["attention_mask"] = torch.ones(_TEXTS, _PAST + _TOKENS, dtype=torch.int64)
        if "position_ids" in sample:
            sample["position_ids"] = sample["position_ids"] + _PAST
    return sample


def _tokens(config: Any) -> Tensor:
    """Without padding, by which a decoder that classifies finds the last token."""
    ids = torch.randint(config.vocab_size, (_TEXTS, _TOKENS))
    pad, last = getattr(config, "pad_token_id", None), config.vocab_size - 1
    return ids if pad is None else ids.masked_fill(ids == pad, last if pad != last else 0)


def _pixels(config: Any) -> Tensor:
    size = config.image_size
    height, width = size if isinstance(size, list | tuple) else (size, size)
    return torch.rand(_IMAGES, getattr(config, "num_channels", 3), height, width)


_SAMPLES = {
    "input_ids": _tokens,
    "attention_mask": lambda _config: torch.ones(_TEXTS, _TOKENS, dtype=torch.int64),
    "token_type_ids": lambda config: torch.randint(config.type_vocab_size, (_TEXTS, _TOKENS)),
    "position_ids": lambda _config: torch.arange(_TOKENS).expand(_TEXTS, -1).contiguous(),
    "pixel_values": _pixels,
}

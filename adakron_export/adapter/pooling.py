"""How token vectors become one embedding, as `sentence-transformers` describes it in a model's folder."""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import torch
from torch import Tensor

from adakron_export.errors import BackboneError


class PoolingMode(StrEnum):
    """Which token vectors are pooled."""

    MEAN = "mean"
    CLS = "cls"
    MAX = "max"
    LAST = "lasttoken"


@dataclass(frozen=True, slots=True)
class Pooling:
    """A pooling rule: the mode, and whether the result is scaled to length 1."""

    mode: PoolingMode = PoolingMode.MEAN
    normalize: bool = False


def read_pooling(folder: Path) -> Pooling:
    """The rule of a backbone's folder; the masked mean where it has none.

    Raises:
        BackboneError: The folder asks for a rule that is not supported.
    """
    modules, config = folder / "modules.json", folder / "1_Pooling" / "config.json"
    if not config.is_file():
        return Pooling()
    settings = json.loads(config.read_text(encoding="utf-8"))
    chosen = settings.get("pooling_mode") or [
        key.removeprefix("pooling_mode_").removesuffix("_tokens").removesuffix("_token")
        for key, value in settings.items()
        if key.startswith("pooling_mode_") and value is True
    ]
    chosen = [chosen] if isinstance(chosen, str) else chosen
    supported = [mode.value for mode in PoolingMode]
    if len(chosen) != 1 or chosen[0] not in supported:
        raise BackboneError(f"{config}: pooling {chosen} is not supported; one of {supported} is")
    normalize = modules.is_file() and "Normalize" in modules.read_text(encoding="utf-8")
    return Pooling(PoolingMode(chosen[0]), normalize=normalize)


def pool(hidden: Tensor, attention_mask: Tensor, rule: Pooling) -> Tensor:
    """One vector per text.

    Args:
        hidden: ``[batch, tokens, hidden]``.
        attention_mask: ``[batch, tokens]``, 1 for tokens and 0 for padding.
        rule: What to do.

    Returns:
        ``[batch, hidden]``.
    """
    mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
    if rule.mode is PoolingMode.CLS:
        pooled = hidden[:, 0]
    elif rule.mode is PoolingMode.MAX:
        pooled = hidden.masked_fill(mask == 0, torch.finfo(hidden.dtype).min).amax(1)
    elif rule.mode is PoolingMode.LAST:
        positions = torch.arange(hidden.shape[1], device=hidden.device) * attention_mask
        last = positions.argmax(-1)[:, None, None].expand(-1, 1, hidden.shape[2])
        pooled = hidden.gather(1, last).squeeze(1)
    else:
        pooled = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1e-9)
    return torch.nn.functional.normalize(pooled, dim=-1) if rule.normalize else pooled

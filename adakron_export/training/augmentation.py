"""Texts that are a little different each time they are read."""

from __future__ import annotations

import torch
from torch import Tensor

_PER_TOKEN = ("input_ids", "attention_mask", "token_type_ids")
_FEWEST = 2  # of a text's own tokens; shorter ones stay whole


def drop_tokens(batch: dict[str, Tensor], share: float, *, kept_ids: Tensor) -> dict[str, Tensor]:
    """The batch without a random share of the tokens, and no wider than needed.

    This is the random deletion of Wei and Zou (EMNLP 2019). It draws from torch's generator of the CPU, whose state a
    checkpoint of a run holds.

    Args:
        batch: ``[batch, tokens]`` each, padded on the right; nothing else in it may be per token.
        share: Share of the tokens, from 0 to 1.
        kept_ids: Tokens that stay, such as those that open and close a text, ``[n]``.
    """
    ids, mask = batch["input_ids"], batch["attention_mask"].bool()
    own = mask & ~torch.isin(ids, kept_ids.to(ids.device))
    dropped = own & (torch.rand(ids.shape).to(ids.device) < share)
    dropped &= ((own & ~dropped).sum(1) >= _FEWEST)[:, None]
    kept = mask & ~dropped
    width = int(kept.sum(1).max())
    order = torch.argsort((~kept).long(), dim=1, stable=True)[:, :width]
    shorter = {name: tensor.gather(1, order) for name, tensor in batch.items() if name in _PER_TOKEN}
    shorter["attention_mask"] = kept.gather(1, order).to(batch["attention_mask"].dtype)
    return {**batch, **shorter}

"""The perplexity of a text, by the logits of a model that writes."""

from __future__ import annotations

import numpy as np

from adakron_export.runtimes.base import Array
from adakron_export.runtimes.space import NamedBatch


class Surprise:
    """How unlikely a model finds each token after those before it."""

    def __init__(self) -> None:
        self._nats, self._tokens = 0.0, 0

    def add(self, batch: NamedBatch, logits: Array) -> None:
        """Count the tokens of a batch; the logits are ``[texts, tokens, vocabulary]``."""
        ids, mask = batch.inputs["input_ids"][:, 1:], batch.inputs["attention_mask"][:, 1:].astype(bool)
        for scores, row, kept in zip(logits[:, :-1], ids, mask, strict=True):
            wide = scores[kept].astype(np.float64)
            top = wide.max(-1, keepdims=True) if wide.size else wide
            total = np.log(np.exp(wide - top).sum(-1)) + top[:, 0] if wide.size else np.zeros(0)
            self._nats += float((total - wide[np.arange(len(wide)), row[kept]]).sum())
            self._tokens += int(kept.sum())

    @property
    def perplexity(self) -> float:
        """NaN of texts of one token."""
        return float(np.exp(self._nats / self._tokens)) if self._tokens else float("nan")

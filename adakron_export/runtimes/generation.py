"""Writes the likeliest tokens with a cache. Needs no torch."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np

from adakron_export.errors import RunnerError
from adakron_export.runtimes.base import Array
from adakron_export.runtimes.decoding import Decoder, Kept, check_room, inputs_of

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Writing:
    """How far is written.

    Attributes:
        count: The most tokens to write.
        ends: Tokens that end a text.
        limit: How many tokens the model reads, with those that it writes; ``None`` for any number.
    """

    count: int
    ends: Collection[int] = ()
    limit: int | None = None


def write_greedily(
    decoder: Decoder, prompts: Sequence[Sequence[int]], writing: Writing, *, names: Collection[str], pad_id: int,
    on_token: Callable[[list[int]], None] | None = None,
) -> list[list[int]]:  # fmt: skip
    """Write on: of each text the likeliest token, one after the other.

    Args:
        decoder: What reads.
        prompts: The tokens of each text, at least one of each.
        writing: How far.
        names: The model's inputs.
        pad_id: What fills short prompts, in front.
        on_token: Called after each token with all that was written of the first text.

    Returns:
        What was written of each text, with the token that ends it.

    Raises:
        RunnerError: A prompt has no tokens, or leaves no room to write.
    """
    empty = next((number for number, prompt in enumerate(prompts, 1) if not prompt), None)
    if empty is not None:
        raise RunnerError(f"prompt {empty} of {len(prompts)} has no tokens; there is nothing to write on from")
    ids, mask = padded(prompts, pad_id)
    check_room(ids.shape[1], writing.limit)
    room = writing.count if writing.limit is None else min(writing.count, writing.limit - ids.shape[1])
    written: list[list[int]] = [[] for _ in prompts]
    kept: Kept | None = None
    for _ in range(room):
        logits, kept = decoder.step(inputs_of(names, ids, mask), kept)
        chosen = logits[:, -1].argmax(-1)
        going = [row for row, tokens in enumerate(written) if not (tokens and tokens[-1] in writing.ends)]
        for row in going:
            written[row].append(int(chosen[row]))
        if on_token is not None and 0 in going:
            on_token(written[0])
        if all(tokens[-1] in writing.ends for tokens in written):
            return written
        ids = chosen[:, None]
        mask = np.concatenate([mask, np.ones_like(ids)], axis=1)
    if room < writing.count:
        _log.warning("the model's window of %s tokens is full; it stops here", writing.limit)
    return written


def padded(prompts: Sequence[Sequence[int]], pad_id: int) -> tuple[Array, Array]:
    """Prompts side by side, filled up in front, and what of them is no padding: both ``[texts, tokens]``."""
    tokens = max(len(prompt) for prompt in prompts)
    ids = np.full((len(prompts), tokens), pad_id, np.int64)
    mask = np.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, tokens - len(prompt) :], mask[row, tokens - len(prompt) :] = prompt, 1
    return ids, mask

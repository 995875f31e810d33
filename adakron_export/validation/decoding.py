"""Compares writing, token by token: each step from the reference's own past, and many from each side's own."""

from __future__ import annotations

from typing import Any

import numpy as np

from adakron_export.graph.tolerance import Tolerance
from adakron_export.runtimes.base import Array
from adakron_export.runtimes.decoding import ArrayDecoder, Decoder, Kept, decoder_of, inputs_of
from adakron_export.runtimes.space import InputSpace, NamedBatch
from adakron_export.validation.parity import Check, OutputParity, is_tied

_STEPS, _REORDERED_AT, _PIECE = 16, 8, 5
_WRITTEN = 64
_LENGTHS = (12, 7, 3, 1)
GREEDY = "greedy"


def decoding_batches(runner: Any, space: InputSpace, *, seed: int = 0) -> list[NamedBatch]:
    """Batches that go on where others ended: what was kept is among their inputs.

    A prompt in two pieces; then `_STEPS` tokens, the likeliest ones, of texts that are padded in front. After half of
    them rows change places, and one takes another's, as beams do.

    Args:
        runner: What is right: it chooses the tokens, and keeps what later batches read.
        space: What both sides accept.
        seed: Seed of the prompt.
    """
    prompt = _prompt(space, seed)
    if prompt is None:
        return []
    ids, mask = prompt
    decoder, found = ArrayDecoder(runner.run_cached), []
    first = ids.shape[1] - _PIECE
    if first > 0:
        _, kept = decoder.step(inputs_of(space.names, ids[:, :first], mask[:, :first]), None)
        found.append(_batch("second-piece", space, ids[:, first:], mask, kept))
    logits, kept = decoder.step(inputs_of(space.names, ids, mask), None)
    for step in range(1, _STEPS + 1):
        tokens = _known(logits[:, -1], space).argmax(-1)[:, None]
        mask = np.concatenate([mask, np.ones_like(tokens)], axis=1)
        if step == _REORDERED_AT:
            rows = [*range(1, len(tokens)), 1]
            tokens, mask, kept = tokens[rows], mask[rows], decoder.select(kept, rows)
        found.append(_batch(f"step-{step}", space, tokens, mask, kept))
        logits, kept = decoder.step(inputs_of(space.names, tokens, mask), kept)
    return found


def has_room(space: InputSpace) -> bool:
    """Whether both sides can be let write."""
    return _prompt(space, 0) is not None


def compare_writing(
    reference: Any, candidate: Any, space: InputSpace, tolerance: Tolerance, *, seed: int = 0
) -> list[OutputParity]:
    """Let both sides write the likeliest tokens, each with its own cache, and compare them.

    A text is compared up to a token at which the reference's two likeliest are as good as tied, which in few bits is
    soon. Where that is so from the first token on, there is nothing to compare.

    Args:
        reference: What is right.
        candidate: What is held against it.
        space: What both accept.
        tolerance: What is allowed.
        seed: Seed of the prompt.
    """
    prompt = _prompt(space, seed)
    if prompt is None:
        return []
    wanted, tied = _written(ArrayDecoder(reference.run_cached), space, *prompt, tolerance)
    found, _ = _written(decoder_of(candidate), space, *prompt, tolerance)
    counted = np.cumsum(tied, axis=1) == 0
    if not counted.any():
        return []
    share = float(np.logical_and.accumulate(wanted == found, axis=1)[counted].mean())
    return [OutputParity(GREEDY, prompt[0].shape, "tokens", 0, (Check("token_identity", share, tolerance.top1),))]


def _written(
    decoder: Decoder, space: InputSpace, ids: Array, mask: Array, tolerance: Tolerance
) -> tuple[Array, Array]:  # fmt: skip
    """The tokens, ``[texts, tokens]``, and whether each was as good as tied."""
    tokens, ties = [], []
    kept: Kept | None = None
    for _ in range(min(_WRITTEN, space.max_length - ids.shape[1])):
        logits, kept = decoder.step(inputs_of(space.names, ids, mask), kept)
        last = _known(logits[:, -1], space)
        ties.append(is_tied(last, tolerance))
        ids = last.argmax(-1)[:, None]
        tokens.append(ids)
        mask = np.concatenate([mask, np.ones_like(ids)], axis=1)
    return np.concatenate(tokens, axis=1), np.stack(ties, axis=1)


def _known(logits: Array, space: InputSpace) -> Array:
    """The scores, ``[texts, vocabulary]``; where fixed scales were found on some words, those of others are low."""
    if not space.vocabulary:
        return logits
    known = np.full_like(logits, np.finfo(np.float32).min)
    known[:, list(space.vocabulary)] = logits[:, list(space.vocabulary)]
    return known


def _prompt(space: InputSpace, seed: int) -> tuple[Array, Array] | None:
    """Tokens and mask of some texts; ``None`` where there is no room to write."""
    lengths = [length for length in _LENGTHS if length + _STEPS < space.max_length]
    if not lengths or space.bounds:
        return None
    rng = np.random.default_rng([seed, *b"decoding"])
    tokens = max(lengths)
    if not space.left_padding:
        lengths = [tokens] * len(lengths)
    known = np.setdiff1d(np.arange(space.vocab_size), [*space.special_ids, space.pad_id])
    known = np.array(space.vocabulary) if space.vocabulary else known
    ids = np.full((len(lengths), tokens), space.pad_id, np.int64)
    mask = np.zeros_like(ids)
    for row, length in enumerate(lengths):
        ids[row, tokens - length :], mask[row, tokens - length :] = rng.choice(known, length), 1
    return ids, mask


def _batch(name: str, space: InputSpace, ids: Array, mask: Array, kept: Kept) -> NamedBatch:
    return NamedBatch(name, {**inputs_of(space.names, ids, mask), **kept.values})

"""Batches to validate on: made from a seed alone, so that a failure can be repeated."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from adakron_export.artifacts.shapes import bounds_text
from adakron_export.errors import RunnerError
from adakron_export.runtimes.base import Array
from adakron_export.runtimes.space import InputSpace, NamedBatch

_STRIDE_TEXTS, _STRIDE_TOKENS = 4, 256
_TYPICAL_TOKENS, _SPREAD = 24, 0.6  # lengths of real texts are about log-normal


def make_batches(space: InputSpace, *, seed: int = 0) -> list[NamedBatch]:
    """Texts of realistic lengths, and every corner that has broken an export: see docs/reference/limits.md.

    Args:
        space: What the model accepts.
        seed: Same seed, same batches; each batch has random numbers of its own, so that it can be made alone.
    """
    return [*(batch for batch in _corners(space, seed) if _taken(space, batch)), *_edges(space, seed)]


def _taken(space: InputSpace, batch: NamedBatch) -> bool:
    texts, tokens = next(iter(batch.inputs.values())).shape[:2]
    return space.takes(texts, tokens)


def _edges(space: InputSpace, seed: int) -> list[NamedBatch]:
    """Where only some shapes are taken: the smallest one, the longest text, and the most texts."""
    shapes = dict.fromkeys(
        shape for low, high in space.bounds for shape in (low, (low[0], high[1]), (high[0], low[1]))
    )
    return [batch_of(space, texts, tokens, seed=seed) for texts, tokens in shapes]


def _corners(space: InputSpace, seed: int) -> list[NamedBatch]:
    if space.image_shape is not None:
        return [
            NamedBatch(name, {"pixel_values": _random(seed, name).standard_normal((size, *space.image_shape), "f4")})
            for name, size in (("one-image", 1), ("three-images", 3))
        ]
    longest = _longest(space)
    middle = max(2, min(_TYPICAL_TOKENS, longest - 1))
    mixed = [middle, max(1, middle // 2), max(1, middle // 5), 1]
    plans: dict[str, Callable[[np.random.Generator], dict[str, Array]]] = {
        "one-token": lambda rng: _texts(rng, space, [1]),
        "one-text": lambda rng: _texts(rng, space, [middle]),
        "padded-right": lambda rng: _texts(rng, space, mixed),
        "padded-left": lambda rng: _texts(rng, space, mixed, on_the_left=True),
        "padded-tail": lambda rng: _texts(rng, space, mixed[1:3], tokens=middle),
        "padding-row": lambda rng: _texts(rng, space, [middle, 0]),
        "repeated-token": lambda rng: _texts(rng, space, [middle, middle], repeat=True),
        "realistic": lambda rng: _texts(rng, space, _realistic_lengths(rng, 8, longest)),
        "max-length": lambda rng: _texts(rng, space, [longest]),
        "max-length-padded": lambda rng: _texts(rng, space, [longest, max(1, longest // 3)]),
        "vocabulary": lambda rng: _strides(rng, space),
    }
    return [
        NamedBatch(name, plan(_random(seed, name)))
        for name, plan in plans.items()
        if space.left_padding or name != "padded-left"
    ]


def batch_of(space: InputSpace, texts: int, tokens: int, *, seed: int = 0) -> NamedBatch:
    """Full texts of one length, such as latencies are measured on.

    Args:
        space: What the model accepts.
        texts: How many.
        tokens: Length of each text; not read for images.
        seed: Same seed, same batch.

    Raises:
        RunnerError: The model does not take so many tokens.
    """
    name = f"{texts}x{tokens}"
    rng = _random(seed, name)
    if not space.takes(texts, tokens):
        taken = bounds_text(space.bounds) if space.bounds else f"at most {space.max_length} tokens"
        raise RunnerError(f"shape {name}: the model takes {taken}")
    if space.image_shape is not None:
        return NamedBatch(name, {"pixel_values": rng.standard_normal((texts, *space.image_shape), "f4")})
    return NamedBatch(name, _texts(rng, space, [tokens] * texts))


def pad_batch(space: InputSpace, name: str, rows: Sequence[dict[str, Sequence[int]]]) -> NamedBatch:
    """Tokenised texts as one batch, padded on the right.

    Args:
        space: What the model accepts.
        name: Name of the batch.
        rows: ``input_ids``, and ``token_type_ids`` where the tokenizer makes them.
    """
    tokens = max(len(row["input_ids"]) for row in rows)
    ids = np.full((len(rows), tokens), space.pad_id, dtype=np.int64)
    mask, types = np.zeros_like(ids), np.zeros_like(ids)
    for index, row in enumerate(rows):
        length = len(row["input_ids"])
        ids[index, :length] = row["input_ids"]
        mask[index, :length] = 1
        types[index, :length] = row.get("token_type_ids") or 0
    return NamedBatch(name, _inputs(space, ids, mask, types))


def _longest(space: InputSpace) -> int:
    return min(space.max_length, space.tried_length or space.max_length)


def _random(seed: int, name: str) -> np.random.Generator:
    return np.random.default_rng([seed, *name.encode()])


def _realistic_lengths(rng: np.random.Generator, texts: int, longest: int) -> list[int]:
    lengths = rng.lognormal(np.log(_TYPICAL_TOKENS), _SPREAD, size=texts).round().astype(int)
    return [int(length) for length in np.clip(lengths, 1, longest)]


def _texts(
    rng: np.random.Generator, space: InputSpace, lengths: list[int], *, on_the_left: bool = False,
    repeat: bool = False, tokens: int = 0,
) -> dict[str, Array]:  # fmt: skip
    tokens = max(tokens, *lengths)
    ids = np.full((len(lengths), tokens), space.pad_id, dtype=np.int64)
    mask, types = np.zeros_like(ids), np.zeros_like(ids)
    known = np.array(space.vocabulary) if space.vocabulary else np.arange(space.vocab_size)
    vocabulary = known[~np.isin(known, [*space.special_ids, space.pad_id])]
    for row, length in enumerate(lengths):
        where = slice(tokens - length, tokens) if on_the_left else slice(0, length)
        text = np.full(length, rng.choice(vocabulary)) if repeat else rng.choice(vocabulary, size=length)
        if space.frame is not None and length > 2:
            text[0], text[-1] = space.frame
        ids[row, where] = text
        mask[row, where] = 1
        types[row, where] = np.arange(length) >= (length + 1) // 2  # a second sentence
    return _inputs(space, ids, mask, types)


def _strides(rng: np.random.Generator, space: InputSpace) -> dict[str, Array]:
    """Texts that go through the whole vocabulary in strides, special tokens included."""
    length = min(_longest(space), _STRIDE_TOKENS)
    known = np.array(space.vocabulary) if space.vocabulary else np.arange(space.vocab_size)
    known = known[known != space.pad_id]
    stride = max(1, len(known) / (_STRIDE_TEXTS * length))
    places = (rng.random() * stride + stride * np.arange(_STRIDE_TEXTS * length)).astype(int) % len(known)
    ids = known[places].reshape(_STRIDE_TEXTS, length)
    return _inputs(space, ids, np.ones_like(ids), np.zeros_like(ids))


def _inputs(space: InputSpace, ids: Array, mask: Array, types: Array) -> dict[str, Array]:
    every = {
        "input_ids": ids,
        "attention_mask": mask,
        "token_type_ids": np.minimum(types, space.token_types - 1),
        "position_ids": np.clip(mask.cumsum(1) - 1, 0, None),
    }
    return {name: every[name] for name in space.names}

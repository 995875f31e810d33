"""Batches to validate on: made from a seed alone, so that a failure can be repeated."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from adakron_export.runtimes.base import Array


@dataclass(frozen=True, slots=True)
class InputSpace:
    """What a model accepts.

    Attributes:
        names: Its inputs.
        vocab_size: Token ids lie below it.
        pad_id: Of the padding token.
        max_length: The longest input to try, in tokens.
        left_padding: Whether texts may be padded in front.
        image_shape: ``(channels, height, width)`` of an image model.
    """

    names: tuple[str, ...]
    vocab_size: int
    pad_id: int
    max_length: int
    left_padding: bool = True
    image_shape: tuple[int, int, int] | None = None


@dataclass(frozen=True, slots=True)
class NamedBatch:
    """A batch, and what it is for."""

    name: str
    inputs: dict[str, Array]


def make_batches(space: InputSpace, *, seed: int = 0) -> list[NamedBatch]:
    """Batch 1 and more, one token and the maximum length, different lengths with padding on either side.

    Args:
        space: What the model accepts.
        seed: Same seed, same batches.
    """
    rng = np.random.default_rng(seed)
    if space.image_shape is not None:
        return [
            NamedBatch(f"{size} image(s)", {"pixel_values": _pixels(rng, size, space.image_shape)}) for size in (1, 3)
        ]
    longest = space.max_length
    middle = max(2, min(24, longest - 1))
    mixed = [middle, max(1, middle // 2), max(1, middle // 5), 1]
    plans = [
        ("one text of one token", [1], "right"),
        ("one text", [middle], "right"),
        ("different lengths, padded right", mixed, "right"),
        ("different lengths, padded left", mixed, "left"),
        ("the maximum length", [longest], "right"),
        ("the maximum length, padded", [longest, max(1, longest // 3)], "right"),
    ]
    return [
        NamedBatch(name, _texts(rng, space, lengths, side))
        for name, lengths, side in plans
        if side == "right" or space.left_padding
    ]


def _pixels(rng: np.random.Generator, size: int, shape: tuple[int, int, int]) -> Array:
    return rng.standard_normal((size, *shape)).astype(np.float32)


def _texts(rng: np.random.Generator, space: InputSpace, lengths: list[int], side: str) -> dict[str, Array]:
    tokens = max(lengths)
    ids = np.full((len(lengths), tokens), space.pad_id, dtype=np.int64)
    mask = np.zeros_like(ids)
    types = np.zeros_like(ids)
    vocabulary = np.delete(np.arange(space.vocab_size), space.pad_id)
    for row, length in enumerate(lengths):
        where = slice(0, length) if side == "right" else slice(tokens - length, tokens)
        ids[row, where] = rng.choice(vocabulary, size=length)
        mask[row, where] = 1
        types[row, where] = np.arange(length) >= (length + 1) // 2  # a second sentence
    every = {
        "input_ids": ids,
        "attention_mask": mask,
        "token_type_ids": types,
        "position_ids": np.clip(mask.cumsum(1) - 1, 0, None),
    }
    return {name: every[name] for name in space.names}

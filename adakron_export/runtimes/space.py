"""What a model accepts, and a batch of it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from adakron_export.artifacts.shapes import Bounds, choose_profile
from adakron_export.runtimes.base import Array


@dataclass(frozen=True, slots=True)
class InputSpace:
    """What a model accepts.

    Attributes:
        names: Names of the inputs.
        vocab_size: Token ids lie below it.
        pad_id: Id of the padding token.
        max_length: The longest input, in tokens.
        tried_length: The longest one that a validation tries, where it is shorter.
        special_ids: Tokens that stand for no piece of text.
        frame: The tokens that open and close a text, where the tokenizer adds them.
        left_padding: Whether texts may be padded in front.
        image_shape: ``(channels, height, width)`` of an image model.
        token_types: How many kinds of tokens there are, where that is an input.
        vocabulary: The tokens that texts are made of; all of them by default.
        bounds: The smallest and the largest shapes, texts and tokens, where only some are taken.
    """

    names: tuple[str, ...]
    vocab_size: int
    pad_id: int
    max_length: int
    tried_length: int | None = None
    special_ids: frozenset[int] = frozenset()
    frame: tuple[int, int] | None = None
    left_padding: bool = True
    image_shape: tuple[int, int, int] | None = None
    token_types: int = 2
    vocabulary: tuple[int, ...] = ()
    bounds: tuple[Bounds, ...] = ()

    @property
    def most_texts(self) -> int | None:
        """In a batch of any length, where only some shapes are taken."""
        longest = max((largest for _, largest in self.bounds), key=lambda shape: shape[::-1], default=None)
        return longest[0] if longest else None

    def takes(self, texts: int, tokens: int) -> bool:
        """Whether a shape is taken; tokens mean nothing to images."""
        if self.image_shape is not None:
            return not self.bounds or any(low[0] <= texts <= high[0] for low, high in self.bounds)
        return tokens <= self.max_length and (
            not self.bounds or choose_profile(self.bounds, (texts, tokens)) is not None
        )

    def within(self, bounds: tuple[Bounds, ...]) -> InputSpace:
        """As far as the shapes reach that another one takes; all where it takes any."""
        if not bounds:
            return self
        return replace(self, bounds=bounds, max_length=min(self.max_length, max(high[1] for _, high in bounds)))


@dataclass(frozen=True, slots=True)
class NamedBatch:
    """A batch, and what it is for."""

    name: str
    inputs: dict[str, Array]

"""Steps of a model with a cache: the keys and values of what was read stay where the runtime computes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np

from adakron_export.errors import RunnerError
from adakron_export.runtimes.base import Array, Batch
from adakron_export.tasks import PAST, PRESENT


@dataclass(frozen=True, slots=True)
class Kept:
    """The keys and values of what was read.

    Attributes:
        values: One for each input of that name, as the runtime holds it: ``[batch, heads, tokens, width]``.
        texts: How many texts there are.
        tokens: How many tokens were read of each, padding among them.
    """

    values: Mapping[str, Any]
    texts: int
    tokens: int


class Decoder(Protocol):
    """What reads tokens one after the other."""

    def step(self, batch: Batch, kept: Kept | None) -> tuple[Array, Kept]:
        """Read more tokens.

        Args:
            batch: The new tokens and their positions; ``attention_mask`` speaks of all that were read.
            kept: What was kept of those before; it stays as it is.

        Returns:
            The logits of the new tokens, and what is kept now.

        Raises:
            RunnerError: The batch does not fit the past.
        """
        ...

    def select(self, kept: Kept, rows: Sequence[int] | Array) -> Kept:
        """What is kept of some rows, in another order, or several times."""
        ...

    def crop(self, kept: Kept, tokens: int) -> Kept:
        """What is kept of the first so many tokens."""
        ...


class ArrayDecoder:
    """Steps of any runner with a cache, whose keys and values are arrays.

    Args:
        run: Its `CachedRunner.run_cached`.
    """

    def __init__(self, run: Callable[[Batch], Mapping[str, Array]]) -> None:
        self._run = run

    def step(self, batch: Batch, kept: Kept | None) -> tuple[Array, Kept]:
        """Read more tokens; see `Decoder.step`."""
        found = self._run({**batch, **(kept.values if kept else {})})
        return found["logits"], kept_of({name: value for name, value in found.items() if name.startswith(PRESENT)})

    def select(self, kept: Kept, rows: Sequence[int] | Array) -> Kept:
        """What is kept of some rows; see `Decoder.select`."""
        return kept_of({name: np.ascontiguousarray(np.asarray(value)[rows]) for name, value in kept.values.items()})

    def crop(self, kept: Kept, tokens: int) -> Kept:
        """What is kept of the first tokens; see `Decoder.crop`."""
        return kept_of(
            {name: np.ascontiguousarray(np.asarray(value)[:, :, :tokens]) for name, value in kept.values.items()}
        )


def keeps_cache(runner: Any) -> bool:
    """Whether a runner keeps keys and values of what it read."""
    manifest = getattr(runner, "manifest", None)
    if manifest is not None:
        return any(info.name.startswith(PRESENT) for info in manifest.outputs)
    return bool(runner.model.signature.past) if hasattr(runner, "model") else False


def decoder_of(runner: Any, adapters: str | Sequence[str] | None = None) -> Decoder:
    """Steps of a runner with a cache.

    Args:
        runner: The runner, or a bank.
        adapters: The adapter of a bank, or one for each text, which then stay where they are.
    """
    if hasattr(runner, "decoder"):
        return runner.decoder()  # type: ignore[no-any-return]
    from adakron_export.runtimes.bank import BankRunner, OneAdapter
    from adakron_export.runtimes.ort import OrtRunner
    from adakron_export.runtimes.ort_decoding import OrtDecoder

    if isinstance(runner, OneAdapter):
        runner, adapters = runner.bank, runner.adapter
    if isinstance(runner, BankRunner) and adapters is not None:
        inner, beside, places = runner.held(adapters)
        if isinstance(inner, OrtRunner):
            return OrtDecoder(inner, beside, places)
        return ArrayDecoder(partial(runner.run_cached, adapters=adapters))
    return OrtDecoder(runner) if isinstance(runner, OrtRunner) else ArrayDecoder(runner.run_cached)


def kept_of(values: Mapping[str, Any]) -> Kept:
    """What is kept, by the names of outputs or of inputs."""
    shape = np.shape(next(iter(values.values())))
    return Kept({past_name(name): value for name, value in values.items()}, shape[0], shape[2])


def past_name(name: str) -> str:
    """The input that takes what an output puts out."""
    return PAST + name.removeprefix(PRESENT) if name.startswith(PRESENT) else name


def inputs_of(names: Collection[str], ids: Array, mask: Array) -> dict[str, Array]:
    """The inputs of a step.

    Args:
        names: Those that the model takes.
        ids: The new tokens, ``[texts, tokens]``.
        mask: ``[texts, tokens]``, of all tokens, with those that were read: 0 for padding.
    """
    every = {
        "input_ids": ids,
        "attention_mask": mask,
        "token_type_ids": np.zeros_like(ids),
        "position_ids": np.clip(mask.cumsum(-1) - 1, 0, None)[:, -ids.shape[1] :],
    }
    return {name: array for name, array in every.items() if name in names}


def check_room(length: int, limit: int | None) -> None:
    """Raise where a prompt leaves no room for a token.

    Raises:
        RunnerError: There is none.
    """
    if limit is not None and length >= limit:
        raise RunnerError(
            f"the prompt has {length} tokens, and the model reads {limit} with what it writes; shorten the prompt"
        )

"""What a runtime is to the rest of the program."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from adakron_export.artifacts.manifest import TensorInfo
from adakron_export.errors import RunnerError
from adakron_export.files.records import read_object
from adakron_export.tasks import PAST, without_cache
from adakron_export.tokenization.encoding import padding_id

Array = NDArray[Any]
Batch = Mapping[str, Array]


class Runner(Protocol):
    """One loaded model.

    Attributes:
        name: What it is, for reports, such as ``onnxruntime CPUExecutionProvider``.
        input_names: Names of the inputs, in their order; keys and values of the past are none.
        output_names: Names of the outputs, in their order; present keys and values are none.
        on_gpu: Whether it computes on a GPU.
    """

    name: str
    on_gpu: bool
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]

    def run(self, batch: Batch) -> dict[str, Array]:
        """Run one batch.

        Args:
            batch: Every input by name, ``[batch, tokens]`` integers (or ``pixel_values``). A model with a cache takes
                keys and values of the past too, all of them or none; ``attention_mask`` then speaks of all tokens.

        Returns:
            Every output by name, float32.

        Raises:
            RunnerError: The batch does not fit.
        """
        ...

    def prepare(self, batch: Batch) -> Callable[[], float]:
        """Put a batch where the runtime computes; each call of what comes back runs it and returns the seconds.

        Raises:
            RunnerError: The batch does not fit.
        """
        ...


class CachedRunner(Runner, Protocol):
    """A runner of a model that keeps the keys and values of what it read."""

    def run_cached(self, batch: Batch) -> dict[str, Array]:
        """Run one batch; see `Runner.run`.

        Returns:
            Every output by name, and the present keys and values, ``[batch, heads, tokens, width]`` each.
        """
        ...


class ArtifactRunner(Runner, Protocol):
    """A runner of an exported folder.

    Attributes:
        manifest: What the folder says of itself.
        pad_id: The token that fills short texts.
    """

    @property
    def manifest(self) -> Exported: ...  # noqa: D102

    pad_id: int


class HoldingRunner(ArtifactRunner, Protocol):
    """A runner that can hold some of its inputs where it computes, so that no call copies them."""

    def feed(self, batch: Batch) -> dict[str, Array]:
        """A batch as the graph takes it.

        Raises:
            RunnerError: The batch does not fit.
        """
        ...

    def hold(self, stacks: Mapping[str, Array]) -> dict[str, Any]:
        """Put arrays where the runtime computes; they must not change while a call reads them."""
        ...

    def run_feed(
        self, feed: Mapping[str, Array], held: Mapping[str, Any], names: Sequence[str] | None = None
    ) -> dict[str, Array]:
        """Run what `feed` made and other inputs beside it, with what `hold` holds; ``names`` are other outputs.

        Raises:
            RunnerError: The runtime refuses it.
        """
        ...

    def prepare_feed(self, feed: Mapping[str, Array], held: Mapping[str, Any]) -> Callable[[], float]:
        """The same as a timed run; see `Runner.prepare`."""
        ...


class Exported(Protocol):
    """What the manifests of artifacts and engines have in common."""

    @property
    def task(self) -> str: ...  # noqa: D102
    @property
    def inputs(self) -> tuple[TensorInfo, ...]: ...  # noqa: D102
    @property
    def outputs(self) -> tuple[TensorInfo, ...]: ...  # noqa: D102
    @property
    def max_length(self) -> int | None: ...  # noqa: D102


M = TypeVar("M", bound=Exported)


class GraphRunner(ABC, Generic[M]):
    """What runners of an exported graph have in common: a batch becomes what the graph takes, which is run or timed.

    Attributes:
        manifest: What the folder says of itself.
        pad_id: The token that fills short texts.
    """

    def __init__(self, manifest: M, folder: Path) -> None:
        self.manifest = manifest
        self.pad_id, self._vocab_size = tokens_of(folder)
        self.input_names = without_cache(info.name for info in manifest.inputs)
        self.output_names = without_cache(info.name for info in manifest.outputs)

    def run(self, batch: Batch) -> dict[str, Array]:
        """Run one batch; see `Runner.run`."""
        return self.run_feed(self.feed(batch), {})

    def run_cached(self, batch: Batch) -> dict[str, Array]:
        """Run one batch; see `CachedRunner`."""
        return self.run_feed(self.feed(batch), {}, [info.name for info in self.manifest.outputs])

    def prepare(self, batch: Batch) -> Callable[[], float]:
        """A timed run; see `Runner.prepare`."""
        return self.prepare_feed(self.feed(batch), {})

    def feed(self, batch: Batch, past: tuple[int, int] | None = None) -> dict[str, Array]:
        """A batch as the graph takes it; see `HoldingRunner`.

        Args:
            batch: The batch.
            past: How many texts, and tokens of each, the runtime holds keys and values of: the batch then has none.
        """
        return feed_of(batch, self.manifest.inputs, self.manifest.max_length, self._vocab_size, past=past)

    @abstractmethod
    def run_feed(
        self, feed: Mapping[str, Array], held: Mapping[str, Any], names: Sequence[str] | None = None
    ) -> dict[str, Array]:
        """Run what `feed` made, beside what `hold` holds; see `HoldingRunner`. ``names`` are other outputs."""

    @abstractmethod
    def prepare_feed(self, feed: Mapping[str, Array], held: Mapping[str, Any]) -> Callable[[], float]:
        """A timed run of the same; see `HoldingRunner`."""


def feed_of(
    batch: Batch, inputs: Sequence[TensorInfo], max_length: int | None, vocab_size: int | None,
    past: tuple[int, int] | None = None,
) -> dict[str, Array]:  # fmt: skip
    """The batch as the graph takes it.

    Args:
        batch: Every input by name.
        inputs: Inputs of the graph.
        max_length: The longest input, in tokens.
        vocab_size: Token ids lie below it; some runtimes would read another place of memory for others.
        past: How many texts, and tokens of each, there are keys and values of elsewhere.

    Raises:
        RunnerError: The batch does not fit.
    """
    names, kept = without_cache(info.name for info in inputs), dict[str, Array]()
    if past is None:
        cached = [info for info in inputs if info.name.startswith(PAST)]
        expected = [(each.name, each.shape[1], each.shape[3]) for each in cached]
        kept = past_of(batch, expected, cached[0].dtype if cached else "")
    given = {name: values for name, values in batch.items() if name not in kept}
    texts, before = past or next((np.shape(array)[:3:2] for array in kept.values()), (None, 0))
    check_batch(given, names, before=before)
    if texts not in (None, len(next(iter(given.values())))):
        raise RunnerError(f"the past is of {texts} texts, the batch has {len(next(iter(given.values())))}")
    check_values(given)
    largest = int(np.max(batch["input_ids"])) if "input_ids" in batch else 0
    if vocab_size is not None and largest >= vocab_size:
        raise RunnerError(f"the batch has the token {largest}; the model's tokens lie below {vocab_size}")
    feed = {info.name: np.ascontiguousarray(batch[info.name], dtype=info.dtype)
            for info in inputs if info.name in names}  # fmt: skip
    tokens = before + next(iter(feed.values())).shape[1]
    if max_length is not None and "input_ids" in feed and tokens > max_length:
        raise RunnerError(f"the batch is {tokens} tokens long, the model takes {max_length}; truncate the texts")
    return {**feed, **kept}


def past_of(batch: Batch, expected: Sequence[tuple[str, Any, Any]], dtype: Any) -> dict[str, Array]:
    """The keys and values of a batch; of none that it has, empty ones.

    Args:
        batch: The batch.
        expected: Name, heads and width of each.
        dtype: What they are in.

    Raises:
        RunnerError: Some lack, or are of another shape.
    """
    if not expected:
        return {}
    given = [name for name, _, _ in expected if name in batch]
    texts = next(iter(np.shape(batch["input_ids"])), 0) if "input_ids" in batch else 0
    if not given:
        return {name: np.zeros((texts, heads, 0, width), dtype) for name, heads, width in expected}
    if len(given) < len(expected):
        raise RunnerError(
            f"the batch has {len(given)} of {len(expected)} keys and values of the past; give all or none"
        )
    tokens = np.shape(batch[given[0]])[2:3]
    for name, heads, width in expected:
        shape = np.shape(batch[name])
        if shape != (texts, heads, *tokens, width):
            raise RunnerError(
                f"{name} has shape {shape}; it must be [{texts}, {heads}, tokens of the past, {width}], as all others"
            )
    return {name: np.ascontiguousarray(batch[name], dtype=dtype) for name in given}


def check_values(batch: Batch) -> None:
    """Raise where a value is of another kind than its input: it would be rounded, or read from another place.

    Raises:
        RunnerError: An id is no whole number or negative, a mask holds something else than 0 and 1, or a pixel is no
            number.
    """
    for name, values in batch.items():
        array = np.asarray(values)
        if name == "pixel_values":
            problem = "" if array.dtype.kind in "fiu" and np.isfinite(array).all() else "values that are no numbers"
        elif array.dtype.kind not in "iub":
            problem = f"values of dtype {array.dtype}, which are no whole numbers"
        elif name == "attention_mask":
            problem = "" if ((array == 0) | (array == 1)).all() else "values that are neither 0 nor 1"
        else:
            problem = "" if array.dtype.kind == "b" or (array >= 0).all() else "negative values"
        if problem:
            raise RunnerError(f"the input {name} has {problem}")


def tokens_of(folder: Path) -> tuple[int, int | None]:
    """The token that fills short texts, and how many tokens there are, by the model's configuration.

    The first is any where there is none and the mask hides it; the second ``None`` where the configuration lacks it.
    """
    try:
        config = read_object(folder / "config.json")
    except (OSError, ValueError):
        return 0, None
    size = config.get("vocab_size")
    return padding_id(config) or 0, size if isinstance(size, int) and size > 0 else None


def check_batch(batch: Batch, expected: tuple[str, ...], *, before: int = 0) -> None:
    """Raise unless the batch has exactly the inputs, all of one batch size and length.

    Args:
        batch: The batch, without keys and values.
        expected: The inputs.
        before: How many tokens the past has, of which the mask speaks too.

    Raises:
        RunnerError: The batch does not fit.
    """
    missing = [name for name in expected if name not in batch]
    extra = [name for name in batch if name not in expected]
    if missing or extra:
        parts = ([f"lacks {', '.join(missing)}"] if missing else []) + ([f"has {', '.join(extra)}"] if extra else [])
        raise RunnerError(f"the batch {' and '.join(parts)}; the model's inputs are {', '.join(expected)}")
    shapes = {name: np.shape(batch[name]) for name in expected}
    mask = shapes.get("attention_mask", ())
    if before and len(mask) == 2:
        shapes["attention_mask"] = (mask[0], mask[1] - before)
    if len(set(shapes.values())) > 1:
        if before:
            raise RunnerError(f"the inputs differ in shape, where attention_mask also has the {before} tokens of the "
                              f"past: { {name: np.shape(batch[name]) for name in expected} }")  # fmt: skip
        raise RunnerError(f"the inputs differ in shape: {shapes}")
    shape = next(iter(shapes.values()))
    if "pixel_values" in expected:
        rank, needed = 4, "[images, channels, height, width]"
    else:
        rank, needed = 2, "[texts, tokens], at least one of each"
    if len(shape) != rank or 0 in shape:
        raise RunnerError(f"the inputs have shape {shape}; the model takes {needed}")

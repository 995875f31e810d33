"""Texts of many lengths, run in batches of few: those of about the same length together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from adakron_export.artifacts.manifest import TensorInfo
from adakron_export.errors import RunnerError
from adakron_export.runtimes.bank import BankRunner
from adakron_export.runtimes.base import Array, ArtifactRunner, Batch

BATCH_SIZE = 16
Outputs = dict[str, Array]  # of one text, by name
_STEP = 4  # widths are multiples of it: few shapes for what plans, records or compiles each of them


@dataclass(frozen=True, slots=True)
class TextBatch:
    """Which texts stand in a batch together.

    Attributes:
        rows: Their places among all texts.
        tokens: How wide they are padded.
    """

    rows: tuple[int, ...]
    tokens: int


def group_by_length(lengths: Sequence[int], *, batch_size: int = BATCH_SIZE, longest: int | None) -> list[TextBatch]:
    """Batches of about equally long texts, the longest ones first, so that what memory takes shows at once.

    Args:
        lengths: Length of each text, in tokens.
        batch_size: The most texts in one.
        longest: What the model takes, in tokens; no batch is wider unless a text of it is.
    """
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    batches = []
    for start in range(0, len(order), batch_size):
        rows = tuple(order[start : start + batch_size])
        needed = lengths[rows[0]]
        rounded = -(-needed // _STEP) * _STEP
        batches.append(TextBatch(rows, max(needed, min(rounded, longest or rounded))))
    return batches


def run_texts(
    runner: ArtifactRunner, texts: Sequence[Mapping[str, Sequence[int]]], *,
    batch_size: int = BATCH_SIZE, adapters: str | Sequence[str] | None = None,
) -> list[Outputs]:  # fmt: skip
    """Run tokenised texts of any lengths; the outputs come in the order of the texts.

    Args:
        runner: An opened artifact or engine, whose inputs are ids, mask and types of tokens.
        texts: What a tokenizer makes of each, without padding: ``input_ids`` and perhaps ``token_type_ids``. Short
            ones are filled with the model's own token, so that no answer depends on its neighbours.
        batch_size: The most texts that run together.
        adapters: The adapter of a bank that answers all texts, or one for each.

    Returns:
        By text the outputs by name, without the axis of the batch; what is per token has those of the text alone.

    Raises:
        RunnerError: The model takes something else, or a text is empty or longer than it takes.
    """
    manifest = runner.manifest
    known = {"input_ids", "attention_mask", "token_type_ids", "position_ids"}
    if not known >= set(runner.input_names) or "input_ids" not in runner.input_names:
        raise RunnerError(
            f"run_texts makes {', '.join(sorted(known))}; the model takes {', '.join(runner.input_names)}"
        )
    if batch_size < 1:
        raise RunnerError(f"batch_size is {batch_size}; it must be at least 1")
    lengths = [len(text["input_ids"]) for text in texts]
    if 0 in lengths:
        raise RunnerError(f"text {lengths.index(0)} has no tokens")
    run = _asked(runner, adapters, len(texts))
    per_token = {info.name for info in manifest.outputs if _follows_tokens(info)}
    found: list[Outputs] = [{} for _ in texts]
    for batch in group_by_length(lengths, batch_size=batch_size, longest=manifest.max_length):
        padded = padded_right([texts[row] for row in batch.rows], batch.tokens, runner.input_names, runner.pad_id)
        outputs = run(padded, batch.rows)
        for place, row in enumerate(batch.rows):
            found[row] = {
                name: output[place, : lengths[row]] if name in per_token else output[place]
                for name, output in outputs.items()
            }
    return found


def _asked(
    runner: ArtifactRunner, adapters: str | Sequence[str] | None, texts: int
) -> Callable[[Batch, Sequence[int]], Outputs]:
    """What runs a batch of these rows, each with its adapter.

    Raises:
        RunnerError: There are more or fewer adapters than texts, or the runner is no bank.
    """
    if adapters is None:
        return lambda batch, _rows: runner.run(batch)
    if not isinstance(runner, BankRunner):
        raise RunnerError(f"{runner.name} has no adapters to choose from; leave adapters out")
    if isinstance(adapters, str):
        return lambda batch, _rows: runner.run(batch, adapters)
    if len(adapters) != texts:
        raise RunnerError(f"there are {len(adapters)} adapters for {texts} texts; name one for all, or one for each")
    return lambda batch, rows: runner.run(batch, [adapters[row] for row in rows])


def _follows_tokens(info: TensorInfo) -> bool:
    return len(info.shape) > 1 and info.shape[1] == "sequence_length"


def padded_right(
    texts: Sequence[Mapping[str, Sequence[int]]], tokens: int, names: Sequence[str], pad_id: int
) -> dict[str, Array]:  # fmt: skip
    """Tokenised texts as a batch; a decoder that classifies finds the last token that is no padding by its id.

    Args:
        texts: What a tokenizer makes of each.
        tokens: How wide the batch is.
        names: The model's inputs.
        pad_id: What fills short texts, on the right.
    """
    arrays = {name: np.zeros((len(texts), tokens), dtype=np.int64) for name in names}
    arrays["input_ids"][:] = pad_id
    for row, text in enumerate(texts):
        for name, values in _filled(text, names):
            arrays[name][row, : len(values)] = values
    return arrays


def _filled(text: Mapping[str, Sequence[int]], names: Sequence[str]) -> Iterator[tuple[str, Sequence[int]]]:
    for name in names:
        if name == "attention_mask":
            yield name, [1] * len(text["input_ids"])
        elif name == "position_ids":
            yield name, range(len(text["input_ids"]))
        elif name in text:
            yield name, text[name]

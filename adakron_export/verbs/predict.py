"""Runs an artifact on texts or images. With a fast tokenizer it needs no torch."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from adakron_export.artifacts.artifact import Artifact, opened_with
from adakron_export.errors import RunnerError
from adakron_export.runtimes.batching import BATCH_SIZE
from adakron_export.runtimes.table import runtime_on
from adakron_export.serving.predictor import Predictor
from adakron_export.serving.questions import Questions, check_writes
from adakron_export.serving.settings import PredictOptions
from adakron_export.tasks import Task
from adakron_export.tokenization.encoding import Text

_log = logging.getLogger(__name__)


def predict(
    artifact: str | Path,
    texts: Sequence[Text | Mapping[str, str] | Path],
    *,
    device: str = "cpu",
    batch_size: int = BATCH_SIZE,
    top_k: int | None = None,
    max_new_tokens: int | None = None,
    num_beams: int | None = None,
    adapter: str | Sequence[str] | None = None,
    skip_damaged: bool = False,
    on_text: Callable[[int, str], None] | None = None,
) -> list[Any]:
    """What a model answers to each text or image; texts that are about as long as one another run together.

    Args:
        artifact: The exported folder.
        texts: At least one. A pair of texts is a tuple; a question and its context may be a mapping of these names; an
            image is the path of its file.
        device: Where it runs, such as ``cpu``, ``openvino`` or ``cuda``.
        batch_size: The most texts that run together.
        top_k: How many classes or tokens to give; the best class, or 5 tokens, by default.
        max_new_tokens: How much to write; what the model's generation settings say, or 50, by default.
        num_beams: How many continuations to follow at once, in text generation with a cache. It needs PyTorch, as do
            settings of ``generation_config.json`` by which the likeliest token is not always the next one.
        adapter: The adapter of a bank that answers, or one for each text or image.
        skip_damaged: Leave out adapters of a bank whose files are damaged.
        on_text: Called with the place of a text and each piece that is written of it, of one text after the other; for
            text generation with a cache. What beams write is one piece.

    Returns:
        By text or image: ``{label, score}`` of a class, a list of them where several hold or were asked for, and of a
        regression the number itself as ``score``; the list of ``{entity_group, score, word, start, end}``; the list of
        ``{score, token, token_str}`` of the mask; ``{answer, score, start, end}``; the sentence embedding as a list of
        numbers; ``{generated_text}``.

    Raises:
        ArtifactError: The artifact is damaged, or has no tokenizer or image processor.
        DataError: An image cannot be read.
        RunnerError: There is no text, one is not of the kind that the task needs, or an option is not for the task;
            or there is no such adapter.
    """
    options = PredictOptions(top_k, max_new_tokens, num_beams)
    if batch_size < 1:
        raise RunnerError(f"batch_size is {batch_size}; it must be at least 1")
    _log.info("open the artifact")
    runtime_on(device)

    def opened(found: Artifact) -> tuple[Predictor, Questions]:
        """Read all that is needed; what cannot be answered is refused before."""
        if on_text is not None:
            check_writes(Task(found.manifest.task), "on_text")
        if skip_damaged and found.manifest.bank is None:
            raise RunnerError(f"{found.folder} is no bank, which skip_damaged is for; leave it out")
        predictor = Predictor(found)
        questions = predictor.check(texts, options, adapter)
        return predictor.open(device), questions

    predictor, questions = opened_with(artifact, opened, skip_damaged=skip_damaged)
    kind = "image" if predictor.task is Task.IMAGE_CLASSIFICATION else "text"
    _log.info("run the model on %s %s(s)", len(texts), kind)
    answers = predictor.answer(questions, batch_size=batch_size, on_text=on_text)
    if answers.cut:
        longest, first = predictor.encoder.max_length, answers.cut[0] + 1
        _log.warning(
            "%s text(s), the first of them text %s, are longer than the %s tokens that the model takes: their ends "
            "were not read", len(answers.cut), first, longest,
        )  # fmt: skip
    return answers.results

"""What the Trainer calls to measure a model: logits and labels in, metrics out."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from adakron_export.data.answers import AnswerSearch, answer_metrics
from adakron_export.data.data import TrainingData
from adakron_export.data.features import read_answers
from adakron_export.data.metrics import sequence_metrics, token_metrics
from adakron_export.data.settings import TextSettings
from adakron_export.tasks import Task


def metrics_function(
    data: TrainingData, settings: TextSettings, features: Any
) -> Callable[[Any], dict[str, float]] | None:
    """The ``compute_metrics`` of a task; ``None`` where the loss is all that is measured.

    Args:
        data: The data with the evaluation rows.
        settings: How answers are searched.
        features: The tokenised evaluation rows, in the order in which the model reads them.
    """
    task = data.columns.task
    if task is Task.TEXT_GENERATION:
        return None
    if task is Task.QUESTION_ANSWERING:
        return _answer_function(data, settings, features)
    measure = token_metrics if task is Task.TOKEN_CLASSIFICATION else sequence_metrics

    def compute(prediction: Any) -> dict[str, float]:
        logits = prediction.predictions
        logits = logits[0] if isinstance(logits, tuple) else logits  # some models add their hidden states
        return measure(logits, prediction.label_ids, data.labels)

    return compute


def _answer_function(data: TrainingData, settings: TextSettings, features: Any) -> Callable[[Any], dict[str, float]]:
    answers = _expected_answers(data)
    asked = sorted(set(features["row"]))

    def compute(prediction: Any) -> dict[str, float]:
        found = find_answers(data, settings, features, prediction.predictions)
        return answer_metrics(found, [answers[row] for row in asked])

    return compute


def find_answers(data: TrainingData, settings: TextSettings, features: Any, logits: Sequence[Any]) -> list[str]:
    """The answer to each question, in the order of the rows.

    Args:
        data: The data with the evaluation rows.
        settings: How answers are searched.
        features: The tokenised windows.
        logits: Start and end logits, ``[windows, tokens]`` each.
    """
    assert data.columns.pair is not None
    contexts = data.evaluation.columns[data.columns.pair]
    windows: dict[int, list[int]] = {}
    for index, row in enumerate(features["row"]):
        windows.setdefault(row, []).append(index)
    offsets = features["offsets"]
    search = AnswerSearch(settings.n_best, settings.max_answer_length, may_be_none=not all(_expected_answers(data)))
    starts, ends = (np.asarray(part, dtype=np.float32) for part in logits[:2])
    return [
        search.best([(starts[index], ends[index], offsets[index]) for index in indices], contexts[row])
        for row, indices in sorted(windows.items())
    ]


def _expected_answers(data: TrainingData) -> list[list[str]]:
    assert data.columns.label is not None
    return [read_answers(value, "", "")[0] for value in data.evaluation.columns[data.columns.label]]


def with_perplexity(metrics: dict[str, float], task: Task) -> dict[str, float]:
    """Add the perplexity of a language model, ``exp(loss)``."""
    if task is Task.TEXT_GENERATION and "loss" in metrics:
        return {**metrics, "perplexity": math.exp(min(metrics["loss"], 700.0))}
    return metrics

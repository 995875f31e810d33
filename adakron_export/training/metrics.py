"""What is measured on the evaluation data: the metrics of each task, from scikit-learn and SciPy where possible."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adakron_export.extras import require
from adakron_export.tasks import Task
from adakron_export.training.labels import MULTI, REGRESSION, Labels

LOWER_IS_BETTER = ("loss", "mse")
IGNORED = -100  # the label that torch's cross entropy skips


def metric_names(task: Task, labels: Labels) -> tuple[str, ...]:
    """What is measured for a task; the first decides which checkpoint is the best."""
    if task is Task.TOKEN_CLASSIFICATION:
        return ("f1", "precision", "recall", "accuracy")
    if task is Task.QUESTION_ANSWERING:
        return ("f1", "exact_match")
    if task is Task.TEXT_GENERATION:
        return ("loss",)
    if labels.problem_type == REGRESSION:
        return ("pearson", "spearman", "mse")
    if labels.problem_type == MULTI:
        return ("f1", "exact_match")
    return ("accuracy", "f1", "matthews_correlation")


def is_better(metric: str, value: float, than: float) -> bool:
    """Whether one value of a metric is better than another; NaN never is."""
    return value < than if metric in LOWER_IS_BETTER else value > than


def sequence_metrics(logits: NDArray[Any], references: NDArray[Any], labels: Labels) -> dict[str, float]:
    """Metrics of whole texts.

    Args:
        logits: ``[texts, classes]``; ``[texts, 1]`` for a regression.
        references: ``[texts]``, or ``[texts, classes]`` of zeros and ones where a text has several labels.
        labels: What they are.
    """
    if labels.problem_type == REGRESSION:
        return _correlations(logits.reshape(-1), references.reshape(-1))
    metrics = require("sklearn.metrics", extra="train")
    if labels.problem_type == MULTI:
        found = logits > 0  # a probability above one half
        return {
            "f1": float(metrics.f1_score(references, found, average="micro", zero_division=0)),
            "exact_match": float((found == (references > 0)).all(-1).mean()),
        }
    found = logits.argmax(-1)
    # F1 of the second class where there are two, as GLUE has it; of all classes alike where there are more.
    average = {"average": "binary", "pos_label": 1} if len(labels.names) == 2 else {"average": "macro"}
    return {
        "accuracy": float(metrics.accuracy_score(references, found)),
        "f1": float(metrics.f1_score(references, found, zero_division=0, **average)),
        "matthews_correlation": _matthews(metrics, references, found),
    }


def _matthews(metrics: Any, references: NDArray[Any], found: NDArray[Any]) -> float:
    if len({*references.tolist(), *found.tolist()}) < 2:  # as scikit-learn has it, which also warns
        return 0.0
    return float(metrics.matthews_corrcoef(references, found))


def _correlations(found: NDArray[Any], references: NDArray[Any]) -> dict[str, float]:
    stats = require("scipy.stats", extra="train")
    error = float(np.mean((found - references) ** 2))
    if np.ptp(found) == 0 or np.ptp(references) == 0:  # a constant has no correlation
        return {"pearson": math.nan, "spearman": math.nan, "mse": error}
    pearson, spearman = stats.pearsonr(found, references)[0], stats.spearmanr(found, references)[0]
    return {"pearson": float(pearson), "spearman": float(spearman), "mse": error}


def token_metrics(logits: NDArray[Any], references: NDArray[Any], labels: Labels) -> dict[str, float]:
    """Precision, recall and F1 of whole spans (CoNLL-2003), and the accuracy of the words.

    Tags like ``B-PER`` and ``I-PER`` make spans; without such tags every word is a span of its own.

    Args:
        logits: ``[texts, tokens, classes]``.
        references: ``[texts, tokens]``, -100 where a token does not begin a word.
        labels: Their names.
    """
    found = logits.argmax(-1)
    kept = references != IGNORED
    counts = np.zeros(3)  # found, expected, both
    for row, wanted, mask in zip(found, references, kept, strict=True):
        left = spans([labels.names[index] for index in row[mask]])
        right = spans([labels.names[index] for index in wanted[mask]])
        counts += (len(left), len(right), len(left & right))
    precision, recall = (float(counts[2] / total) if total else 0.0 for total in counts[:2])
    f1 = 2 * precision * recall / (precision + recall) if counts[2] else 0.0
    accuracy = float((found == references)[kept].mean()) if kept.any() else 0.0
    return {"f1": f1, "precision": precision, "recall": recall, "accuracy": accuracy}


def spans(tags: Sequence[str]) -> set[tuple[int, int, str]]:
    """The spans of a sentence as first word, last word and kind; ``O`` is outside of all."""
    found: list[tuple[int, int, str]] = []
    for index, tag in enumerate(tags):
        if tag == "O":
            continue
        prefix, _, kind = tag.partition("-") if tag[:2] in ("B-", "I-", "E-", "S-") else ("B", "", tag)
        continues = prefix in ("I", "E") and found and found[-1][1:] == (index - 1, kind)
        if continues:
            found[-1] = (found[-1][0], index, kind)
        else:
            found.append((index, index, kind))
    return set(found)

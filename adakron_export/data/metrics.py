"""What is measured on the evaluation data: the metrics of each task, from scikit-learn and SciPy where possible."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adakron_export.data.labels import MULTI, REGRESSION, Labels
from adakron_export.errors import DataError, first_few
from adakron_export.extras import require
from adakron_export.tasks import Task

LOWER_IS_BETTER = ("loss", "mse")
IGNORED = -100  # the label that torch's cross entropy skips


def metric_names(task: Task, labels: Labels) -> tuple[str, ...]:
    """What is measured for a task; the first decides which checkpoint is the best."""
    if task is Task.TOKEN_CLASSIFICATION:  # numbers do not say which of them is outside of all spans
        return ("accuracy",) if all(map(str.isdigit, labels.names)) else ("f1", "precision", "recall", "accuracy")
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
    """Precision, recall and F1 of whole spans, as seqeval has them in its strict mode, and the accuracy of the words.

    Tags without a prefix are spans of like neighbours. Tags that are numbers have no spans.

    Args:
        logits: ``[texts, tokens, classes]``.
        references: ``[texts, tokens]``, -100 where a token does not begin a word.
        labels: Their names.
    """
    best = logits.argmax(-1)
    kept = references != IGNORED
    accuracy = float((best == references)[kept].mean()) if kept.any() else 0.0
    if all(map(str.isdigit, labels.names)):
        return {"accuracy": accuracy}
    names = _with_prefixes(labels.names)
    expected, found = (
        [[names[index] for index in row[mask]] for row, mask in zip(tags, kept, strict=True)]
        for tags in (references, best)
    )
    metrics = require("seqeval.metrics", extra="train")
    how = {"mode": "strict", "scheme": _scheme(names, expected), "zero_division": 0}
    spans = {
        "f1": metrics.f1_score(expected, found, **how),
        "precision": metrics.precision_score(expected, found, **how),
        "recall": metrics.recall_score(expected, found, **how),
    }
    return {**{name: float(value) for name, value in spans.items()}, "accuracy": accuracy}


def _with_prefixes(names: Sequence[str]) -> list[str]:
    prefixed = any(name[1:2] == "-" for name in names)
    return [name if name == "O" or prefixed else f"I-{name}" for name in names]


def _scheme(names: Sequence[str], expected: Sequence[Sequence[str]]) -> Any:
    """What the tags follow: by their prefixes and, where I can begin a span, by the data."""
    schemes = require("seqeval.scheme", extra="train")
    prefixes = {name[0] for name in names if name != "O"}
    for scheme, letters in ((schemes.IOBES, "BIES"), (schemes.BILOU, "BILU")):
        if prefixes <= {*letters} and not prefixes <= {*"BI"}:
            return scheme
    if not prefixes <= {*"BI"}:
        raise DataError(
            f"the tags {first_few(sorted(names))} follow no scheme; write them as B- and I- with O, or with E- and "
            "S-, or L- and U-"
        )
    begins_inside = any(
        tag[:1] == "I" and before[1:] != tag[1:] for row in expected for before, tag in pairwise(["O", *row])
    )
    return schemes.IOB1 if "B" not in prefixes or begins_inside else schemes.IOB2

"""What is minimised: sums over a batch, and how many terms they have, so that a step's mean is exact.

A mean of means weighs batches of unequal size wrongly as soon as gradients are accumulated or processes share a step.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from adakron_export.data.labels import MULTI, REGRESSION
from adakron_export.data.metrics import IGNORED
from adakron_export.tasks import Task

LABELS = ("labels", "start_positions", "end_positions")


def label_names(task: Task) -> list[str]:
    """The tensors of a batch that are labels."""
    return ["start_positions", "end_positions"] if task is Task.QUESTION_ANSWERING else ["labels"]


def count_terms(batch: dict[str, Tensor], task: Task) -> Tensor:
    """How many terms `summed_loss` adds up: labelled tokens, or texts."""
    if task in (Task.TEXT_GENERATION, Task.TOKEN_CLASSIFICATION):
        labels = batch["labels"][:, 1:] if task is Task.TEXT_GENERATION else batch["labels"]
        return (labels != IGNORED).sum()
    return torch.tensor(len(batch["input_ids"]), device=batch["input_ids"].device)


def summed_loss(
    outputs: Any, batch: dict[str, Tensor], task: Task, problem_type: str | None, *, smoothing: float = 0.0
) -> Tensor:
    """The loss of a batch, summed over its terms.

    Args:
        outputs: What the model answered: ``logits``, or ``start_logits`` and ``end_logits``.
        batch: A batch with its labels.
        task: What the model is for.
        problem_type: Kind of text classification.
        smoothing: Label smoothing of single labels.
    """
    if task is Task.QUESTION_ANSWERING:
        start = functional.cross_entropy(outputs.start_logits.float(), batch["start_positions"], reduction="sum")
        end = functional.cross_entropy(outputs.end_logits.float(), batch["end_positions"], reduction="sum")
        return (start + end) / 2
    logits, labels = outputs.logits.float(), batch["labels"]
    if problem_type == REGRESSION:
        return functional.mse_loss(logits.reshape(-1), labels.reshape(-1).float(), reduction="sum")
    if problem_type == MULTI:
        return functional.binary_cross_entropy_with_logits(logits, labels, reduction="none").mean(-1).sum()
    if task is Task.TEXT_GENERATION:
        logits, labels = logits[:, :-1], labels[:, 1:]
    return functional.cross_entropy(
        logits.reshape(-1, logits.shape[-1]), labels.reshape(-1), reduction="sum", label_smoothing=smoothing
    )


def symmetric_divergence(
    first: Any, second: Any, batch: dict[str, Tensor], task: Task, problem_type: str | None
) -> Tensor:
    """AdaMix's consistency loss: how far two passes with other experts disagree, summed over texts or tokens.

    The mean of ``KL(p || q)`` and ``KL(q || p)`` of their softmax (Wang et al., EMNLP 2022, section 3.3); of a
    regression, the squared difference.
    """
    if task is Task.QUESTION_ANSWERING:
        return (
            _divergence(first.start_logits, second.start_logits) + _divergence(first.end_logits, second.end_logits)
        ) / 2
    left, right = first.logits, second.logits
    if problem_type == REGRESSION:
        return functional.mse_loss(left, right, reduction="sum")
    if problem_type == MULTI:  # each label is a distribution over yes and no; the mean over labels, as in the loss
        left, right = (torch.stack((logits, torch.zeros_like(logits)), -1) for logits in (left, right))
        return _divergence(left, right) / left.shape[-2]
    if task in (Task.TEXT_GENERATION, Task.TOKEN_CLASSIFICATION):
        labels = batch["labels"]
        if task is Task.TEXT_GENERATION:
            left, right, labels = left[:, :-1], right[:, :-1], labels[:, 1:]
        left, right = left[labels != IGNORED], right[labels != IGNORED]
    return _divergence(left, right)


def _divergence(left: Tensor, right: Tensor) -> Tensor:
    p, q = functional.log_softmax(left.float(), -1), functional.log_softmax(right.float(), -1)
    return ((p.exp() - q.exp()) * (p - q)).sum() / 2

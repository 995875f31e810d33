"""The GLUE tasks by name: columns, labels, metrics, and what decides which checkpoint is the best.

Source: Wang et al., "GLUE" (ICLR 2019), table 1; the metric that decides is the first.
"""

from __future__ import annotations

from dataclasses import dataclass

from adakron_export.errors import DataError

PREFIX = "glue:"
REPOSITORY = "nyu-mll/glue"


@dataclass(frozen=True, slots=True)
class GlueTask:
    """One task.

    Attributes:
        text: Column of the text.
        pair: Column of the second text.
        num_labels: 1 is a regression.
        metrics: What is reported; the first decides.
        evaluation: The split to choose on.
    """

    text: str
    pair: str | None
    num_labels: int
    metrics: tuple[str, ...]
    evaluation: str = "validation"


GLUE = {
    "cola": GlueTask("sentence", None, 2, ("matthews_correlation", "accuracy")),
    "sst2": GlueTask("sentence", None, 2, ("accuracy",)),
    "mrpc": GlueTask("sentence1", "sentence2", 2, ("f1", "accuracy")),
    "qqp": GlueTask("question1", "question2", 2, ("f1", "accuracy")),
    "stsb": GlueTask("sentence1", "sentence2", 1, ("pearson", "spearman")),
    "mnli": GlueTask("premise", "hypothesis", 3, ("accuracy",), "validation_matched"),
    "qnli": GlueTask("question", "sentence", 2, ("accuracy",)),
    "rte": GlueTask("sentence1", "sentence2", 2, ("accuracy",)),
}


def glue_task(data: str) -> GlueTask | None:
    """The task of ``glue:NAME``, or ``None`` for other data.

    Raises:
        DataError: There is no such task.
    """
    if not data.startswith(PREFIX):
        return None
    name = data.removeprefix(PREFIX)
    if name not in GLUE:
        raise DataError(f"{data}: no such task; choose one of {', '.join(PREFIX + known for known in sorted(GLUE))}")
    return GLUE[name]

"""How labelled text is understood: the settings that training and measuring share."""

from __future__ import annotations

from dataclasses import dataclass

from adakron_export.errors import DataError
from adakron_export.options.fields import check_record, option
from adakron_export.tasks import Task

TRAINED_TASKS = (Task.TEXT_CLASSIFICATION, Task.TOKEN_CLASSIFICATION, Task.QUESTION_ANSWERING, Task.TEXT_GENERATION)
PROBLEM_TYPES = ("single_label_classification", "multi_label_classification", "regression")


@dataclass(frozen=True, slots=True, kw_only=True)
class TextSettings:
    """How rows of text are read; what is left out is detected.

    Raises:
        DataError: A value is impossible.
    """

    text_column: str | None = option(
        None, "Column of the text, words, question or prompt.", group="data", metavar="NAME"
    )
    pair_column: str | None = option(None, "Column of the second text, or context.", group="data", metavar="NAME")
    label_column: str | None = option(
        None, "Column of the label, tags, answers or completion.", group="data", metavar="NAME"
    )
    label_separator: str | None = option(None, "What parts the labels of one text.", group="data", metavar="TEXT")
    header: bool | None = option(None, "Whether the first line names the columns.", group="data")
    delimiter: str | None = option(None, "What parts the cells of a table.", group="data", metavar="TEXT")
    doc_stride: int = option(128, "Tokens that two windows on a long context share.", group="data")
    n_best: int = option(20, "Starts and ends that are tried for an answer.", group="data", least=1)
    max_answer_length: int = option(30, "Longest answer, in tokens.", group="data", least=1)

    def __post_init__(self) -> None:
        """Refuse values that make no sense."""
        check_record(self, DataError)


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSettings(TextSettings):
    """What is learned from, and what decides which weights are best."""

    data: str = option("", "File, folder, glue:NAME or hub id to train on.", group="data", metavar="DATA")
    eval_data: str | None = option(
        None, "Data to choose the best epoch on, in the same forms.", group="data", metavar="DATA"
    )
    eval_share: float = option(0.1, "Share held out of DATA where there is no evaluation data.", group="data", below=1)
    task: str | None = option(
        None, "Task to train for.", shown="what the data looks like", group="model", choices=TRAINED_TASKS
    )
    problem_type: str | None = option(
        None, "Kind of classification.", shown="what the labels look like", group="data", choices=PROBLEM_TYPES
    )
    metric: str | None = option(None, "Metric that decides what is best.", shown="the task's own", group="evaluation")
    seed: int = option(0, "Seed of everything random.", group="optimisation")

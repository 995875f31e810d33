"""Which columns hold text and labels, and what task they make: as said, else guessed from names and values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from adakron_export.data.glue import GlueTask
from adakron_export.data.reading import Rows
from adakron_export.data.settings import TextSettings
from adakron_export.errors import DataError
from adakron_export.tasks import Task

_NAMES = {
    Task.TEXT_CLASSIFICATION: (
        ("text", "sentence", "sentence1", "question1", "premise", "question", "review", "tweet", "comment", "content",
         "query", "title"),
        ("text_pair", "pair", "sentence2", "question2", "hypothesis", "passage", "body", "sentence"),
        ("label", "labels", "target", "class", "category", "sentiment", "score", "rating", "similarity"),
    ),
    Task.TOKEN_CLASSIFICATION: (("tokens", "words", "text"), (), ("ner_tags", "tags", "pos_tags", "labels", "label")),
    Task.QUESTION_ANSWERING: (("question",), ("context", "passage"), ("answers", "answer")),
    Task.TEXT_GENERATION: (
        ("prompt", "source", "meaning_representation", "mr", "text"),
        (),
        ("completion", "target", "human_reference", "ref", "response"),
    ),
}  # fmt: skip
LABELS = "labels of 0 and 1"  # the column that one-hot labels are put together in
_TRUE, _FALSE = ("1", "1.0", "True"), ("0", "0.0", "False")
TEXT_NAMES = _NAMES[Task.TEXT_CLASSIFICATION][0]
_OPTIONS = ("--text-column", "--pair-column", "--label-column")


@dataclass(frozen=True, slots=True)
class Columns:
    """The task, and the columns that it reads.

    Attributes:
        task: What is learned.
        text: Text, words, question or prompt.
        pair: Second text or context.
        label: Label, tags, answers or completion.
        one_hot: The columns of 0 and 1 that the labels were put together from.
    """

    task: Task
    text: str
    pair: str | None
    label: str | None
    one_hot: tuple[str, ...] = ()

    def describe(self) -> str:
        """As a message."""
        parts = [f"text from {self.text!r}"]
        parts += [f"second text from {self.pair!r}"] if self.pair else []
        columns = ", ".join(map(repr, self.one_hot)) if self.one_hot else repr(self.label)
        parts += [f"labels from {columns}"] if self.label else []
        return f"{self.task.value}: {', '.join(parts)}"


def _said(rows: Rows, settings: TextSettings) -> tuple[str | None, str | None, str | None]:
    """The columns that were named, which are there."""
    said = (settings.text_column, settings.pair_column, settings.label_column)
    for option, name in zip(_OPTIONS, said, strict=True):
        if name is not None and name not in rows.columns:
            raise DataError(f"{rows.places[0]}: there is no column {name!r} ({option}); there are {_listed(rows)}")
    return said


def choose_columns(
    rows: Rows, settings: TextSettings, *, task: Task | None = None, glue: GlueTask | None = None
) -> tuple[Rows, Columns]:
    """The task and its columns, and the rows, whose labels are put together where each has a column of 0 and 1.

    Args:
        rows: The training data.
        settings: What was said; the rest is detected.
        task: What was said of the task.
        glue: The task of ``glue:NAME``.

    Raises:
        DataError: A column is missing, or cannot be guessed.
    """
    if glue is not None:
        if settings.text_column or settings.pair_column or settings.label_column:
            raise DataError(f"glue: has columns of its own; leave out {', '.join(_OPTIONS)}")
        return rows, Columns(Task.TEXT_CLASSIFICATION, glue.text, glue.pair, "label")
    said = _said(rows, settings)
    task = task or _guess_task(rows.columns)
    texts, pairs, labels = _NAMES[task]
    label = said[2] or _first(labels, rows.columns, taken=said) or _last_label(rows, task, said)
    text = said[0] or _first(texts, rows.columns, taken=(*said, label)) or _longest(rows, taken=(*said, label))
    if label is None and task is Task.TEXT_CLASSIFICATION and text is not None:
        one_hot = _one_hot(rows, taken=(*said, text))
        if one_hot:
            columns = Columns(task, text, said[1], LABELS, one_hot)
            return with_one_hot(rows, columns), columns
    pair = said[1] or _first(pairs, rows.columns, taken=(text, label))
    if said[0] and not said[1] and task is Task.TEXT_CLASSIFICATION:
        pair = None  # who names the text and no second one has none
    needs_pair = task is Task.QUESTION_ANSWERING and pair is None
    if text is None or needs_pair or (label is None and task is not Task.TEXT_GENERATION):
        raise DataError(
            f"{rows.places[0]}: cannot tell which column is which for {task.value} among {_listed(rows)}; "
            f"pass {', '.join(_OPTIONS)}"
        )
    return rows, Columns(task, text, pair, label)


def with_one_hot(rows: Rows, columns: Columns) -> Rows:
    """Rows with a column of lists of labels, in the place of a column of 0 and 1 for each label.

    Raises:
        DataError: A label's column is missing or has other values.
    """
    if not columns.one_hot:
        return rows
    missing = [name for name in columns.one_hot if name not in rows.columns]
    if missing:
        raise DataError(f"{rows.places[0]}: there is no column {missing[0]!r}, which is a label in the training data")
    for name in columns.one_hot:
        for value, place in zip(rows.columns[name], rows.places, strict=True):
            if not _is_binary(value):
                raise DataError(f"{place}: the label {name!r} is {value!r}; it must be 0 or 1")
    labels = [
        [name for name in columns.one_hot if str(rows.columns[name][index]) in _TRUE] for index in range(len(rows))
    ]
    return replace(rows, columns={**rows.columns, LABELS: labels})


def _one_hot(rows: Rows, *, taken: Sequence[str | None]) -> tuple[str, ...]:
    """The columns that hold nothing but 0 and 1, where there are at least two."""
    found = tuple(name for name, values in rows.columns.items() if name not in taken and all(map(_is_binary, values)))
    return found if len(found) > 1 else ()


def _is_binary(value: Any) -> bool:
    return str(value) in (*_TRUE, *_FALSE)


def _listed(rows: Rows) -> str:
    return ", ".join(map(repr, rows.columns))


def _guess_task(columns: Mapping[str, Sequence[Any]]) -> Task:
    lowered = {name.lower(): values for name, values in columns.items()}
    if {"question", "context", "answers"} <= lowered.keys():
        return Task.QUESTION_ANSWERING
    if {"prompt", "completion"} <= lowered.keys():
        return Task.TEXT_GENERATION
    words = next((lowered[name] for name in ("tokens", "words") if name in lowered), None)
    if words and isinstance(words[0], list):
        return Task.TOKEN_CLASSIFICATION
    return Task.TEXT_GENERATION if lowered.keys() == {"text"} else Task.TEXT_CLASSIFICATION


def _first(names: Sequence[str], columns: Mapping[str, Any], *, taken: Sequence[str | None]) -> str | None:
    by_lower = {name.lower(): name for name in columns if name not in taken}
    return next((by_lower[name] for name in names if name in by_lower), None)


def _last_label(rows: Rows, task: Task, taken: Sequence[str | None]) -> str | None:
    """With two columns one of which repeats its values, that one is the label."""
    free = [name for name in rows.columns if name not in taken]
    if task is not Task.TEXT_CLASSIFICATION or len(rows.columns) != 2:
        return None
    counts = {name: len(set(map(str, rows.columns[name]))) for name in free}
    found = min(counts, key=lambda name: counts[name], default=None)
    return found if found is not None and counts[found] <= max(2, len(rows) / 2) else None


def _longest(rows: Rows, *, taken: Sequence[str | None]) -> str | None:
    """The column with the most text in it, where there is no choice of two texts."""
    free = [name for name in rows.columns if name not in taken and isinstance(rows.columns[name][0], str)]
    return free[0] if len(free) == 1 else None

"""Which columns hold text and labels, and what task they make: as said, else guessed from names and values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from adakron_export.errors import DataError
from adakron_export.tasks import Task
from adakron_export.training.glue import GlueTask
from adakron_export.training.reading import Rows
from adakron_export.training.recipe import Recipe

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
_OPTIONS = ("--text-column", "--pair-column", "--label-column")


@dataclass(frozen=True, slots=True)
class Columns:
    """The task, and the columns that it reads."""

    task: Task
    text: str
    pair: str | None
    label: str | None

    def describe(self) -> str:
        """As a message."""
        parts = [f"text from {self.text!r}"]
        parts += [f"second text from {self.pair!r}"] if self.pair else []
        parts += [f"labels from {self.label!r}"] if self.label else []
        return f"{self.task.value}: {', '.join(parts)}"


def choose_columns(rows: Rows, recipe: Recipe, glue: GlueTask | None = None) -> Columns:
    """The task and its columns.

    Args:
        rows: The training data.
        recipe: What was said; the rest is guessed.
        glue: The task of ``glue:NAME``.

    Raises:
        DataError: A column is missing, or cannot be guessed.
    """
    if glue is not None:
        return Columns(Task.TEXT_CLASSIFICATION, glue.text, glue.pair, "label")
    said = (recipe.text_column, recipe.pair_column, recipe.label_column)
    for option, name in zip(_OPTIONS, said, strict=True):
        if name is not None and name not in rows.columns:
            raise DataError(f"{rows.places[0]}: there is no column {name!r} ({option}); there are {_listed(rows)}")
    task = Task(recipe.task) if recipe.task else _guess_task(rows.columns)
    texts, pairs, labels = _NAMES[task]
    label = said[2] or _first(labels, rows.columns, taken=said) or _last_label(rows, task, said)
    text = said[0] or _first(texts, rows.columns, taken=(*said, label)) or _longest(rows, taken=(*said, label))
    pair = said[1] or _first(pairs, rows.columns, taken=(text, label))
    if said[0] and not said[1] and task is Task.TEXT_CLASSIFICATION:
        pair = None  # who names the text and no second one has none
    needs_pair = task is Task.QUESTION_ANSWERING and pair is None
    if text is None or needs_pair or (label is None and task is not Task.TEXT_GENERATION):
        raise DataError(
            f"{rows.places[0]}: cannot tell which column is which for {task.value} among {_listed(rows)}; "
            f"pass {', '.join(_OPTIONS)}"
        )
    return Columns(task, text, pair, label)


def _listed(rows: Rows) -> str:
    return ", ".join(map(repr, rows.columns))


def _guess_task(columns: Mapping[str, Sequence[Any]]) -> Task:
    lowered = {name.lower(): values for name, values in columns.items()}
    if {"question", "context", "answers"} <= lowered.keys():
        return Task.QUESTION_ANSWERING
    words = next((lowered[name] for name in ("tokens", "words") if name in lowered), None)
    return Task.TOKEN_CLASSIFICATION if words and isinstance(words[0], list) else Task.TEXT_CLASSIFICATION


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

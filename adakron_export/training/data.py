"""The data of a run: read, its columns and labels found, a part held out where nothing else is there to choose on."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from adakron_export.errors import DataError, first_few
from adakron_export.training.columns import Columns, choose_columns
from adakron_export.training.glue import REPOSITORY, glue_task
from adakron_export.training.labels import Labels, find_labels
from adakron_export.training.metrics import metric_names
from adakron_export.training.reading import EVAL_NAMES, Rows, read_files, read_hub, split_files
from adakron_export.training.recipe import Recipe


@dataclass(frozen=True, slots=True)
class TrainingData:
    """What a run learns from.

    Attributes:
        train: Rows to learn from.
        evaluation: Rows to choose the best checkpoint on.
        columns: Which columns are read, and for which task.
        labels: What the labels are.
        metrics: What is reported; the first decides which checkpoint is the best.
    """

    train: Rows
    evaluation: Rows
    columns: Columns
    labels: Labels
    metrics: tuple[str, ...]

    def fingerprint(self) -> dict[str, str]:
        """sha256 of the rows to train and to evaluate on."""
        return {"train": self.train.fingerprint(), "evaluation": self.evaluation.fingerprint()}


def load_data(recipe: Recipe, say: Callable[[str], None]) -> TrainingData:
    """Read the data of a recipe.

    Args:
        recipe: What to read, and how to understand it.
        say: Told what was found and guessed.

    Raises:
        DataError: It cannot be read, understood or learned from.
    """
    glue = glue_task(recipe.data)
    train, evaluation = read_source(recipe)
    for note in train.notes:
        say(note)
    columns = choose_columns(train, recipe, glue)
    say(columns.describe())
    if evaluation is None:
        train, evaluation = _hold_out(train, recipe)
        say(f"no evaluation data: {len(evaluation)} of {len(train) + len(evaluation)} rows are held out to choose on")
    missing = [name for name in (columns.text, columns.pair, columns.label) if name and name not in evaluation.columns]
    if missing:
        raise DataError(
            f"{evaluation.places[0]}: there is no column {missing[0]!r}, which the training data has; there are "
            f"{', '.join(map(repr, evaluation.columns))}"
        )
    for rows in (train, evaluation):
        _check_texts(rows, columns, say)
    labels = find_labels(train, columns, recipe, is_regression=glue is not None and glue.num_labels == 1)
    if labels.names or labels.problem_type:
        say(labels.describe())
    names = glue.metrics if glue else metric_names(columns.task, labels)
    say(f"{len(train)} rows to train on, {len(evaluation)} to choose on")
    return TrainingData(train, evaluation, columns, labels, _deciding_first(names, recipe.metric))


def _deciding_first(names: tuple[str, ...], wanted: str | None) -> tuple[str, ...]:
    if wanted is None:
        return names
    known = (*names, "loss") if "loss" not in names else names
    if wanted not in known:
        raise DataError(f"metric is {wanted!r}; for this data choose one of {', '.join(known)}")
    return (wanted, *(name for name in names if name != wanted))


def read_source(recipe: Recipe) -> tuple[Rows, Rows | None]:
    """The rows to train on and, where there are some, to evaluate on.

    Raises:
        DataError: They cannot be read.
    """
    glue = glue_task(recipe.data)
    if glue is not None:
        train, evaluation = read_hub(REPOSITORY, (glue.evaluation,), config=recipe.data.partition(":")[2])
    else:
        train, evaluation = _read(recipe.data)
    if recipe.eval_data is not None:
        evaluation = _read(recipe.eval_data)[0]
    return train, evaluation


def _read(source: str) -> tuple[Rows, Rows | None]:
    path = Path(source)
    if path.exists():
        training, evaluation = split_files(path)
        return read_files(training), read_files(evaluation) if evaluation else None
    looks_like_a_path = path.suffix in (".tsv", ".csv", ".json", ".jsonl", ".parquet") or source.count("/") != 1
    if looks_like_a_path:
        raise DataError(f"{source}: no such file or folder")
    name, _, config = source.partition(":")
    return read_hub(name, EVAL_NAMES, config=config or None)


def _hold_out(rows: Rows, recipe: Recipe) -> tuple[Rows, Rows]:
    """Some rows at random, the same for the same seed."""
    count = max(1, round(len(rows) * recipe.eval_share))
    if count >= len(rows):
        raise DataError(f"{rows.places[0]}: {len(rows)} row(s) are too few to hold some out; pass --eval-data")
    chosen = set(random.Random(recipe.seed).sample(range(len(rows)), count))  # noqa: S311, RUF100 - not for secrets
    return (
        rows.select([index for index in range(len(rows)) if index not in chosen]),
        rows.select(sorted(chosen)),
    )


def _check_texts(rows: Rows, columns: Columns, say: Callable[[str], None]) -> None:
    for name in (columns.text, columns.pair):
        if name is None:
            continue
        values = rows.columns[name]
        wrong = [place for value, place in zip(values, rows.places, strict=True) if not isinstance(value, (str, list))]
        if wrong:
            raise DataError(f"{len(wrong)} rows have no text in {name!r}: {first_few(wrong, 3)}")
        empty = [place for value, place in zip(values, rows.places, strict=True) if not value or value == " "]
        if empty:
            say(f"warning: {len(empty)} rows have an empty {name!r}: {first_few(empty, 3)}")

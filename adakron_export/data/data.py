"""The data of a run: read, its columns and labels found, a part held out where nothing else is there to choose on."""

from __future__ import annotations

import logging
import random
from dataclasses import dataclass
from pathlib import Path

from adakron_export.data.columns import Columns, choose_columns, with_one_hot
from adakron_export.data.glue import REPOSITORY, glue_task
from adakron_export.data.labels import SINGLE, Labels, class_name, find_labels
from adakron_export.data.metrics import metric_names
from adakron_export.data.reading import EVAL_NAMES, SUFFIXES, Rows, read_files, read_hub, split_files
from adakron_export.data.settings import DataSettings, TextSettings
from adakron_export.data.tables import TableSettings
from adakron_export.errors import DataError, first_few
from adakron_export.tasks import Task

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TrainingData:
    """What a run learns from.

    Attributes:
        train: Rows to learn from.
        evaluation: Rows to choose the best checkpoint on.
        columns: The columns that are read, and the task that they are for.
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


def load_data(settings: DataSettings) -> TrainingData:
    """Read the data of a run.

    Args:
        settings: What to read, and how to understand it.

    Raises:
        DataError: The data cannot be read, understood or learned from.
    """
    glue = glue_task(settings.data)
    check_sources(settings.data, settings.eval_data)
    train, evaluation = read_source(settings.data, settings)
    if settings.eval_data is not None:
        evaluation = _read(settings.eval_data, settings)[0]
    for note in train.notes:
        _log.info("%s", note)
    train, columns = choose_columns(train, settings, task=Task(settings.task) if settings.task else None, glue=glue)
    _log.info("%s", columns.describe())
    if evaluation is None:
        train, evaluation = _hold_out(train, columns, settings)
        _log.info(
            "no evaluation data: %s of %s rows are held out to choose on",
            len(evaluation),
            len(train) + len(evaluation),
        )
    else:
        evaluation = with_one_hot(evaluation, columns)
    missing = [name for name in (columns.text, columns.pair, columns.label) if name and name not in evaluation.columns]
    if missing:
        raise DataError(
            f"{evaluation.places[0]}: there is no column {missing[0]!r}, which the training data has; there are "
            f"{', '.join(map(repr, evaluation.columns))}"
        )
    for rows in (train, evaluation):
        _check_texts(rows, columns)
    labels = find_labels(train, columns, settings, is_regression=glue is not None and glue.num_labels == 1)
    if labels.names or labels.problem_type:
        _log.info("%s", labels.describe())
    names = glue.metrics if glue else metric_names(columns.task, labels)
    _log.info("%s rows to train on, %s to choose on", len(train), len(evaluation))
    return TrainingData(train, evaluation, columns, labels, _deciding_first(names, settings.metric))


def _deciding_first(names: tuple[str, ...], wanted: str | None) -> tuple[str, ...]:
    if wanted is None:
        return names
    known = (*names, "loss") if "loss" not in names else names
    if wanted not in known:
        raise DataError(f"metric is {wanted!r}; for this data choose one of {', '.join(known)}")
    return (wanted, *(name for name in names if name != wanted))


def read_source(source: str, settings: TextSettings) -> tuple[Rows, Rows | None]:
    """The rows to train on and, where the source has a split for it, those to evaluate on.

    Args:
        source: A file, a folder, ``glue:NAME`` or a hub id.
        settings: How tables are read.

    Raises:
        DataError: They cannot be read.
    """
    check_sources(source)
    glue = glue_task(source)
    if glue is None:
        return _read(source, settings)
    TableSettings(settings.delimiter, settings.header).refuse_for(source)
    return read_hub(REPOSITORY, (glue.evaluation,), config=source.partition(":")[2])


def check_sources(*sources: str | None) -> None:
    """Raise where the data is no file or folder of this machine, and cannot be a data set of the hub either.

    Raises:
        DataError: The source is neither.
    """
    for source in sources:
        if source is not None and glue_task(source) is None and not Path(source).exists():
            looks_like_a_path = source.lower().endswith(SUFFIXES) or source.count("/") != 1
            if looks_like_a_path:
                raise DataError(f"{source}: no such file or folder")


def _read(source: str, settings: TextSettings) -> tuple[Rows, Rows | None]:
    path, table = Path(source), TableSettings(settings.delimiter, settings.header)
    if path.exists():
        training, evaluation = split_files(path)
        return read_files(training, table), read_files(evaluation, table) if evaluation else None
    table.refuse_for(source)
    name, _, config = source.partition(":")
    return read_hub(name, EVAL_NAMES, config=config or None)


def _hold_out(rows: Rows, columns: Columns, settings: DataSettings) -> tuple[Rows, Rows]:
    """Some rows at random, the same for the same seed; of each class its share, and never its last row."""
    count = max(1, round(len(rows) * settings.eval_share))
    if count >= len(rows):
        raise DataError(f"{rows.places[0]}: {len(rows)} row(s) are too few to hold some out; pass --eval-data")
    generator = random.Random(settings.seed)  # noqa: S311, RUF100 - not for secrets
    chosen = set(_share_of_each(_classes(rows, columns, settings), count, generator))
    if not chosen:
        raise DataError(f"{rows.places[0]}: every class has one row, so none can be held out; pass --eval-data")
    return (
        rows.select([index for index in range(len(rows)) if index not in chosen]),
        rows.select(sorted(chosen)),
    )


def _classes(rows: Rows, columns: Columns, settings: DataSettings) -> list[list[int]]:
    """The rows of each class; all of them together where labels are no classes."""
    if columns.task is Task.TEXT_CLASSIFICATION and columns.label is not None:
        values = rows.columns[columns.label]
        single = settings.problem_type in (None, SINGLE) and settings.label_separator is None
        groups: dict[str, list[int]] = {}
        for index, value in enumerate(values):
            groups.setdefault(class_name(value), []).append(index)
        if single and len(groups) <= len(rows) / 2:
            return list(groups.values())
    return [list(range(len(rows)))]


def _share_of_each(groups: list[list[int]], count: int, generator: random.Random) -> list[int]:
    """So many rows, as evenly over the groups as it goes, and not all of any."""
    total = sum(map(len, groups))
    exact = [count * len(group) / total for group in groups]
    taken = [min(int(share), len(group) - 1) for share, group in zip(exact, groups, strict=True)]
    by_rest = sorted(range(len(groups)), key=lambda index: taken[index] - exact[index])
    for index in by_rest:
        if sum(taken) < count and taken[index] < len(groups[index]) - 1:
            taken[index] += 1
    return [row for group, number in zip(groups, taken, strict=True) for row in generator.sample(group, number)]


def _check_texts(rows: Rows, columns: Columns) -> None:
    for name in (columns.text, columns.pair):
        if name is None:
            continue
        values = rows.columns[name]
        words = columns.task is Task.TOKEN_CLASSIFICATION and name == columns.text
        wrong = [
            place
            for value, place in zip(values, rows.places, strict=True)
            if not (isinstance(value, str) or (words and _is_words(value)))
        ]
        if wrong:
            kind = "text, or list of words," if words else "text"
            raise DataError(f"{len(wrong)} rows have no {kind} in {name!r}: {first_few(wrong, 3)}")
        empty = [place for value, place in zip(values, rows.places, strict=True) if not value or value == " "]
        if empty:
            _log.warning("%s rows have an empty %r: %s", len(empty), name, first_few(empty, 3))


def _is_words(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(word, str) for word in value)

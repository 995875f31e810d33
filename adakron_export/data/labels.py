"""Labels: from what stands in the data to what the model learns, with every row held to account."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from adakron_export.data.columns import Columns
from adakron_export.data.reading import Rows
from adakron_export.data.settings import DataSettings, TextSettings
from adakron_export.errors import DataError, first_few
from adakron_export.tasks import Task

SINGLE, MULTI, REGRESSION = "single_label_classification", "multi_label_classification", "regression"


@dataclass(frozen=True, slots=True)
class Labels:
    """What the labels of a data set are.

    Attributes:
        problem_type: Kind of classification, as transformers' configurations call it; ``None`` where there is none of
            the three.
        names: Names of the classes in their order; empty without classes.
        separator: What parts the labels of one text, where they stand in one string.
        origin: Who has these labels, for messages.
        synonyms: Other names of classes, and which they are of.
    """

    problem_type: str | None
    names: tuple[str, ...] = ()
    separator: str | None = None
    origin: str = "the training data"
    synonyms: Mapping[str, int] = field(default_factory=dict)

    @property
    def id2label(self) -> dict[int, str]:
        """As in ``config.json``."""
        return dict(enumerate(self.names))

    def describe(self) -> str:
        """As a message."""
        if self.problem_type == REGRESSION:
            return "labels: numbers (regression)"
        kind = " (several per text)" if self.problem_type == MULTI else ""
        return f"{len(self.names)} labels{kind}: {first_few(self.names, 8)}"


def find_labels(rows: Rows, columns: Columns, settings: DataSettings, *, is_regression: bool = False) -> Labels:
    """The labels of the training data.

    Raises:
        DataError: A label is missing or NaN, or there is only one class.
    """
    if columns.label is None or columns.task in (Task.QUESTION_ANSWERING, Task.TEXT_GENERATION):
        return Labels(None)
    values = _present(rows, columns, several=settings.problem_type == MULTI or settings.label_separator is not None)
    if columns.task is Task.TOKEN_CLASSIFICATION:
        tags = [tag for value in values for tag in as_words(value)]
        return Labels(None, _at_least_two(_class_names(tags), rows, len(tags)))
    problem = settings.problem_type or (REGRESSION if is_regression else _guess_problem(values, settings))
    if problem == REGRESSION:
        numbers = [_number(value, place) for value, place in zip(values, rows.places, strict=True)]
        if len(set(numbers)) == 1:
            raise DataError(f"{rows.places[0]}: every label is {numbers[0]:g}; there is nothing to learn")
        return Labels(REGRESSION)
    if problem == MULTI:
        separator = settings.label_separator
        names = _class_names(name for value in values for name in _several(value, separator))
        return Labels(MULTI, names, separator)
    nested = next(
        (place for value, place in zip(values, rows.places, strict=True) if isinstance(value, (list, dict))), None
    )
    if nested:
        raise DataError(f"{nested}: holds several labels, where {SINGLE} takes one; pass --problem-type {MULTI}")
    return Labels(SINGLE, _at_least_two(_class_names(values), rows, len(rows)))


def encode_labels(rows: Rows, columns: Columns, labels: Labels) -> list[Any]:
    """The labels as the model learns them: numbers, or lists of them.

    Raises:
        DataError: A label is missing, NaN, or not among those of the training data.
    """
    values = _present(rows, columns, several=labels.problem_type == MULTI)
    if labels.problem_type == REGRESSION:
        return [_number(value, place) for value, place in zip(values, rows.places, strict=True)]
    numbers = {**labels.synonyms, **{name: index for index, name in enumerate(labels.names)}}
    if labels.problem_type == SINGLE:
        known = [[class_name(value)] for value in values]
    elif labels.problem_type == MULTI:
        known = [[class_name(name) for name in _several(value, labels.separator)] for value in values]
    else:
        known = [[class_name(tag) for tag in as_words(value)] for value in values]
    _check_known(known, rows, numbers, labels.origin)
    if labels.problem_type == SINGLE:
        return [numbers[names[0]] for names in known]
    if labels.problem_type == MULTI:
        held = [{numbers[name] for name in names} for names in known]
        return [[float(index in indices) for index in range(len(labels.names))] for indices in held]
    return [[numbers[name] for name in names] for names in known]


def _check_known(known: Sequence[Sequence[str]], rows: Rows, numbers: dict[str, int], origin: str) -> None:
    strange = {
        name: place for names, place in zip(known, rows.places, strict=True) for name in names if name not in numbers
    }
    if strange:
        found = first_few([f"{name!r} ({place})" for name, place in strange.items()], 3)
        raise DataError(f"labels that {origin} does not have: {found}; it has {first_few(numbers, 8)}")


def class_name(value: Any) -> str:
    """A label as a class is called: ``true``, 1, 1.0 and their texts ``1`` and ``1.0`` are the same."""
    if isinstance(value, bool) or (isinstance(value, float) and value.is_integer()):
        return str(int(value))
    text = str(value).strip()
    return text.partition(".")[0] if re.fullmatch(r"-?\d+\.0+", text) else text


def as_words(value: Any) -> list[Any]:
    """A list of words or tags; a text is split at blanks."""
    return list(value) if isinstance(value, (list, tuple)) else str(value).split()


def _present(rows: Rows, columns: Columns, *, several: bool) -> list[Any]:
    """The values of the label column, none of them missing; where a text can have several labels, it can have none."""
    assert columns.label is not None
    values = [[] if several and value == "" else value for value in rows.columns[columns.label]]
    check_lists(values, rows.places, columns.label)
    missing = [place for value, place in zip(values, rows.places, strict=True) if _is_missing(value)]
    if missing:
        raise DataError(
            f"{len(missing)} of {len(rows)} rows have no label in {columns.label!r}: {first_few(missing, 3)}; "
            "remove these rows or label them"
        )
    return values


def check_lists(values: Sequence[Any], places: Sequence[str], column: str) -> None:
    """Raise where a list is written as a text, as spreadsheets do: it would be taken for one label or word.

    Raises:
        DataError: A label is missing.
    """
    for value, place in zip(values, places, strict=True):
        if isinstance(value, str) and re.fullmatch(r"\[\s*(['\"].*['\"]|-?\d.*)?\s*\]", value.strip(), re.DOTALL):
            raise DataError(
                f"{place}: {column!r} holds a list written as a text, {value[:40]!r}; write the data as JSON lines, "
                "where lists are lists, or with a separator (--label-separator)"
            )


def _is_missing(value: Any) -> bool:
    if isinstance(value, float):
        return math.isnan(value)
    if isinstance(value, (list, tuple)):
        return any(_is_missing(part) for part in value)
    return value is None or (isinstance(value, str) and value.strip() in ("", "nan", "NaN"))


def _guess_problem(values: Sequence[Any], settings: TextSettings) -> str:
    if settings.label_separator is not None or all(isinstance(value, (list, tuple)) for value in values):
        return MULTI
    numbers = [_as_float(value) for value in values]
    if all(number is not None for number in numbers):
        fractions = any(number is not None and not number.is_integer() for number in numbers)
        return REGRESSION if fractions else SINGLE
    return SINGLE


def _as_float(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def _number(value: Any, place: str) -> float:
    number = _as_float(value)
    if number is None or not math.isfinite(number):
        raise DataError(f"{place}: the label {value!r} is not a number, which a regression needs")
    return number


def _several(value: Any, separator: str | None) -> list[Any]:
    if isinstance(value, (list, tuple)):
        return list(value)
    return [part.strip() for part in str(value).split(separator or ",") if part.strip()]


def _class_names(values: Iterable[Any]) -> tuple[str, ...]:
    """Sorted, numbers as numbers: 2 before 10."""
    names = {class_name(value) for value in values}
    if all(_as_float(name) is not None for name in names):
        return tuple(sorted(names, key=float))
    return tuple(sorted(names))


def _at_least_two(names: tuple[str, ...], rows: Rows, count: int) -> tuple[str, ...]:
    if len(names) < 2:
        label = f"the label {names[0]!r}" if names else "no label"
        raise DataError(
            f"every one of the {len(rows)} rows from {rows.places[0]} on has {label}; with one class there is nothing "
            "to learn"
        )
    if len(names) > 2 and len(names) > count / 2:
        raise DataError(
            f"{len(names)} different labels in {len(rows)} rows, such as {first_few(names, 3)}; is that the label "
            "column? Pass --label-column, or --problem-type regression"
        )
    return names

"""Tables of text: what parts their cells, and whether their first line names the columns."""

from __future__ import annotations

import csv
import re
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adakron_export.errors import DataError, first_few

# First cells that name a column.
HEADER_WORDS = frozenset(
    word
    for line in (
        "text sentence sentence1 sentence2 question question1 question2 premise hypothesis query passage review tweet",
        "comment content body title label labels target class category sentiment score rating similarity id idx",
        "prompt completion source response context answer answers tokens words tags intent utterance message document",
        "summary instruction input output mr ref meaning_representation human_reference ner_tags pos_tags name",
    )
    for word in line.split()
)
_IDENTIFIER = re.compile(r"[A-Za-z_][\w-]*")
_DELIMITERS = {".csv": (",", ";", "\t"), ".tsv": ("\t",)}
Lines = Sequence[tuple[int, str]]


@dataclass(frozen=True, slots=True)
class TableSettings:
    """How a table is written, where its reader need not guess.

    Attributes:
        delimiter: Between cells.
        header: Whether the first line names the columns.
    """

    delimiter: str | None = None
    header: bool | None = None

    def refuse_for(self, source: object) -> None:
        """Raise where something was said and the source is no table of cells, which would drop it.

        Raises:
            DataError: A setting was given.
        """
        if self.delimiter is not None or self.header is not None:
            option = "--delimiter" if self.delimiter is not None else "--header"
            raise DataError(f"{source}: {option} is for CSV and TSV files, which this is not; leave it out")


@dataclass(frozen=True, slots=True)
class _Cells:
    """Rows that are not empty, and the line on which each ends."""

    rows: list[list[str]]
    lines: list[int]

    @property
    def widths(self) -> set[int]:
        return {len(row) for row in self.rows}


def read_table(
    file: Path, lines: Lines, kind: str, settings: TableSettings
) -> tuple[dict[str, list[Any]], list[str], tuple[str, ...]]:
    """Columns by name, the place of each row, and what was decided.

    Args:
        file: For messages.
        lines: Its lines with their numbers.
        kind: ``.csv`` or ``.tsv``.
        settings: What need not be guessed.

    Raises:
        DataError: Rows differ in width, two columns have one name, or a guess is not certain.
    """
    cells = _cells(file, lines, kind, settings)
    if not cells.rows:
        return {}, [], ()
    width = len(cells.rows[0])
    odd = [f"{file}:{line}" for line, row in zip(cells.lines, cells.rows, strict=True) if len(row) != width]
    if odd:
        raise DataError(f"the first row of {file} has {width} columns, others have more or fewer: {first_few(odd, 3)}")
    rows, numbers, notes = cells.rows, cells.lines, ()
    if settings.header if settings.header is not None else _has_header(file, rows):
        names, rows, numbers = [cell.strip() for cell in rows[0]], rows[1:], numbers[1:]
    else:
        names = [str(number) for number in range(1, width + 1)]
        notes = (f"{file.name} has no header line; its columns are called {', '.join(names)}",)  # type: ignore[assignment]
    if len(set(names)) < width:
        raise DataError(f"{file}: two columns have the same name: {', '.join(names)}")
    columns = {name: [row[index] for row in rows] for index, name in enumerate(names)}
    return columns, [f"{file}:{number}" for number in numbers], notes


def _cells(file: Path, lines: Lines, kind: str, settings: TableSettings) -> _Cells:
    if settings.delimiter is not None:
        if len(settings.delimiter) != 1:
            raise DataError(f"delimiter is {settings.delimiter!r}; it must be one character")
        return _parsed(file, lines, settings.delimiter, quoted=kind == ".csv")
    if kind == ".tsv":
        return _tabs(file, lines)
    first = lines[0][1] if lines else ""
    candidates = [delimiter for delimiter in _DELIMITERS[kind] if delimiter in first] or [","]
    if len(candidates) == 1:
        return _parsed(file, lines, candidates[0], quoted=True)
    tried = {delimiter: _tried(file, lines, delimiter) for delimiter in candidates}
    whole = [cells for cells in tried.values() if cells is not None and len(cells.widths) == 1 and cells.widths != {1}]
    if len(whole) != 1:
        listed = " or ".join(map(repr, candidates))
        raise DataError(f"{file}: its cells may be parted by {listed}; say which one with --delimiter")
    return whole[0]


def _tabs(file: Path, lines: Lines) -> _Cells:
    """As GLUE writes it, where a quotation mark is one; or as spreadsheets do, where it opens and ends a cell."""
    plain = _parsed(file, lines, "\t", quoted=False)
    if not any(cell.startswith('"') for row in plain.rows for cell in row):
        return plain
    quoted = _tried(file, lines, "\t")
    if quoted is None or len(quoted.widths) > 1:
        return plain
    wrapped = len(plain.widths) == 1 and any(
        all(len(row[index]) > 1 and row[index][0] == row[index][-1] == '"' for row in plain.rows[1:])
        for index in range(len(plain.rows[0]))
    )
    return quoted if len(plain.widths) > 1 or (wrapped and len(plain.rows) > 1) else plain


def _tried(file: Path, lines: Lines, delimiter: str) -> _Cells | None:
    try:
        return _parsed(file, lines, delimiter, quoted=True)
    except DataError:
        return None


def _parsed(file: Path, lines: Lines, delimiter: str, *, quoted: bool) -> _Cells:
    csv.field_size_limit(sys.maxsize)
    texts = (line for _, line in lines)
    reader = (
        csv.reader(texts, delimiter=delimiter, strict=True)
        if quoted
        else csv.reader(texts, delimiter=delimiter, quoting=csv.QUOTE_NONE)
    )
    rows: list[list[str]] = []
    numbers: list[int] = []
    try:
        for row in reader:
            if row:
                rows.append(row)
                numbers.append(reader.line_num)
    except csv.Error as error:
        raise DataError(f"{file}:{reader.line_num}: {error}") from error
    return _Cells(rows, numbers)


def _has_header(file: Path, rows: list[list[str]]) -> bool:
    """Whether the first line names the columns: by what speaks for it and against it in each of them.

    Raises:
        DataError: The delimiter cannot be told.
    """
    found = {_is_name(head, [row[index] for row in rows[1:]]) for index, head in enumerate(rows[0])} - {None}
    if len(found) == 1:
        return bool(found.pop())
    cells = [cell.strip() for cell in rows[0]]
    if not found and any(cell.lower() in HEADER_WORDS for cell in cells) and all(map(_IDENTIFIER.fullmatch, cells)):
        return True
    raise DataError(
        f"{file}: its first line, {', '.join(map(repr, rows[0]))[:80]}, may be a header or data; pass --header or "
        "--no-header"
    )


def _is_name(head: str, values: list[str]) -> bool | None:
    """Whether a first cell names its column; ``None`` where nothing speaks for either."""
    if head in values:
        return False  # no name is a value too
    if values and all(_is_number(value) for value in values):
        return not _is_number(head)
    counts = Counter(values)
    repeats = len(values) > 1 and (len(counts) <= len(values) / 4 or min(counts.values()) > 1)
    if repeats:
        return True  # all that stands below comes again, and this does not
    return None


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True

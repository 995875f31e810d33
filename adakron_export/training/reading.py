"""Reads labelled text: TSV, CSV, JSON lines, Parquet, folders of them, and data sets of the hub.

Every value stays as it is written (an `NA` is a text), and every row knows the file and line that it came from.
"""

from __future__ import annotations

import csv
import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adakron_export.adapter import hub
from adakron_export.errors import DataError, first_few
from adakron_export.extras import require

SUFFIXES = (".tsv", ".csv", ".jsonl", ".json", ".parquet")
TRAIN_NAMES = ("train",)
EVAL_NAMES = ("dev", "validation", "valid", "val", "eval", "test")
# First cells that name a column; with none of them the look of the column decides (`_has_header`).
HEADER_WORDS = frozenset(
    word
    for line in (
        "text sentence sentence1 sentence2 question question1 question2 premise hypothesis query passage review tweet",
        "comment content body title label labels target class category sentiment score rating similarity id idx",
        "prompt completion source response context answer answers tokens words tags",
    )
    for word in line.split()
)


@dataclass(frozen=True, slots=True)
class Rows:
    """A table of labelled text.

    Attributes:
        columns: Values by column name.
        places: Where each row stands, such as ``train.tsv:17``.
        notes: What was decided while reading.
    """

    columns: dict[str, list[Any]]
    places: Sequence[str]
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.places)

    def select(self, indices: Sequence[int]) -> Rows:
        """The rows of these indices."""
        columns = {name: [values[index] for index in indices] for name, values in self.columns.items()}
        return Rows(columns, [self.places[index] for index in indices], self.notes)

    def fingerprint(self) -> str:
        """sha256 of all values, the same wherever the file stands."""
        digest = hashlib.sha256()
        for name, values in sorted(self.columns.items()):
            digest.update(json.dumps([name, values], default=str).encode())
        return digest.hexdigest()


def split_files(source: Path) -> tuple[list[Path], list[Path]]:
    """The files to train on and to evaluate on, of a file or a folder; the second may be empty.

    Raises:
        DataError: There is no readable file.
    """
    if source.is_file():
        return [source], []
    files = sorted(file for file in source.iterdir() if file.suffix in SUFFIXES and file.is_file())
    if not files:
        raise DataError(f"{source}: holds no {', '.join(SUFFIXES)} file")
    training = [file for file in files if file.stem.startswith(TRAIN_NAMES)]
    if not training:
        return files, []
    for name in EVAL_NAMES:
        evaluation = [file for file in files if file.stem.startswith(name)]
        if evaluation:
            return training, evaluation
    return training, []


def read_files(files: Sequence[Path]) -> Rows:
    """All rows of the files, which must have the same columns.

    Raises:
        DataError: A file is empty, damaged, not UTF-8, or has other columns than the first.
    """
    tables = [_read_file(file) for file in files]
    first = tables[0]
    for file, table in zip(files, tables, strict=True):
        if table.columns.keys() != first.columns.keys():
            raise DataError(
                f"{file}: has the columns {', '.join(table.columns)}, where {files[0]} has {', '.join(first.columns)}"
            )
    columns = {name: [value for table in tables for value in table.columns[name]] for name in first.columns}
    notes = dict.fromkeys(note for table in tables for note in table.notes)
    return Rows(columns, [place for table in tables for place in table.places], tuple(notes))


def read_hub(name: str, splits: Sequence[str], *, config: str | None = None) -> tuple[Rows, Rows | None]:
    """The training split and the first other split that there is, of a data set on the hub.

    Args:
        name: The hub id.
        splits: Names of splits to evaluate on, in the order of preference.
        config: The data set's configuration.

    Raises:
        DataError: It cannot be read.
    """
    datasets = require("datasets", extra="train")
    hub.check_dataset(name, error=DataError)
    try:
        found = datasets.load_dataset(name, config)
    except (OSError, ValueError, RuntimeError) as error:  # no network is a ConnectionError, and so an OSError
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise DataError(f"{name}: cannot be read from the hub ({reason})") from error
    if "train" not in found:
        raise DataError(f"{name}: has no split 'train'; it has {', '.join(found)}")
    evaluation = next((split for split in splits if split in found), None)
    return _hub_rows(found["train"], f"{name}[train]"), (
        _hub_rows(found[evaluation], f"{name}[{evaluation}]") if evaluation else None
    )


def _hub_rows(table: Any, place: str) -> Rows:
    columns = {key: list(table[key]) for key in table.column_names}
    for key, feature in table.features.items():
        names = getattr(feature, "names", None)
        if names:  # numbers of classes become their names; -1 is a label that was withheld
            columns[key] = [names[value] if value is not None and value >= 0 else None for value in columns[key]]
        tags = getattr(getattr(feature, "feature", None), "names", None)
        if tags:
            columns[key] = [[tags[value] for value in values] for values in columns[key]]
    return Rows(columns, [f"{place}:{number}" for number in range(len(table))])


def _read_file(file: Path) -> Rows:
    if file.suffix not in SUFFIXES:
        raise DataError(f"{file}: files of labelled text end in {', '.join(SUFFIXES)}")
    if file.stat().st_size == 0:
        raise DataError(f"{file}: is empty")
    if file.suffix == ".parquet":
        rows = _read_parquet(file)
    elif file.suffix in (".json", ".jsonl"):
        rows = _read_json_lines(file)
    else:
        rows = _read_separated(file)
    if not len(rows):
        raise DataError(f"{file}: has no rows")
    return rows


def _read_parquet(file: Path) -> Rows:
    parquet = require("pyarrow.parquet", extra="train")
    try:
        table = parquet.read_table(file).to_pydict()
    except (OSError, ValueError) as error:  # pyarrow's own errors are both
        raise DataError(f"{file}: not a readable Parquet file ({str(error).splitlines()[0][:160]})") from error
    count = len(next(iter(table.values()), []))
    return Rows(table, [f"{file}:row {number}" for number in range(1, count + 1)])


def _read_json_lines(file: Path) -> Rows:
    columns: dict[str, list[Any]] = {}
    places: list[str] = []
    for number, line in _lines(file):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{file}:{number}: not a JSON object on one line ({error.msg})") from error
        if not isinstance(row, dict) or (columns and row.keys() != columns.keys()):
            found = ", ".join(row) if isinstance(row, dict) else type(row).__name__
            raise DataError(f"{file}:{number}: has {found} where the lines before have {', '.join(columns)}")
        for key, value in row.items():
            columns.setdefault(key, []).append(value)
        places.append(f"{file}:{number}")
    return Rows(columns, places)


def _lines(file: Path) -> Iterator[tuple[int, str]]:
    number = 0
    with file.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            try:
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{file}:{number}: not UTF-8 (byte {error.start} of the line); convert the file, for example with "
                    "iconv -f latin1 -t utf-8"
                ) from error


def _read_separated(file: Path) -> Rows:
    table, places = _cells(file)
    if not table:
        return Rows({}, [])
    width = len(table[0])
    odd = [place for place, cells in zip(places, table, strict=True) if len(cells) != width]
    if odd:
        raise DataError(f"the first row of {file} has {width} columns, others have more or fewer: {first_few(odd, 3)}")
    notes: tuple[str, ...] = ()
    if _has_header(table):
        names, table, places = [cell.strip() for cell in table[0]], table[1:], places[1:]
    else:
        names = [str(number) for number in range(1, width + 1)]
        notes = (f"{file.name} has no header line; its columns are called {', '.join(names)}",)
    if len(set(names)) < width:
        raise DataError(f"{file}: two columns have the same name: {', '.join(names)}")
    return Rows({name: [cells[index] for cells in table] for index, name in enumerate(names)}, places, notes)


def _cells(file: Path) -> tuple[list[list[str]], list[str]]:
    """The rows of a file that are not empty, and where each stands."""
    lines = (line for _, line in _lines(file))
    if file.suffix == ".tsv":  # as GLUE writes it: a quotation mark is a quotation mark
        reader = csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
    else:
        reader = csv.reader(lines, strict=True)
    csv.field_size_limit(sys.maxsize)
    table: list[list[str]] = []
    places: list[str] = []
    try:
        for cells in reader:
            if cells:
                table.append(cells)
                places.append(f"{file}:{reader.line_num}")
    except csv.Error as error:
        raise DataError(f"{file}:{reader.line_num}: {error}") from error
    return table, places


def _has_header(table: list[list[str]]) -> bool:
    """Whether the first line names the columns: by the words in it, or because it is unlike all that follows."""
    first, rest = table[0], table[1:]
    if any(cell.strip().lower() in HEADER_WORDS for cell in first):
        return True
    if not rest:
        return False
    for index, head in enumerate(first):
        values = {cells[index] for cells in rest}
        if all(_is_number(value) for value in values):
            if not _is_number(head):
                return True
        elif head not in values and len(values) <= len(rest) / 4:
            return True
    return False


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True

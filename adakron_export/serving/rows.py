"""Tables that do not fit into memory: how many rows a file has, and some of them, by the place of the first one."""

from __future__ import annotations

import csv
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from adakron_export.data.settings import TextSettings
from adakron_export.errors import DataError, told_as
from adakron_export.extras import require

KINDS = (".csv", ".tsv", ".jsonl", ".parquet")
_CELL = 2**24  # bytes of a cell of a table


def count_rows(file: Path, settings: TextSettings) -> int:
    """How many rows a file has; a table is read as `read_rows` reads it.

    Raises:
        DataError: The file cannot be read.
    """
    if file.suffix == ".parquet":
        return int(_parquet(file).metadata.num_rows)
    with told_as(DataError, f"{file}: not readable"):
        return sum(1 for _ in _rows(file, settings))


def read_rows(file: Path, settings: TextSettings, start: int, count: int) -> list[dict[str, Any]]:
    """Some rows of a file, each by the names of its columns. Cells of CSV and TSV are texts.

    Args:
        file: CSV and TSV with names in the first line, JSON lines, or Parquet.
        settings: How cells are separated.
        start: How many rows stand before them.
        count: The most rows.

    Raises:
        DataError: The file cannot be read, or a row is no row.
    """
    with told_as(DataError, f"{file}: not readable"):
        found = list(itertools.islice(_rows(file, settings, start), count))
    names = found[0].keys() if found else ()
    for number, row in enumerate(found, start + 1):
        if row.keys() != names and file.suffix != ".jsonl":
            raise DataError(f"{file}, row {number}: its cells do not fit the names of the columns")
    return found


def _rows(file: Path, settings: TextSettings, start: int = 0) -> Iterator[dict[str, Any]]:
    if file.suffix == ".parquet":
        yield from _parquet_rows(file, start)
        return
    with file.open(newline="", encoding="utf-8-sig") as stream:
        lines = _json_rows(stream) if file.suffix == ".jsonl" else _table_rows(stream, file, settings)
        yield from itertools.islice(lines, start, None)


def _table_rows(stream: Any, file: Path, settings: TextSettings) -> Iterator[dict[str, Any]]:
    csv.field_size_limit(_CELL)
    delimiter = settings.delimiter or ("\t" if file.suffix == ".tsv" else ",")
    for row in csv.DictReader(stream, delimiter=delimiter, strict=True):
        if None in row or None in row.values():
            raise ValueError("a row has more or fewer cells than there are columns")
        yield row


def _json_rows(stream: Any) -> Iterator[dict[str, Any]]:
    for line in stream:
        if line.strip():
            row = json.loads(line)
            if not isinstance(row, dict):
                raise TypeError("a line is no JSON object")
            yield row


def _parquet_rows(file: Path, start: int) -> Iterator[dict[str, Any]]:
    """Row groups before the first row are not read."""
    found, passed = _parquet(file), 0
    for group in range(found.num_row_groups):
        rows = found.metadata.row_group(group).num_rows
        if passed + rows > start:
            for row in itertools.chain.from_iterable(batch.to_pylist() for batch in found.iter_batches(4096, [group])):
                if passed >= start:
                    yield row
                passed += 1
        else:
            passed += rows


def _parquet(file: Path) -> Any:
    parquet = require("pyarrow.parquet", extra="serve")
    with told_as(DataError, f"{file}: not readable"):
        return parquet.ParquetFile(file)

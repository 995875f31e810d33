"""Texts to run a model on, from the files that it could be trained on and by the same reader."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import IO, Any

from adakron_export.data.columns import TEXT_NAMES
from adakron_export.data.reading import Rows, decode_lines, kind_of, read_files, read_lines, without_end
from adakron_export.data.settings import TextSettings
from adakron_export.data.tables import TableSettings
from adakron_export.errors import DataError
from adakron_export.options.fields import words_of
from adakron_export.tokenization.encoding import Text

_TABLES = (".csv", ".tsv", ".json", ".jsonl", ".parquet")


def read_texts(source: Path | IO[bytes], settings: TextSettings) -> list[Text]:
    """The texts of a file, or pairs of them.

    Args:
        source: A table by its suffix; any other file, and a stream, holds a text a line, empty ones included.
        settings: The columns of a table and its cells. A column of text is detected by its name, or as the only one
            with text; that of a second text is ``context``, beside ``question``.

    Raises:
        DataError: The file cannot be read, has no such column, or holds something else than text.
    """
    given = words_of(settings)
    if isinstance(source, Path) and not source.is_file():
        raise DataError(f"{source}: no such file")
    if not isinstance(source, Path) or kind_of(source) not in _TABLES:
        if given:
            raise DataError(f"{given[0]} is for tables ({', '.join(_TABLES)}); here every line is a text")
        lines = read_lines(source) if isinstance(source, Path) else decode_lines(source, "standard input")
        return [without_end(line) for _, line in lines]
    return _texts_of(_table(source, settings), settings)


def read_texts_with(source: Path | IO[bytes], settings: TextSettings, column: str) -> tuple[list[Text], list[str]]:
    """The texts of a table, and what another column says of each; see `read_texts`.

    Args:
        source: The table.
        settings: The columns and cells, as for `read_texts`.
        column: The other column.

    Raises:
        DataError: The source is no table, cannot be read, or has no such column.
    """
    if not isinstance(source, Path) or kind_of(source) not in _TABLES:
        raise DataError(f"the column {column!r} is one of a table ({', '.join(_TABLES)}); here every line is a text")
    if not source.is_file():
        raise DataError(f"{source}: no such file")
    rows = _table(source, settings)
    others = _texts(rows, _column(rows, column))
    without = replace(rows, columns={name: values for name, values in rows.columns.items() if name != column})
    return _texts_of(without, settings), others


def _table(source: Path, settings: TextSettings) -> Rows:
    return read_files([source], TableSettings(settings.delimiter, settings.header))


def _texts_of(rows: Rows, settings: TextSettings) -> list[Text]:
    text = _column(rows, settings.text_column)
    pair = settings.pair_column or ("context" if text == "question" and "context" in rows.columns else None)
    firsts = _texts(rows, text)
    return list(zip(firsts, _texts(rows, _column(rows, pair)), strict=True)) if pair else list(firsts)


def _column(rows: Rows, name: str | None) -> str:
    listed = ", ".join(map(repr, rows.columns))
    if name is not None:
        if name not in rows.columns:
            raise DataError(f"{rows.places[0]}: there is no column {name!r}; there are {listed}")
        return name
    by_lower = {column.lower(): column for column in rows.columns}
    known = [by_lower[word] for word in TEXT_NAMES if word in by_lower]
    texts = [column for column, values in rows.columns.items() if all(isinstance(value, str) for value in values)]
    if known or len(texts) == 1:
        return known[0] if known else texts[0]
    raise DataError(f"{rows.places[0]}: cannot tell which column holds the text among {listed}; pass --text-column")


def _texts(rows: Rows, column: str) -> list[str]:
    found: list[Any] = rows.columns[column]
    for value, place in zip(found, rows.places, strict=True):
        if not isinstance(value, str):
            raise DataError(f"{place}: {column!r} is no text but {value!r}")
    return found

"""Reads labelled text: tables, JSON, Parquet, CoNLL, SQuAD, plain text, folders of them, and data sets of the hub.

Every value stays as it is written (an `NA` is a text), and every row knows the file and line that it came from. That
is why files are not read through `datasets`, whose readers guess types and forget lines. A line ends at LF or CRLF.
"""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adakron_export.data.tables import TableSettings, read_table
from adakron_export.errors import DataError
from adakron_export.extras import require

KINDS = (".tsv", ".csv", ".jsonl", ".json", ".parquet", ".txt", ".conll")
SUFFIXES = (*KINDS, *(f"{kind}.gz" for kind in KINDS if kind != ".parquet"))
TRAIN_NAMES = ("train",)
EVAL_NAMES = ("dev", "validation", "valid", "val", "eval", "test")
_DOCUMENT = "-DOCSTART-"
_LARGEST_TEXT = 2**30  # bytes, unpacked
_PARQUET_ROWS = 256  # that are unpacked at a time


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


def kind_of(file: Path) -> str:
    """How a file is read: the last of its suffixes that is not ``.gz``, in lower case."""
    name = file.name.lower().removesuffix(".gz")
    return f".{name.rpartition('.')[2]}" if "." in name else ""


def _is_readable(file: Path) -> bool:
    return file.is_file() and kind_of(file) in KINDS


def split_files(source: Path) -> tuple[list[Path], list[Path]]:
    """The files to train on and to evaluate on, of a file or a folder; the second may be empty.

    Raises:
        DataError: There is no readable file.
    """
    if source.is_file():
        return [source], []
    files = sorted(file for file in source.iterdir() if _is_readable(file))
    if not files:
        raise DataError(f"{source}: holds no {', '.join(KINDS)} file")
    training = [file for file in files if file.name.lower().startswith(TRAIN_NAMES)]
    if not training:
        return files, []
    for name in EVAL_NAMES:
        evaluation = [file for file in files if file.name.lower().startswith(name)]
        if evaluation:
            return training, evaluation
    return training, []


def read_files(files: Sequence[Path], settings: TableSettings | None = None) -> Rows:
    """All rows of the files, which must have the same columns.

    Args:
        files: At least one.
        settings: How tables are written, where that is known.

    Raises:
        DataError: A file is empty, damaged, not UTF-8, or has other columns than the first.
    """
    tables = [_read_file(file, settings or TableSettings()) for file in files]
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
        DataError: The source cannot be read.
    """
    from adakron_export.checkpoints import hub

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
        if names:  # numbers of classes become their names; -1 is a label that was withheld, and so missing
            columns[key] = [_class_of(value, names) for value in columns[key]]
        tags = getattr(getattr(feature, "feature", None), "names", None)
        if tags:
            columns[key] = [[_class_of(value, tags) for value in values] for values in columns[key]]
    return Rows(columns, [f"{place}:{number}" for number in range(len(table))])


def _class_of(value: int | None, names: Sequence[str]) -> str | None:
    return names[value] if value is not None and value >= 0 else None


def _read_file(file: Path, settings: TableSettings) -> Rows:
    kind = kind_of(file)
    if kind not in KINDS:
        raise DataError(f"{file}: files of labelled text end in {', '.join(KINDS)}, with .gz or without")
    if kind not in (".csv", ".tsv"):
        settings.refuse_for(file)
    if file.stat().st_size == 0:
        raise DataError(f"{file}: is empty")
    try:
        rows = _READERS[kind](file, settings)
    except (gzip.BadGzipFile, EOFError) as error:
        raise DataError(f"{file}: not a whole gzip file ({error})") from error
    if not len(rows):
        raise DataError(f"{file}: has no rows")
    return rows


def _read_parquet(file: Path, _: TableSettings) -> Rows:
    parquet = require("pyarrow.parquet", extra="train")
    table: dict[str, list[Any]] = {}
    held = 0
    try:
        with parquet.ParquetFile(file) as opened:
            table = {name: [] for name in opened.schema_arrow.names}
            for batch in opened.iter_batches(batch_size=_PARQUET_ROWS):  # a few bytes may stand for many
                held += batch.nbytes
                _check_size(held, file)
                for name, values in zip(batch.schema.names, batch.columns, strict=True):
                    table[name] += values.to_pylist()
    except (OSError, ValueError) as error:  # pyarrow's own errors are both
        reason = (str(error) or type(error).__name__).splitlines()[0][:160]
        raise DataError(f"{file}: not a readable Parquet file ({reason})") from error
    count = len(next(iter(table.values()), []))
    return Rows(table, [f"{file}:row {number}" for number in range(1, count + 1)])


def _read_json(file: Path, settings: TableSettings) -> Rows:
    """JSON lines, an array of rows, or SQuAD's nested form."""
    first = next((line.strip() for _, line in read_lines(file) if line.strip()), "")
    if not first.startswith("[") and _is_object(first):
        whole = _parse(first) if len(list(_full_lines(file))) == 1 else {}
        if not isinstance(whole.get("data"), list):
            return _read_json_lines(file, settings)
    content = _parse("".join(line for _, line in read_lines(file)), f"{file}: ")
    rows = content.get("data") if isinstance(content, dict) else content
    if not isinstance(rows, list):
        raise DataError(f"{file}: holds a {type(content).__name__}; write a list of rows, or a JSON object a line")
    if rows and isinstance(rows[0], dict) and "paragraphs" in rows[0]:
        return _table(_squad_rows(rows, file), file)
    return _table(((f"{file}:row {number}", row) for number, row in enumerate(rows, 1)), file)


def _full_lines(file: Path) -> Iterator[str]:
    return (line for _, line in read_lines(file) if line.strip())


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def _read_json_lines(file: Path, _: TableSettings) -> Rows:
    return _table(((f"{file}:{number}", _parse(line, f"{file}:{number}: ", "on one line")) for number, line in
                   read_lines(file) if line.strip()), file)  # fmt: skip


def _parse(text: str, place: str = "", where: str = "") -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # a ValueError of its own: a number of too many digits
        reason = "nested too deeply" if isinstance(error, RecursionError) else getattr(error, "msg", str(error))
        raise DataError(f"{place}not a JSON object {where}".rstrip() + f" ({reason})") from error


def _table(rows: Iterable[tuple[str, Any]], file: Path) -> Rows:
    """Objects as a table; a key that a row lacks is a missing value."""
    found: list[dict[str, Any]] = []
    places: list[str] = []
    for place, row in rows:
        if not isinstance(row, dict):
            raise DataError(f"{place}: holds a {type(row).__name__}, not an object with columns")
        _check_unicode(row, place)
        found.append(row)
        places.append(place)
    names = dict.fromkeys(name for row in found for name in row)
    if found and not names:
        raise DataError(f"{file}: its rows have no columns")
    return Rows({name: [row.get(name) for row in found] for name in names}, places)


def _check_unicode(value: Any, place: str) -> None:
    """JSON can write halves of characters, which no tokenizer takes."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            half = value[error.start : error.start + 1]
            raise DataError(f"{place}: holds half a character, {half!a}; write whole ones") from error
    elif isinstance(value, dict):
        for key, part in value.items():
            _check_unicode(key, place)
            _check_unicode(part, place)
    elif isinstance(value, list):
        for part in value:
            _check_unicode(part, place)


def _squad_rows(articles: list[Any], file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        for article in articles:
            for paragraph in article["paragraphs"]:
                for asked in paragraph["qas"]:
                    found = [] if asked.get("is_impossible") else asked.get("answers", [])
                    answers = {"text": [each["text"] for each in found],
                               "answer_start": [each["answer_start"] for each in found]}  # fmt: skip
                    row = {"question": asked["question"], "context": paragraph["context"], "answers": answers}
                    yield f"{file}:question {asked.get('id', asked['question'][:40])}", row
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{file}: not as SQuAD has it ({type(error).__name__}: {error})") from error


def read_lines(file: Path) -> Iterator[tuple[int, str]]:
    """The lines of a file with their numbers, line ends included; only LF and CRLF end one.

    Raises:
        DataError: The file is not UTF-8.
    """
    held = 0
    with gzip.open(file, "rb") if file.name.lower().endswith(".gz") else file.open("rb") as stream:
        for number, line in decode_lines(_bounded(stream, file), str(file)):
            held += len(line)
            _check_size(held, file)
            yield number, line


def _bounded(stream: Any, file: Path) -> Iterator[bytes]:
    """The lines of a stream, of which none may be longer than a reader can hold."""
    while line := stream.readline(_LARGEST_TEXT + 1):
        _check_size(len(line), file)
        yield line


def _check_size(held: int, file: Path) -> None:
    if held > _LARGEST_TEXT:
        raise DataError(f"{file}: stands for more than {_LARGEST_TEXT // 2**20} MiB of text; split it, or name a part")


def decode_lines(stream: Iterable[bytes], name: str) -> Iterator[tuple[int, str]]:
    """The lines of bytes; arguments and errors as for `read_lines`."""
    for number, line in enumerate(stream, 1):
        try:
            yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise DataError(
                f"{name}:{number}: not UTF-8 (byte {error.start} of the line); convert the file, for example with "
                "iconv -f latin1 -t utf-8"
            ) from error


def without_end(line: str) -> str:
    """A line without the LF or CRLF that ends it."""
    return line.removesuffix("\n").removesuffix("\r")


def _read_separated(file: Path, settings: TableSettings) -> Rows:
    columns, places, notes = read_table(file, list(read_lines(file)), kind_of(file), settings)
    return Rows(columns, places, notes)


def _read_plain(file: Path, settings: TableSettings) -> Rows:
    """A text a line; or, where every line has a tag and blank ones part sentences, as CoNLL has it."""
    lines = [(number, without_end(line)) for number, line in read_lines(file)]
    if _looks_like_conll([line for _, line in lines]):
        return _read_conll(file, settings)
    kept = [(f"{file}:{number}", line) for number, line in lines if line.strip()]
    return Rows({"text": [line for _, line in kept]}, [place for place, _ in kept])


def _looks_like_conll(lines: list[str]) -> bool:
    words = [line.split() for line in lines if line.strip() and not line.startswith(_DOCUMENT)]
    widths = {len(cells) for cells in words}
    parted = any(not line.strip() for line in lines[:-1])
    tagged = all(cells[-1] == "O" or cells[-1][1:2] == "-" for cells in words)
    return bool(words) and len(widths) == 1 and widths.pop() >= 2 and parted and tagged


def _read_conll(file: Path, _: TableSettings) -> Rows:
    """Word and tag of a sentence, a word a line: the first and the last column."""
    tokens: list[list[str]] = []
    tags: list[list[str]] = []
    places: list[str] = []
    inside = False
    for number, line in read_lines(file):
        cells = line.split("\t") if "\t" in line else line.split()
        cells = [cell.strip() for cell in cells]
        if not line.strip() or cells[0] == _DOCUMENT:
            inside = False
            continue
        if len(cells) < 2:
            raise DataError(f"{file}:{number}: holds a word without a tag")
        if not inside:
            tokens.append([])
            tags.append([])
            places.append(f"{file}:{number}")
            inside = True
        tokens[-1].append(cells[0])
        tags[-1].append(cells[-1])
    return Rows({"tokens": tokens, "tags": tags}, places)


_READERS: dict[str, Callable[[Path, TableSettings], Rows]] = {
    ".parquet": _read_parquet,
    ".json": _read_json,
    ".jsonl": _read_json,
    ".tsv": _read_separated,
    ".csv": _read_separated,
    ".txt": _read_plain,
    ".conll": _read_conll,
}

"""Millions of rows: files in, Parquet out, on as many processes as Ray has.

The rows of each file are cut into parts, and each part is written in one step: a run that was killed goes on with the
parts that are missing.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from adakron_export.artifacts.artifact import Artifact, opened_with
from adakron_export.artifacts.listing import sha256_of
from adakron_export.artifacts.manifest import MANIFEST
from adakron_export.data.columns import TEXT_NAMES
from adakron_export.data.settings import TextSettings
from adakron_export.errors import AdaKronError, DataError, RunnerError, first_few
from adakron_export.extras import require
from adakron_export.files.records import read_object
from adakron_export.files.staging import check_writable, write_text
from adakron_export.serving.local import ray_here
from adakron_export.serving.predictor import Predictor
from adakron_export.serving.rows import KINDS, count_rows, read_rows
from adakron_export.serving.settings import BulkSettings
from adakron_export.tasks import Task

_log = logging.getLogger(__name__)

PLAN, RESULT, CUT = "adakron_run.json", "prediction", "prediction_cut_off"
_CHUNK = 1024  # rows that are answered at once: among them those of like length run together


@dataclass(frozen=True, slots=True)
class Part:
    """Some rows of a file, and where their answers go.

    Attributes:
        file: The file.
        start: How many rows stand before them.
        count: How many they are.
        output: The name of the output file.
        columns: The column of text, and that of second texts where there is one.
    """

    file: str
    start: int
    count: int
    output: str
    columns: Sequence[str]


@dataclass(frozen=True, slots=True)
class BulkResult:
    """What was done.

    Attributes:
        rows: How many rows have an answer, earlier runs included.
        files: How many output files there are.
        seconds: What this run took.
        failed: What was wrong with the parts that were not written.
    """

    rows: int
    files: int
    seconds: float
    failed: tuple[str, ...] = ()


def answer_files(artifact: Path, source: str, output: Path, settings: BulkSettings) -> BulkResult:
    """Answer every row of some files; arguments as of `predict_files`."""
    check_writable(output)
    if opened_with(artifact, Predictor).task is Task.IMAGE_CLASSIFICATION:
        raise RunnerError("rows of tables are texts; this model is for images")
    parts = _planned(artifact, source, output, settings)
    missing = [part for part in parts if not (output / part.output).is_file()]
    if len(missing) < len(parts):
        _log.info("%s of %s output files are there already", len(parts) - len(missing), len(parts))
    start, failed = time.perf_counter(), list[str]()
    if missing:
        workers = settings.workers or max(1, (os.cpu_count() or 1) // settings.threads)
        with ray_here(settings.address, min(workers, len(missing)) * settings.threads):
            failed = _run(artifact, output, missing, min(workers, len(missing)), settings)
    there = [part for part in parts if (output / part.output).is_file()]
    return BulkResult(sum(part.count for part in there), len(there), time.perf_counter() - start, tuple(failed))


def files_of(source: str) -> list[Path]:
    """The files of a folder, of a pattern, or the one file.

    Raises:
        DataError: There is none, one is of another kind, or two would have the same output.
    """
    path = Path(source)
    if path.is_dir():
        found = sorted(each for each in path.iterdir() if each.suffix in KINDS and not each.name.startswith("."))
    else:
        found = [path] if path.is_file() else _matching(path)
        other = next((each for each in found if each.suffix not in KINDS or not each.is_file()), None)
        if other is not None:
            raise DataError(f"{other}: only files of {', '.join(KINDS)} are read")
    if not found:
        raise DataError(f"{source}: there is no file of {', '.join(KINDS)}")
    return found


def _matching(pattern: Path) -> list[Path]:
    root = Path(pattern.anchor or ".")
    return sorted(root.glob(str(pattern.relative_to(root) if pattern.anchor else pattern)))


def _planned(artifact: Path, source: str, output: Path, settings: BulkSettings) -> list[Part]:
    """The parts, which an output folder remembers: a later run must be the same one."""
    files = files_of(source)
    said = {
        "artifact": sha256_of(artifact / MANIFEST),
        "files": {str(file): [file.stat().st_size, file.stat().st_mtime_ns] for file in files},
        "settings": _lasting(settings),
    }
    plan = output / PLAN
    if plan.is_file():
        known = read_object(plan)
        other = next((name for name, value in said.items() if known.get(name) != value), None)
        if other is not None:
            raise RunnerError(f"{output} holds a run with another {other}; choose another folder, or remove this one")
        return [Part(**part) for part in known["parts"]]
    if output.is_dir() and any(output.iterdir()):
        raise RunnerError(f"{output} is not empty, and holds no run that could go on; choose another folder")
    _log.info("count the rows of %s file(s)", len(files))
    parts = [part for number, file in enumerate(files) for part in _parts(file, number, len(files), settings)]
    output.mkdir(parents=True, exist_ok=True)
    write_text(plan, json.dumps({**said, "parts": [asdict(part) for part in parts]}, indent=1))
    return parts


def _lasting(settings: BulkSettings) -> dict[str, Any]:
    """The settings that answers depend on."""
    passing = {"address", "workers", "threads", "batch_size"}
    found: dict[str, Any] = json.loads(json.dumps(asdict(settings)))
    return {name: value for name, value in found.items() if name not in passing}


def _parts(file: Path, number: int, files: int, settings: BulkSettings) -> Iterator[Part]:
    rows = count_rows(file, settings.text)
    first = read_rows(file, settings.text, 0, 1)
    columns = text_columns(first[0], settings.text, str(file)) if first else ()
    prefix = f"{number:0{len(str(files - 1))}d}-" if files > 1 else ""
    for index, start in enumerate(range(0, rows, settings.rows_per_file)):
        count = min(settings.rows_per_file, rows - start)
        yield Part(str(file), start, count, f"{prefix}{file.stem}-{index:05d}.parquet", columns)


def _run(artifact: Path, output: Path, parts: Sequence[Part], workers: int, settings: BulkSettings) -> list[str]:
    """Have the parts answered; what was wrong with those that were not."""
    data = require("ray.data", extra="serve")
    data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    answers = data.from_items([asdict(part) for part in parts], override_num_blocks=len(parts)).map(
        _Worker, fn_constructor_args=(artifact.resolve(), output.resolve(), settings), num_cpus=settings.threads,
        compute=data.ActorPoolStrategy(size=workers),
    )  # fmt: skip
    failed, rows, start = list[str](), 0, time.perf_counter()
    for done, answer in enumerate(answers.iter_rows(), 1):
        rows += answer["rows"]
        if answer["error"]:
            failed.append(answer["error"])
        rate = rows / (time.perf_counter() - start)
        _log.info("%s of %s files, %s rows, %.0f rows/s", done, len(parts), rows, rate)
    return failed


class _Worker:
    """A process that holds the model and answers parts, one after the other."""

    def __init__(self, artifact: Path, output: Path, settings: BulkSettings) -> None:
        def opened(found: Artifact) -> Predictor:
            return Predictor(found).open(settings.device, threads=settings.threads)

        self._predictor = opened_with(artifact, opened)
        self._output, self._settings = output, settings

    def __call__(self, row: Mapping[str, Any]) -> dict[str, Any]:
        part = Part(**row)
        try:
            self._write(part, self._answered(part))
        except AdaKronError as error:
            return {"rows": 0, "error": str(error)}
        return {"rows": part.count, "error": ""}

    def _answered(self, part: Part) -> list[dict[str, Any]]:
        rows = read_rows(Path(part.file), self._settings.text, part.start, part.count)
        if len(rows) != part.count:
            raise DataError(f"{part.file}: it was changed while it was read")
        found = list[dict[str, Any]]()
        for start in range(0, len(rows), _CHUNK):
            found += self._answers(part, rows[start : start + _CHUNK], part.start + start)
        return found

    def _answers(self, part: Part, rows: Sequence[Mapping[str, Any]], start: int) -> list[dict[str, Any]]:
        place = f"{part.file}, row "
        texts = [_text_of(row, part.columns, f"{place}{number}") for number, row in enumerate(rows, start + 1)]
        column = self._settings.adapter_column
        adapter: Any = self._settings.adapter
        if column is not None:
            adapter = [_cell(row, column, f"{place}{number}") for number, row in enumerate(rows, start + 1)]
        try:
            questions = self._predictor.check(texts, self._settings.options, adapter)
            answers = self._predictor.answer(questions, batch_size=self._settings.batch_size)
        except AdaKronError as error:
            raise DataError(f"{place}{start + 1} to {start + len(rows)}: {error}") from error
        cut = set(answers.cut)
        return [
            {**row, RESULT: result, CUT: index in cut}
            for index, (row, result) in enumerate(zip(rows, answers.results, strict=True))
        ]

    def _write(self, part: Part, rows: Sequence[Mapping[str, Any]]) -> None:
        arrow, parquet = require("pyarrow", extra="serve"), require("pyarrow.parquet", extra="serve")
        names = list(dict.fromkeys(name for row in rows for name in row))
        try:
            table = arrow.table({name: [row.get(name) for row in rows] for name in names})
        except arrow.ArrowException as error:
            raise DataError(f"{part.file}: a column holds values of several kinds ({error})") from error
        final = self._output / part.output
        staged = final.with_name(f".{final.name}.partial")
        parquet.write_table(table, staged)
        staged.replace(final)


def text_columns(row: Mapping[str, Any], settings: TextSettings, file: str) -> tuple[str, ...]:
    """The column of text, and of second texts where there is one; as `read_texts` finds them.

    Raises:
        DataError: No column can be told to be the text, or a column has the name of an answer.
    """
    taken = next((name for name in (RESULT, CUT) if name in row), None)
    if taken is not None:
        raise DataError(f"{file} has a column {taken!r}, as which answers are written; rename it")
    by_lower = {name.lower(): name for name in row}
    known = [by_lower[word] for word in TEXT_NAMES if word in by_lower] or [
        name for name, value in row.items() if isinstance(value, str)
    ]
    text = settings.text_column or (known[0] if known else None)
    if text is None or (settings.text_column is None and len(known) > 1 and known[0].lower() not in TEXT_NAMES):
        raise DataError(f"{file}: cannot tell which column holds the text among {first_few(row)}; pass --text-column")
    pair = settings.pair_column or ("context" if text == "question" and "context" in row else None)
    return (text,) if pair is None else (text, pair)


def _text_of(row: Mapping[str, Any], columns: Sequence[str], place: str) -> Any:
    cells = tuple(_cell(row, column, place) for column in columns)
    return cells[0] if len(cells) == 1 else cells


def _cell(row: Mapping[str, Any], column: str, place: str) -> str:
    if not isinstance(row.get(column), str):
        what = f"has no column {column!r}" if column not in row else f"{column!r} is no text but {row[column]!r:.60}"
        raise DataError(f"{place}: {what}")
    return str(row[column])

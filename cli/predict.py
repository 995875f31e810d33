"""`adakron-export predict`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from adakron_export.data.settings import TextSettings
from adakron_export.errors import AdaKronError
from adakron_export.reporting.terminal import one_line, printable
from adakron_export.runtimes.table import RUNTIMES
from adakron_export.serving.settings import BulkSettings
from adakron_export.subjects.subject import Subject

from . import options
from .console import echo

_SHOWN_NUMBERS = 6
_OF_RAY = ("address", "workers", "threads", "rows_per_file")
_OF_TABLES = ("text_column", "pair_column", "header", "delimiter")


@click.command()
@click.argument("artifact")
@click.option("--text", "--question", "texts", multiple=True, help="A text, or a question; repeatable.")
@click.option("--pair", "--context", "pairs", multiple=True, help="Its second text, or its context; repeatable.")
@click.option("--image", "images", metavar="FILE", multiple=True, help="An image; repeatable.")
@click.option(
    "--input",
    "input_file",
    metavar="FILE",
    help="Text, CSV, TSV, JSON or Parquet; - reads lines. Of images: a path a line. With --ray a file, a folder or a "
    "pattern of CSV, TSV, JSON lines and Parquet.",
)
@options.of(TextSettings, *_OF_TABLES)
@click.option(
    "-o", "--output", type=click.Path(), help="File to write JSON lines to, instead of printing; with --ray a folder."
)
@click.option("--batch-size", default=16, show_default=True, help="Largest number of texts that run together.")
@click.option("--top-k", type=int, metavar="N", help="Number of classes or tokens to give.")
@click.option("--max-new-tokens", type=int, metavar="N", help="Number of tokens to write, in text generation.")
@click.option("--num-beams", type=int, metavar="N", help="Number of continuations to follow, in text generation.")
@click.option("--adapter", metavar="NAME", help="Adapter of a bank that answers.")
@click.option("--adapter-column", metavar="NAME", help="Column of --input that names the adapter of each text.")
@options.of(Subject, "skip_damaged")
@click.option("--ray", is_flag=True, help="Answer files that do not fit into memory, on many processes or machines.")
@options.of(BulkSettings, *_OF_RAY)
@click.option("--device", type=click.Choice([*RUNTIMES]), default="cpu", show_default=True, help="Device to run on.")
@options.signed
@options.as_json
def predict(
    artifact: str, texts: tuple[str, ...], pairs: tuple[str, ...], images: tuple[str, ...], input_file: str | None,
    output: str | None, *, as_json: bool, adapter_column: str | None, ray: bool, **settings: Any,
) -> None:  # fmt: skip
    """Run ARTIFACT on texts, or on images.

    A question is answered from its context: --question "Who was it?" --context "It was Anna."
    """
    from adakron_export.artifacts.artifact import check_artifact
    from adakron_export.files.staging import write_text

    check_artifact(artifact)
    tables = options.take(TextSettings, settings, *_OF_TABLES)
    of_ray = {name: value for name in _OF_RAY if (value := settings.pop(name)) is not None}
    if ray:
        _check_ray(input_file, output, texts or pairs or images or as_json or settings.pop("skip_damaged"))
        _with_ray(artifact, str(input_file), str(output), adapter_column, tables, {**settings, **of_ray})
        return
    _check_alone(of_ray, output)
    said = [*_said(texts, pairs), *map(Path, images)]
    inputs, settings["adapter"] = _inputs(said, input_file, tables, adapter_column, settings["adapter"])
    from adakron_export import predict as run

    settings["skip_damaged"] = bool(settings["skip_damaged"])
    if not (output or as_json) and _writes(artifact):
        shown = _Shown(inputs)
        run(artifact, inputs, **settings, on_text=shown)
        shown.close()
        return
    results = run(artifact, inputs, **settings)
    rows = [
        {"image": str(given), "result": result} if isinstance(given, Path) else {"text": given, "result": result}
        for given, result in zip(inputs, results, strict=True)
    ]
    if output:
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        write_text(Path(output), lines)
        echo(f"wrote {len(rows)} results to {output}")
    elif as_json:
        options.print_json(rows)
    else:
        for row in rows:
            given = row.get("image") or row["text"]
            echo(one_line(given if isinstance(given, str) else " | ".join(given)))
            for line in _lines(row["result"]):
                echo(f"    {line}")


def _check_ray(input_file: str | None, output: str | None, other: Any) -> None:
    if other or input_file in (None, "-") or output is None:
        raise AdaKronError("--ray reads the files of --input and writes into the folder --output, and nothing else")


def _check_alone(of_ray: dict[str, Any], output: str | None) -> None:
    from adakron_export.files.staging import check_writable

    if of_ray:
        raise AdaKronError(f"--{next(iter(of_ray)).replace('_', '-')} is for --ray")
    if output is not None:
        if Path(output).is_dir():
            raise AdaKronError(f"{output} is a folder; --output names a file, or with --ray a folder")
        check_writable(Path(output))


def _with_ray(
    artifact: str, source: str, output: str, adapter_column: str | None, tables: TextSettings, settings: dict[str, Any]
) -> None:  # fmt: skip
    from adakron_export import predict_files
    from adakron_export.serving.settings import PredictOptions

    asked = PredictOptions(**{name: settings.pop(name) for name in ("top_k", "max_new_tokens", "num_beams")})
    bulk = BulkSettings(text=tables, options=asked, adapter_column=adapter_column, **settings)
    result = predict_files(artifact, source, output, settings=bulk)
    echo(f"wrote {result.rows} rows in {result.files} files to {output} in {result.seconds:.1f} s")
    if result.failed:
        raise AdaKronError(f"{len(result.failed)} output files were not written; the first: {result.failed[0]}")


def _writes(artifact: str) -> bool:
    """Whether text can be shown as it is written; whoever runs the artifact checks its files."""
    from adakron_export.artifacts.artifact import open_artifact

    return open_artifact(artifact, wait=False).manifest.task == "text-generation-with-past"


class _Shown:
    """Shows each text, and what is written after it as it comes."""

    def __init__(self, texts: list[Any]) -> None:
        self._texts = texts
        self._shown = -1

    def __call__(self, index: int, piece: str) -> None:
        if index != self._shown:
            self.close()
            click.echo(printable(str(self._texts[index])), nl=False)
            self._shown = index
        click.echo(printable(piece), nl=False)

    def close(self) -> None:
        """End the line."""
        if self._shown >= 0:
            click.echo()


def _inputs(
    said: list[Any], input_file: str | None, tables: TextSettings, column: str | None, adapter: str | None
) -> tuple[list[Any], Any]:
    """What is run, and the adapter of all or of each."""
    from adakron_export.data.text_input import read_texts, read_texts_with

    if column is not None and (said or input_file is None or adapter is not None):
        raise AdaKronError("--adapter-column names the adapters of --input, beside no --adapter and no other text")
    if input_file is None:
        if tables != TextSettings():
            raise AdaKronError("columns and cells are those of --input, and there is none")
        return said, adapter
    source: Any = sys.stdin.buffer if input_file == "-" else Path(input_file)
    if column is not None:
        return read_texts_with(source, tables, column)
    return [*said, *read_texts(source, tables)], adapter


def _said(texts: tuple[str, ...], pairs: tuple[str, ...]) -> list[Any]:
    if pairs and len(pairs) != len(texts):
        raise AdaKronError(f"there are {len(texts)} texts and {len(pairs)} second ones; give one for each")
    return list(zip(texts, pairs, strict=True)) if pairs else list(texts)


def _lines(result: Any) -> list[str]:
    """An answer as people read it."""
    if isinstance(result, list) and result and isinstance(result[0], float):
        numbers = ", ".join(f"{number:.4f}" for number in result[:_SHOWN_NUMBERS])
        return [f"[{numbers}{', ...' if len(result) > _SHOWN_NUMBERS else ''}] ({len(result)} numbers)"]
    if isinstance(result, list):
        return [line for each in result for line in _lines(each)] or ["nothing found"]
    if "generated_text" in result:
        return [result["generated_text"]]
    name = next(result[key] for key in ("label", "entity_group", "token_str", "answer") if key in result)
    where = f"  {result['word']!r} ({result['start']}-{result['end']})" if "word" in result else ""
    return [f"{one_line(str(name))}  {result['score']:.3f}{where}"]

"""`adakron-export predict`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from adakron_export.errors import AdaKronError
from adakron_export.reporting.terminal import one_line

from . import options
from .console import echo

_SHOWN_NUMBERS = 6


@click.command()
@click.argument("artifact")
@click.option("--text", "--question", "texts", multiple=True, help="A text, or a question; repeatable.")
@click.option("--pair", "--context", "pairs", multiple=True, help="Its second text, or its context; repeatable.")
@click.option("--image", "images", metavar="FILE", multiple=True, help="An image; repeatable.")
@click.option(
    "--input",
    "input_file",
    metavar="FILE",
    help="Text, CSV, TSV, JSON or Parquet; - reads lines. Of images: a path a line.",
)
@click.option("--text-column", metavar="NAME", help="Of a table; guessed by default.")
@click.option("--pair-column", metavar="NAME", help="Of a second text or context.")
@click.option("--header/--no-header", default=None, help="Whether a table's first line names its columns.")
@click.option("--delimiter", metavar="TEXT", help="Between the cells of a table.")
@click.option("-o", "--output", type=click.Path(dir_okay=False), help="Write JSON lines there instead of printing.")
@click.option("--batch-size", default=16, show_default=True, help="The most texts that run together.")
@click.option("--top-k", type=int, metavar="N", help="Classes or tokens to give.")
@click.option("--max-new-tokens", type=int, metavar="N", help="To write, in text generation.")
@options.device
@options.signed
@options.as_json
def predict(
    artifact: str, texts: tuple[str, ...], pairs: tuple[str, ...], images: tuple[str, ...], input_file: str | None,
    output: str | None, *, as_json: bool, text_column: str | None, pair_column: str | None, header: bool | None,
    delimiter: str | None, **settings: Any,
) -> None:  # fmt: skip
    """Run ARTIFACT on texts, or on images.

    A question is answered from its context: --question "Who was it?" --context "It was Anna."
    """
    from adakron_export.artifact import check_artifact
    from adakron_export.staging import check_writable, write_text

    check_artifact(artifact)
    if output:
        check_writable(Path(output))
    inputs = [*_said(texts, pairs), *map(Path, images)]
    if input_file is not None:
        from adakron_export.text_input import read_texts

        source = sys.stdin.buffer if input_file == "-" else Path(input_file)
        inputs += read_texts(source, text_column=text_column, pair_column=pair_column, header=header,
                             delimiter=delimiter)  # fmt: skip
    from adakron_export import predict as run

    results = run(artifact, inputs, progress=options.stage_printer(), **settings)
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

"""`adakron-export predict`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from adakron_export.errors import AdaKronError

from . import options


@click.command()
@click.argument("artifact")
@click.option("--text", multiple=True, help="A text; may be given several times.")
@click.option("--input", "input_file", type=click.Path(exists=True, dir_okay=False), help="A file, one text a line.")
@click.option("-o", "--output", type=click.Path(dir_okay=False), help="Write JSON lines there instead of printing.")
@options.device
@options.as_json
def predict(
    artifact: str, text: tuple[str, ...], input_file: str | None, output: str | None, device: str, as_json: bool
) -> None:
    """Run ARTIFACT on texts."""
    from adakron_export import predict as run

    texts = [*text, *(_lines(Path(input_file)) if input_file else [])]
    results = run(artifact, texts, device=device, progress=options.stage_printer())
    rows = [{"text": line, "result": result} for line, result in zip(texts, results, strict=True)]
    if output:
        lines = "".join(json.dumps(row, default=str, ensure_ascii=False) + "\n" for row in rows)
        Path(output).write_text(lines, encoding="utf-8")
        click.echo(f"wrote {len(rows)} results to {output}")
    elif as_json:
        options.print_json(rows)
    else:
        for row in rows:
            click.echo(f"{row['text']}\n    {_line(row['result'])}")


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise AdaKronError(f"{path}: not UTF-8 text (byte {error.start}); convert it first") from error


def _line(result: Any) -> str:
    if isinstance(result, dict) and "label" in result:
        return f"{result['label']}  {result['score']:.3f}"
    text = json.dumps(result, default=str, ensure_ascii=False)
    return text if len(text) <= 300 else text[:297] + "..."

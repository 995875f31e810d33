"""`adakron-export onnx`."""

from __future__ import annotations

import sys
from typing import Any

import click

from adakron_export.data.settings import TextSettings
from adakron_export.graph.dtypes import DTYPE_SYNONYMS, DTYPES
from adakron_export.subjects.subject import Subject
from adakron_export.validation.limits import Limits
from adakron_export.verbs.settings import ExportSettings

from . import options
from .console import echo

_OF_CHECKPOINT = ("backbone", "task")


@click.command()
@click.argument("checkpoint")
@click.option("-o", "--output", required=True, metavar="DIR", help="Folder to write the artifact to.")
@options.of(Subject, *_OF_CHECKPOINT)
@options.target
@click.option("--dtype", type=options.Named([*DTYPES], DTYPE_SYNONYMS), default="fp32", show_default=True,
              help="Precision that the graph computes in.")  # fmt: skip
@options.of(ExportSettings)
@click.option("--data", metavar="DATA", help="Labelled text, to find int8 or fp8 scales on and to measure --max-drop.")
@options.of(TextSettings)
@options.of(Limits)
@options.overwrite
@options.push_to_hub
@options.private
@options.as_json
def onnx(
    output: str, *, checkpoint: str, as_json: bool, push_to_hub: str | None, private: bool, **settings: Any
) -> None:
    """Export CHECKPOINT to ONNX and prove it equal.

    CHECKPOINT is a PEFT folder, its hub id, or a file of the reference implementation. The artifact is put in
    place in one step, and only if its outputs are those of eager PyTorch.
    """
    options.check_push(push_to_hub, private=private)
    from adakron_export import export_onnx

    subject = options.take(Subject, settings, *_OF_CHECKPOINT, path=checkpoint)
    limits, text = options.take(Limits, settings), options.take_text(settings)
    made = options.take(ExportSettings, settings, text=text)
    result = export_onnx(subject, output, limits=limits, settings=made, **settings)
    if as_json:
        parity = result.parity.to_json() if result.parity else None
        attempts = [row.to_json() for row in result.attempts]
        options.print_json(
            {"written": result.written, "folder": str(result.folder), "parity": parity, "attempts": attempts}
        )
    else:
        _print(result)
    if result.written:
        options.push(result.folder, push_to_hub, private=private)
    if (result.parity and not result.parity.passed) or (result.attempts and not result.attempts[-1].held):
        sys.exit(1)


def _print(result: Any) -> None:
    from .parity import print_parity

    for row in result.attempts:
        outcome = "held" if row.held else "not good enough"
        echo(f"{row.label:<34}{row.metric} {row.candidate:.4f} (eager {row.reference:.4f}), "
                   f"{row.flips} of {row.examples} changed, {options.size(row.size_bytes)}: {outcome}")  # fmt: skip
    if result.parity is not None:
        print_parity(result.parity)
    if not result.written:
        echo(f"{result.folder} was not written; --force writes it all the same, and --atol and "
                   "--max-drop set other limits")  # fmt: skip
        return
    from adakron_export.artifacts.listing import files_of

    echo(f"wrote {result.folder}")
    for name in files_of(result.folder):
        echo(f"  {name:<28}{options.size((result.folder / name).stat().st_size):>10}")
    if result.parity is None:
        echo("not validated")
    echo(f"next: adakron-export inspect {result.folder}")

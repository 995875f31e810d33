"""`adakron-export onnx`."""

from __future__ import annotations

import sys
from typing import Any

import click

from adakron_export.artifact import LAYOUTS, TARGETS

from . import options
from .console import echo


@click.command()
@click.argument("checkpoint")
@click.option("-o", "--output", required=True, metavar="DIR", help="The artifact's folder.")
@options.backbone
@click.option("--target", type=click.Choice(TARGETS), default="portable", show_default=True, help="What runs it.")
@click.option("--dtype", type=options.DTYPE, default="fp32", show_default=True, help="What it computes in.")
@click.option("--opset", type=int, metavar="N",
              help="Of the standard operators, 18 to 23.  [default: 20; int4: 21; ort-cpu: 23]")  # fmt: skip
@click.option("--data", metavar="DATA", help="Text to calibrate int8 or fp8 on (tensorrt, openvino).")
@click.option("--max-accuracy-drop", type=float, metavar="POINTS",
              help="On --data, of 100: fall back from int8 or int4 as needed.")  # fmt: skip
@options.task
@options.atol
@click.option("--no-validate", is_flag=True, help="Do not compare with eager PyTorch.")
@click.option("--layout", type=click.Choice(LAYOUTS), default="flat", show_default=True,
              help="Of the folder: who looks for the model where.")  # fmt: skip
@click.option("--force", is_flag=True, help="Write the artifact even if a check fails.")
@options.overwrite
@options.push_to_hub
@options.private
@options.as_json
def onnx(
    output: str, *, checkpoint: str, as_json: bool, no_validate: bool, push_to_hub: str | None, private: bool,
    **settings: Any,
) -> None:  # fmt: skip
    """Export CHECKPOINT to ONNX and prove it equal.

    CHECKPOINT is a PEFT folder, its hub id, or a file of the reference implementation. The artifact is put in
    place in one step, and only if its outputs are those of eager PyTorch.
    """
    options.check_push(push_to_hub, private=private)
    from adakron_export import export_onnx

    result = export_onnx(checkpoint, output, validate=not no_validate, progress=options.stage_printer(), **settings)
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
                   "--max-accuracy-drop set other limits")  # fmt: skip
        return
    from adakron_export.artifact import files_of

    echo(f"wrote {result.folder}")
    for name in files_of(result.folder):
        echo(f"  {name:<28}{options.size((result.folder / name).stat().st_size):>10}")
    if result.parity is None:
        echo("not validated")
    echo(f"next: adakron-export inspect {result.folder}")

"""`adakron-export convert`."""

from __future__ import annotations

from typing import Any

import click

from adakron_export.subjects.subject import Subject

from . import options
from .console import echo


@click.command()
@click.argument("checkpoint")
@options.of(Subject, "backbone")
@click.option("-o", "--output", required=True, metavar="DIR", help="PEFT folder to write.")
@options.of(Subject, "task")
@options.overwrite
@options.as_json
def convert(checkpoint: str, output: str, *, as_json: bool, **settings: Any) -> None:
    """Turn a checkpoint of another implementation into a PEFT folder.

    CHECKPOINT is a file of the AdaKron reference implementation (pytorch_model_expert_soup.bin, model.500.pt), a
    folder with the former, or a folder as AdapterHub's save_adapter writes it.
    """
    from adakron_export import convert as convert_checkpoint

    folder = convert_checkpoint(checkpoint, output, **settings)
    if as_json:
        options.print_json({"folder": str(folder)})
    else:
        echo(f"wrote {folder}")
        echo(f"next: adakron-export onnx {folder} -o ARTIFACT")

"""`adakron-export triton`."""

from __future__ import annotations

from typing import Any

import click

from adakron_export.serving.settings import TritonSettings

from . import options
from .console import echo


@click.command()
@click.argument("artifact")
@click.option("-o", "--output", required=True, metavar="REPOSITORY", help="Folder of the model repository.")
@click.option("--name", help="Name of the model.  [default: the folder's]")
@click.option(
    "--backend", type=click.Choice(["onnxruntime", "python", "tensorrt"]),
    help="What runs it.  [default: onnxruntime; of an engine: tensorrt]",
)  # fmt: skip
@options.of(TritonSettings)
@options.overwrite
@options.signed
def triton(artifact: str, *, output: str, overwrite: bool, **settings: Any) -> None:
    """Write a model repository for Triton.

    ARTIFACT may be an engine of TensorRT too. Backend python takes text and answers like `predict`. The others take
    tensors, which two more models make of text.
    """
    from adakron_export.verbs.triton import triton as write

    given = options.take(TritonSettings, settings)
    models = write(artifact, output, overwrite=overwrite, settings=given, **settings)
    echo(f"wrote {', '.join(models)} to {output}")
    echo(f"next: tritonserver --model-repository={output}")

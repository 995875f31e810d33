"""`adakron-export tensorrt`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import click

from adakron_export.artifacts.shapes import EngineShapes
from adakron_export.engines.settings import EngineOptions
from adakron_export.graph.dtypes import DTYPE_SYNONYMS, DTYPES
from adakron_export.machine.flavors import FLAVORS
from adakron_export.subjects.subject import Subject

from . import options
from .console import echo

_OF_CHECKPOINT = ("backbone", "task")


@click.command()
@click.argument("source", metavar="ARTIFACT_OR_CHECKPOINT")
@click.option("-o", "--output", required=True, metavar="DIR", help="Folder to write the engine to.")
@options.of(Subject, *_OF_CHECKPOINT)
@click.option("--flavor", type=click.Choice(["auto", *FLAVORS]), default="auto", show_default=True,
              help="Builder to use; rtx needs no GPU.")  # fmt: skip
@click.option("--dtype", type=options.Named([*DTYPES], DTYPE_SYNONYMS),
              help="Precision to export a checkpoint in.  [default: the artifact's, or fp16]")  # fmt: skip
@click.option("--data", metavar="DATA", help="Text to calibrate a checkpoint's int8 or fp8 on.")
@options.of(EngineShapes)
@options.of(EngineOptions)
@options.overwrite
@options.as_json
@options.signed
def tensorrt(source: str, output: str, *, as_json: bool, **settings: Any) -> None:
    """Build a TensorRT engine.

    From an artifact, whose precision it has, or from a checkpoint, which is exported and validated first.
    """
    from adakron_export import export_engine

    subject = options.take(Subject, settings, *_OF_CHECKPOINT, path=source)
    shapes, built = options.take(EngineShapes, settings), options.take(EngineOptions, settings)
    result = export_engine(subject, output, shapes=shapes, options=built, **settings)
    manifest = result.folder.manifest
    if as_json:
        options.print_json({"folder": output, "engine_bytes": result.engine_bytes, **asdict(manifest)})
        return
    echo(f"wrote {output}: {manifest.flavor} {manifest.version}, {manifest.dtype}, {manifest.layers} layers, "
               f"{options.size(result.engine_bytes)}, built in {manifest.build_seconds:.1f} s")  # fmt: skip
    for profile in manifest.profiles:
        echo(f"profile: {profile[0]} to {profile[2]}, tuned for {profile[1]}")
    echo(f"the same without this package: {manifest.command}")

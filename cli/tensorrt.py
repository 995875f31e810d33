"""`adakron-export tensorrt`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from adakron_export.quantities import parse_shape, parse_shapes

from . import options
from .console import echo

_shape = options.read_by(parse_shape)


def _profiles(_context: click.Context, _option: click.Parameter, texts: tuple[str, ...]) -> list[Any]:
    return [options.read_by(parse_shapes)(_context, _option, text) for text in texts]


@click.command()
@click.argument("source", metavar="ARTIFACT_OR_CHECKPOINT")
@click.option("-o", "--output", required=True, metavar="DIR", help="The engine's folder.")
@options.backbone
@options.task
@click.option(
    "--flavor",
    type=click.Choice(["auto", "tensorrt", "rtx"]),
    default="auto",
    show_default=True,
    help="rtx needs no GPU to build.",
)
@click.option("--dtype", type=options.DTYPE, help="Of a checkpoint's export.  [default: artifact's, or fp16]")
@click.option("--data", metavar="DATA", help="Text to calibrate a checkpoint's int8 or fp8 on.")
@click.option("--min-shape", metavar="BxT", callback=_shape, help="Smallest texts and tokens.  [default: 1x1]")
@click.option("--opt-shape", metavar="BxT", callback=_shape, help="What it is tuned for.  [default: 8x128]")
@click.option("--max-shape", metavar="BxT", callback=_shape, help="Largest.  [default: 32x512, or the model's end]")
@click.option("--profile", "profiles", multiple=True, metavar="MIN,OPT,MAX", callback=_profiles,
              help="Instead of these three; repeatable.")  # fmt: skip
@click.option("--compute-capability", metavar="LIST", help="Such as 8.6,8.9,12.0; rtx only.")
@click.option("--timing-cache", type=click.Path(path_type=Path), metavar="FILE", help="Read and written; not rtx.")
@click.option("--workspace", "workspace_mb", type=int, metavar="MB", help="What a kernel may use beside its tensors.")
@click.option("--version-compatible", is_flag=True, help="Later versions can load it; not rtx.")
@click.option("--hardware-compatible", is_flag=True, help="Other GPUs from Ampere on can load it; not rtx.")
@click.option("--strip-weights", is_flag=True, help="Leave the weights out; needs a GPU.")
@click.option("--refittable", is_flag=True, help="Weights can be changed; needs a GPU.")
@options.overwrite
@options.as_json
@options.signed
def tensorrt(
    source: str, output: str, *, as_json: bool, backbone: str | None, task: str | None, flavor: str,
    dtype: str | None, data: str | None, min_shape: Any, opt_shape: Any, max_shape: Any, profiles: list[Any],
    compute_capability: str | None, overwrite: bool, **build: Any,
) -> None:  # fmt: skip
    """Build a TensorRT engine.

    From an artifact, whose precision it has, or from a checkpoint, which is exported and validated first.
    """
    from adakron_export.engine_export import export_engine
    from adakron_export.engines.builder import EngineOptions

    capabilities = tuple(part.strip() for part in compute_capability.split(",")) if compute_capability else ()
    result = export_engine(
        source, output, backbone=backbone, task=task, flavor=flavor, dtype=dtype, data=data, min_shape=min_shape,
        opt_shape=opt_shape, max_shape=max_shape, profiles=profiles,
        options=EngineOptions(compute_capability=capabilities, **build), overwrite=overwrite,
        progress=options.stage_printer(),
    )  # fmt: skip
    manifest = result.folder.manifest
    if as_json:
        options.print_json({"folder": output, "engine_bytes": result.engine_bytes, **asdict(manifest)})
        return
    echo(f"wrote {output}: {manifest.flavor} {manifest.version}, {manifest.dtype}, {manifest.layers} layers, "
               f"{options.size(result.engine_bytes)}, built in {manifest.build_seconds:.1f} s")  # fmt: skip
    for profile in manifest.profiles:
        echo(f"profile: {profile[0]} to {profile[2]}, tuned for {profile[1]}")
    echo(f"the same without this package: {manifest.command}")

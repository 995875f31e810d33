"""`adakron-export validate`."""

from __future__ import annotations

import sys
from typing import Any

import click

from . import options


def _limits(_context: click.Context, _option: click.Parameter, pairs: tuple[str, ...]) -> dict[str, float]:
    limits = {}
    for pair in pairs:
        name, _, value = pair.partition("=")
        try:
            limits[name] = float(value)
        except ValueError as error:
            raise click.BadParameter(f"{pair!r} is not of the form NAME=NUMBER") from error
    return limits


@click.command()
@click.argument("artifact")
@click.option("--against", required=True, metavar="PATH", help="What it was exported from, or another artifact.")
@options.backbone
@options.device
@click.option(
    "--against-device", type=options.DEVICE, default="cpu", show_default=True, help="Where the other side runs."
)
@click.option(
    "--reference",
    type=click.Choice(["fp32", "fp64"]),
    default="fp32",
    show_default=True,
    help="Of the checkpoint in PyTorch.",
)
@options.atol
@click.option("--rtol", type=float, metavar="X", help="Added to it, as a share of the largest value.")
@click.option("--tolerance", multiple=True, metavar="NAME=X", callback=_limits, help="cosine, top1 or kl; repeatable.")
@click.option("--seed", default=0, show_default=True, help="Of the batches.")
@click.option("--batch", metavar="NAME", help="Only the batch of this name.")
@click.option("--data", metavar="DATA", help="Text to run both on, as for train; labels are scored.")
@click.option("--limit", type=int, metavar="N", help="Draw so many of its rows.")
@click.option("--max-drop", default=0.005, show_default=True, help="Of the task's metric.")
@options.engine_code
@options.report
@options.signed
@options.as_json
def validate(*, artifact: str, report_to: str | None, as_json: bool, **settings: Any) -> None:
    """Compare ARTIFACT with its checkpoint.

    Where they differ, the first layer that is wrong is named, the first node in it, and the command that repeats it.
    """
    from adakron_export import validate as validate_artifact
    from adakron_export.extras import package_versions
    from adakron_export.machine import describe_machine

    options.check_report(report_to)
    report = validate_artifact(artifact, layers=report_to is not None, progress=options.stage_printer(), **settings)
    if as_json:
        options.print_json(report.to_json())
    else:
        from .parity import print_parity

        print_parity(report)
    options.write_report(
        report_to,
        artifact,
        machine=describe_machine(device=settings["device"], threads=None),
        versions=package_versions(),
        parity=report.to_json(),
    )
    if not report.passed:
        sys.exit(1)

"""`adakron-export validate`."""

from __future__ import annotations

import sys

import click

from . import options


@click.command()
@click.argument("artifact")
@click.option("--against", required=True, metavar="CHECKPOINT", help="What it was exported from.")
@options.backbone
@options.device
@options.atol
@click.option("--seed", default=0, show_default=True, help="Of the batches.")
@options.as_json
def validate(
    artifact: str, against: str, backbone: str | None, device: str, atol: float | None, seed: int, as_json: bool
) -> None:
    """Compare ARTIFACT with its checkpoint."""
    from adakron_export import validate as validate_artifact

    report = validate_artifact(
        artifact,
        against=against,
        backbone=backbone,
        device=device,
        atol=atol,
        seed=seed,
        progress=options.stage_printer(),
    )
    if as_json:
        options.print_json(report.to_json())
    else:
        from .parity import print_parity

        print_parity(report)
    if not report.passed:
        sys.exit(1)

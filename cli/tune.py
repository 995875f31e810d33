"""`adakron-export tune`."""

from __future__ import annotations

from typing import Any

import click

from adakron_export.quantities import parse_seconds, parse_shapes

from . import options
from .console import echo


@click.command()
@click.argument("artifact")
@click.option("--shapes", default="1x16,1x128,8x128", show_default=True, callback=options.read_by(parse_shapes),
              help="Texts and tokens to be fast at.")  # fmt: skip
@click.option("--budget", "budget_s", default="60s", show_default=True, callback=options.read_by(parse_seconds),
              help="For the rounds together.")  # fmt: skip
@options.signed
@options.as_json
def tune(artifact: str, *, as_json: bool, **settings: Any) -> None:
    """Find what makes ARTIFACT fastest on this CPU.

    Threads, forms of attention, optimisers and spinning of ONNX Runtime are measured, and what is faster for certain
    is written into the manifest, which `open_runner` and all commands heed on this machine.
    """
    from adakron_export import tune as find

    report = find(artifact, **settings)
    if as_json:
        options.print_json(report.to_json())
        return
    for row in report.tried:
        speedup = row.speedup
        interval = f"{speedup.estimate:.3f}x  ({speedup.low:.3f} to {speedup.high:.3f})"
        echo(f"{row.label:<28}{interval}{'  taken' if row.taken else ''}")
    if report.tuning is None:
        echo("nothing is faster for certain: the artifact stays as it was exported")
    else:
        echo(f"together {report.tuning.speedup:.3f}x faster; written into {report.folder}")

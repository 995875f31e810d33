"""`adakron-export bench`."""

from __future__ import annotations

import sys
from typing import Any

import click

from adakron_export.quantities import parse_seconds, parse_shapes, parse_share

from . import options


@click.command()
@click.argument("artifacts", nargs=-1, required=True, metavar="ARTIFACT...")
@click.option("--against", metavar="CHECKPOINT", help="Run in eager PyTorch; by default the first artifact.")
@options.backbone
@click.option("--shapes", metavar="LIST", callback=options.read_by(parse_shapes),
              help="Texts and tokens.  [default: the baseline's, or 1x16,1x128,8x128,32x128]")  # fmt: skip
@options.device
@click.option("--threads", type=int, metavar="N", help="Of one operator; the runtime's choice by default.")
@click.option("--budget", "budget_s", default="60s", show_default=True, callback=options.read_by(parse_seconds),
              help="For all of it, opening included.")  # fmt: skip
@click.option("--seed", default=0, show_default=True, help="Of the batches.")
@click.option("--clients", multiple=True, type=int, metavar="N", help="Also under load: N clients; repeatable.")
@click.option("--rate", "rates", multiple=True, type=float, metavar="R", help="Also at R requests/s; repeatable.")
@click.option("--save-baseline", "baseline_to_save", metavar="FILE", help="Write the ratios to hold later runs to.")
@click.option("--baseline", metavar="FILE", help="Exit with 1 where a ratio became worse.")
@click.option("--max-regression", default="5%", show_default=True, callback=options.read_by(parse_share),
              help="How much worse.")  # fmt: skip
@click.option("--strict", is_flag=True, help="Exit with 1 too where too few rounds were made to tell.")
@click.option("--other-machine", is_flag=True, help="Take a baseline of another machine too.")
@options.engine_code
@options.report
@options.signed
@options.as_json
def bench(artifacts: tuple[str, ...], *, report_to: str | None, as_json: bool, **settings: Any) -> None:
    """Time ARTIFACT against eager PyTorch.

    Each runtime has a process of its own, and they take turns. With a baseline, the ratio to eager PyTorch of the same
    run is compared, and a regression counts only if it is no chance and shows again.
    """
    from adakron_export.benchmarking import bench as measure

    options.check_report(report_to)
    report = measure(artifacts, progress=options.stage_printer(), **settings)
    if as_json:
        options.print_json(report.to_json())
    else:
        from .latency import print_latency

        print_latency(report)
    options.write_report(
        report_to, artifacts[0], machine=report.machine, versions=report.versions, latency=report.to_json()
    )
    if not report.passed:
        sys.exit(1)

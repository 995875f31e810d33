"""`adakron-export bench`."""

from __future__ import annotations

import re
import sys
from typing import Any

import click

from . import options


def _seconds(_context: click.Context, _option: click.Parameter, text: str) -> float:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|m|min)?", text.strip())
    if found is None:
        raise click.BadParameter(f"{text!r} is no duration; write 60s or 2m")
    return float(found[1]) * (1 if found[2] in (None, "s") else 60)


def _share(_context: click.Context, _option: click.Parameter, text: str) -> float:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(%?)", text.strip())
    if found is None:
        raise click.BadParameter(f"{text!r} is no share; write 5% or 0.05")
    return float(found[1]) / (100 if found[2] else 1)


@click.command()
@click.argument("artifacts", nargs=-1, required=True, metavar="ARTIFACT...")
@click.option("--against", metavar="CHECKPOINT", help="Run in eager PyTorch; by default the first artifact.")
@options.backbone
@click.option("--shapes", metavar="LIST", help="Texts and tokens.  [default: 1x16,1x128,8x128,32x128]")
@options.device
@click.option("--threads", type=int, metavar="N", help="Of one operator; the runtime's choice by default.")
@click.option("--budget", "budget_s", default="60s", show_default=True, callback=_seconds, help="For the rounds.")
@click.option("--seed", default=0, show_default=True, help="Of the batches.")
@click.option("--save-baseline", "baseline_to_save", metavar="FILE", help="Write the ratios to hold later runs to.")
@click.option("--baseline", metavar="FILE", help="Exit with 1 where a ratio became worse.")
@click.option("--max-regression", default="5%", show_default=True, callback=_share, help="How much worse.")
@click.option("--other-machine", is_flag=True, help="Take a baseline of another machine too.")
@options.as_json
def bench(artifacts: tuple[str, ...], *, shapes: str | None, as_json: bool, **settings: Any) -> None:
    """Time ARTIFACT against eager PyTorch.

    Each runtime has a process of its own, and they take turns. With a baseline, the ratio to eager PyTorch of the same
    run is compared, and a regression counts only if it is no chance and shows again.
    """
    from adakron_export.benchmarking import bench as measure
    from adakron_export.benchmarking import parse_shapes

    chosen = parse_shapes(shapes) if shapes else None
    report = measure(artifacts, shapes=chosen, progress=options.stage_printer(), **settings)
    if as_json:
        options.print_json(report.to_json())
    else:
        from .latency import print_latency

        print_latency(report)
    if not report.passed:
        sys.exit(1)

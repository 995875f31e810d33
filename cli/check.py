"""`adakron-export check`."""

from __future__ import annotations

import sys
from functools import partial

import click

from adakron_export.machine.flavors import FLAVORS

from . import options
from .console import echo

_SHOWN = 5


@click.command()
@click.argument("artifact")
@click.option(
    "--for",
    "flavor",
    type=click.Choice(["auto", *FLAVORS]),
    default="auto",
    show_default=True,
    help="Builder whose parser is asked.",
)
@options.as_json
def check(artifact: str, flavor: str, as_json: bool) -> None:
    """Say before a build whether TensorRT will take ARTIFACT.

    Its own parser is asked, which needs no GPU.
    """
    from adakron_export.artifacts.artifact import opened_with
    from adakron_export.engines.checking import check_support
    from adakron_export.machine.flavors import parser_named

    report = opened_with(artifact, partial(check_support, flavor=parser_named(flavor)))
    if as_json:
        options.print_json(report.to_json())
    else:
        echo(f"{'operator':<40}{'nodes':>7}  {report.parser}")
        for row in report.ops:
            verdict = click.style(f"refuses {row.refused}", fg="red", bold=True) if row.refused else "takes it"
            echo(f"{row.op:<40}{row.count:>7}  {verdict}")
        for problem in report.problems[:_SHOWN]:
            echo(f"problem: {problem}")
        if len(report.problems) > _SHOWN:
            echo(f"and {len(report.problems) - _SHOWN} more; --json lists all")
        verdict = click.style("passed", fg="green") if report.passed else click.style("FAILED", fg="red", bold=True)
        echo(f"check {verdict}")
    if not report.passed:
        sys.exit(1)

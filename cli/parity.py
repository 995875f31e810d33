"""Shows a parity report in a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from adakron_export.validation.parity import ParityReport


def print_parity(report: ParityReport) -> None:
    """One row per batch and output, then the verdict."""
    click.echo(f"{report.candidate} against {report.reference}")
    click.echo(f"{'batch':<32}{'shape':>9}  {'output':<19}{'max error':>9}{'limit':>9}")
    for row in report.rows:
        shape = "x".join(map(str, row.shape))
        mark = "" if row.passed else "  FAILED"
        click.echo(f"{row.batch:<32}{shape:>9}  {row.output:<19}{row.max_abs_error:>9.1e}{row.limit:>9.1e}{mark}")
    for note in report.notes:
        click.echo(f"note: {note}")
    if report.overflow:
        click.echo(f"overflow: {report.overflow}")
    verdict = click.style("passed", fg="green") if report.passed else click.style("FAILED", fg="red", bold=True)
    click.echo(f"parity {verdict}: largest absolute error {report.max_abs_error:.2e}")

"""Shows a parity report in a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from .console import echo

if TYPE_CHECKING:
    from adakron_export.validation.accuracy import AccuracyReport
    from adakron_export.validation.divergence import Divergence
    from adakron_export.validation.parity import OutputParity, ParityReport

_SHOWN_LAYERS = 8
_SHOWN_FLIPS = 5


def print_parity(report: ParityReport) -> None:
    """One row per batch and output, then the verdict."""
    echo(f"{report.candidate} against {report.reference}")
    echo(f"{'batch':<18}{'shape':>8}  {'output':<19}{'max error':>10}{'limit':>9}{'1-cos':>9}")
    for row in _shown(report.rows):
        _print_row(row)
    for note in report.notes:
        echo(f"note: {note}")
    _print_identity(report)
    if report.accuracy:
        _print_accuracy(report.accuracy)
    if report.overflow:
        echo(f"overflow: {report.overflow}")
    if report.divergence:
        _print_divergence(report.divergence)
    verdict = click.style("passed", fg="green") if report.passed else click.style("FAILED", fg="red", bold=True)
    error = f"largest absolute error {report.max_abs_error:.2e}" if report.rows else "nothing could be compared"
    echo(f"parity {verdict}: {error}")
    if report.repeat:
        echo(f"repeat: {report.repeat}")


def _print_identity(report: ParityReport) -> None:
    for mismatch in report.mismatches:
        echo(click.wrap_text(f"{click.style('not comparable', fg='red', bold=True)}: {mismatch}", 80,
                             subsequent_indent="  "))  # fmt: skip
    if report.weights:
        for change in report.weights.changed:
            echo(f"weights {click.style('FAILED', fg='red', bold=True)}: {change}")
        text = f"weights: {report.weights.describe()}"
        echo(click.wrap_text(text, 80, subsequent_indent="  "))


def _shown(rows: Sequence[OutputParity]) -> list[OutputParity]:
    """Every generated batch, and of the batches of text the worst one of each output."""
    text = [row for row in rows if row.batch.startswith("data-")]
    worst = {row.output: row for row in sorted(text, key=lambda row: row.max_abs_error)}
    return [row for row in rows if row not in text or row is worst[row.output]]


def _print_accuracy(found: AccuracyReport) -> None:
    echo(f"{found.source}: {found.examples} texts")
    for pair in found.metrics:
        name, values = f"  {pair.metric:<24}", f"{pair.reference:>9.4f}{pair.candidate:>9.4f}{pair.difference:>+9.4f}"
        echo(name + values)
    verdict = click.style("passed", fg="green") if found.passed else click.style("FAILED", fg="red", bold=True)
    echo(f"accuracy {verdict}: {found.verdict}, {len(found.flips)} answers changed")
    for flip in found.flips[:_SHOWN_FLIPS]:
        echo(f"  {flip.place}: {flip.reference} became {flip.candidate} (label {flip.label}): {flip.text[:40]}")
    if len(found.flips) > _SHOWN_FLIPS:
        echo(f"  and {len(found.flips) - _SHOWN_FLIPS} more; --json lists all")


def _print_row(row: OutputParity) -> None:
    shape, cosine = "x".join(map(str, row.shape)), row.value("cosine")
    limit = next((check.limit for check in row.checks if check.metric == "max_abs_error"), None)
    angle = "-" if cosine is None else f"{max(0.0, 1 - cosine):.1e}"
    error = f"{row.max_abs_error:>10.1e}{limit:>9.1e}{angle:>9}" if limit is not None else _same(row)
    echo(f"{row.batch:<18}{shape:>8}  {row.output:<19}{error}")
    if not row.passed:
        failed = [*row.failed, *([f"{row.non_finite} values are not finite"] if row.non_finite else [])]
        echo(f"  {click.style('FAILED', fg='red', bold=True)}: {', '.join(failed)}")


def _same(row: OutputParity) -> str:
    """Of tokens, how many are the same."""
    return f"{100 * row.checks[0].value:>9.1f} % the same"


def _print_divergence(found: Divergence) -> None:
    echo(f"divergence: {found.describe()}")
    first = next((index for index, layer in enumerate(found.layers) if layer.diverges), None)
    if first is None:
        return
    echo(f"  {'layer':<52}{'error':>10}{'limit':>10}")
    for layer in found.layers[max(0, first - 2) : first + _SHOWN_LAYERS]:
        name = layer.layer if len(layer.layer) <= 50 else "..." + layer.layer[-47:]
        mark = " <" if layer.layer == found.layer else ""
        echo(f"  {name:<52}{layer.error:>10.1e}{layer.limit:>10.1e}{mark}")

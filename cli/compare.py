"""`adakron-export compare`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from . import options
from .console import echo

if TYPE_CHECKING:
    from adakron_export.reporting.comparison import Change, Comparison


@click.command()
@click.argument("first")
@click.argument("second")
@options.as_json
def compare(first: str, second: str, as_json: bool) -> None:
    """Set two reports side by side.

    FIRST and SECOND are folders that --report wrote, or the report.json in them.
    """
    from adakron_export.reporting.comparison import compare_reports
    from adakron_export.reporting.report import read_report

    found = compare_reports(read_report(first), read_report(second))
    if as_json:
        options.print_json(found.to_json())
    else:
        _print(found)


def _print(found: Comparison) -> None:
    verdicts = ["passed" if held else "FAILED" for held in found.passed]
    echo(f"{'':<46}{'first':>11}{'second':>11}{'change':>11}")
    echo(f"{'verdict':<46}{verdicts[0]:>11}{verdicts[1]:>11}")
    for title, rows in (("largest error", found.parity), ("accuracy", found.accuracy), ("latency", found.latency)):
        _print_rows(title, rows)
    for name, first, second in found.environment:
        echo(f"not the same {name}: {first} and {second}")
    if found.latency and found.environment:
        echo("milliseconds compare only on one machine; speed-ups are ratios within a run")


def _print_rows(title: str, rows: Sequence[Change]) -> None:
    if rows:
        echo(title)
    for row in rows:
        change = "" if row.ratio is None else f"{100 * (row.ratio - 1):+.1f} %"
        first, second = _number(row.first, row.unit), _number(row.second, row.unit)
        echo(f"  {row.what[:43]:<44}{first:>11}{second:>11}{change:>11}".rstrip())


def _number(value: float | None, unit: str) -> str:
    if value is None:
        return "-"
    return f"{value:.2f} {unit}" if unit == "ms" else f"{value:.2f}x" if unit == "x" else f"{value:.4g}"

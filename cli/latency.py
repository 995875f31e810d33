"""Shows latencies in a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from adakron_export.quantities import timed_text

from .console import echo

if TYPE_CHECKING:
    from adakron_export.verbs.bench import BenchReport


def print_latency(report: BenchReport) -> None:
    """One row per shape and side, what was opened, then the verdict on the baseline."""
    machine = report.machine
    threads = f"{machine['threads']} threads" if machine["threads"] else "threads: the runtimes' choice"
    echo(f"{machine['processor']}, {machine['cores']} cores, {machine['device']}, {threads}")
    echo(f"{'shape':<12}{'side':<14}{'p50 ms':>8}{'p90':>8}{'p99':>8}{'texts/s':>9}  speed-up (95 %)")
    for row in report.latencies:
        ratio = (
            f"{_times(row.speedup.estimate)}x ({_times(row.speedup.low)}-{_times(row.speedup.high)})"
            if row.speedup
            else ""
        )
        numbers = f"{row.p50_ms:>8.2f}{row.p90_ms:>8.2f}{row.p99_ms:>8.2f}{row.texts_per_second:>9.1f}"
        written = f"{row.tokens_per_second:.1f} tokens/s  " if row.tokens_per_second is not None else ""
        echo(f"{timed_text(row.shape):<12}{row.side[:13]:<14}{numbers}  {written}{ratio}")
    _print_loads(report)
    for side in report.sides:
        memory = f", peak {side.peak_mb:.0f} MB" if side.peak_mb else ""
        echo(f"{side.label}: {side.runtime}, opened in {side.load_s:.2f} s{memory}")
    for found in report.regressions:
        slowdown = found.slowdown
        change, low, high = (100 * (value - 1) for value in (slowdown.estimate, slowdown.low, slowdown.high))
        open_ = click.style("  undecided", fg="yellow") if found.undecided else ""
        mark = open_ if found.passed else click.style("  FAILED", fg="red", bold=True)
        echo(f"{found.side} at {found.shape}: {change:+.1f} % ({low:+.1f} to {high:+.1f}) since the baseline{mark}")
        if found.undecided:
            echo(click.wrap_text(found.undecided, 80, initial_indent="  ", subsequent_indent="  "))
    if report.regressions:
        verdict = click.style("passed", fg="green") if report.passed else click.style("FAILED", fg="red", bold=True)
        echo(f"latency {verdict}: limit {100 * (report.regressions[0].limit - 1):+.1f} %")


def _times(value: float) -> str:
    return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f}"


def _print_loads(report: BenchReport) -> None:
    if not report.loads:
        return
    echo(f"{'under load':<24}{'side':<14}{'p50 ms':>8}{'p90':>8}{'p99':>8}  requests/s")
    for row in report.loads:
        load = f"{row.shape[0]}x{row.shape[1]}, {row.scenario}"
        lost = f" {row.unanswered / (row.requests + row.unanswered):4.0%} lost" if row.unanswered else ""
        numbers = f"{row.p50_ms:>8.2f}{row.p90_ms:>8.2f}{row.p99_ms:>8.2f}{row.requests_per_second:>8.1f}"
        echo(f"{load[:23]:<24}{row.side[:13]:<14}{numbers}{lost}")

"""`adakron-export bench`."""

from __future__ import annotations

import sys
from typing import Any

import click

from adakron_export.subjects.subject import Subject
from adakron_export.timing.settings import Guard, Timing

from . import options

_OF_ALL = ("device", "threads", "allow_engine_code")
_OF_BANKS = ("adapter", "skip_damaged")


@click.command()
@click.argument("artifacts", nargs=-1, required=True, metavar="ARTIFACT...")
@click.option(
    "--against", metavar="CHECKPOINT", help="Checkpoint to run in eager PyTorch.  [default: the first artifact]"
)
@options.of(Subject, "backbone", *_OF_ALL, *_OF_BANKS)
@options.of(Timing)
@options.of(Guard)
@options.report
@options.signed
@options.as_json
def bench(
    artifacts: tuple[str, ...], *, against: str | None, report_to: str | None, as_json: bool, **settings: Any
) -> None:
    """Time ARTIFACT against eager PyTorch.

    Each runtime has a process of its own, and they take turns. With a baseline, the ratio to eager PyTorch of the same
    run is compared, and a regression counts only if it is no chance and shows again.
    """
    from adakron_export.verbs.bench import bench as measure

    options.check_report(report_to)
    backbone = settings.pop("backbone")
    of_bank = {name: settings.pop(name) for name in _OF_BANKS}
    common = options.take(Subject, settings, *_OF_ALL, path="")
    report = measure(
        [common.on(path=path, **of_bank) for path in artifacts],
        against=None if against is None else common.on(path=against, backbone=backbone),
        timing=options.take(Timing, settings),
        guard=options.take(Guard, settings),
    )
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

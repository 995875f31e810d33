"""`adakron-export validate`."""

from __future__ import annotations

import sys
from typing import Any

import click

from adakron_export.data.settings import TextSettings
from adakron_export.subjects.subject import Subject
from adakron_export.validation.limits import Batches, Limits

from . import options

_OF_REFERENCE = ("device", "precision")


@click.command()
@click.argument("artifact")
@click.option("--against", required=True, metavar="PATH", help="The checkpoint, or another artifact.")
@options.of(Subject, "backbone", "device")
@options.of(Subject, *_OF_REFERENCE, prefix="against-")
@options.of(Limits)
@options.of(Batches)
@options.data
@options.of(TextSettings)
@options.of(Subject, "allow_engine_code")
@options.report
@options.signed
@options.as_json
def validate(*, artifact: str, against: str, report_to: str | None, as_json: bool, **settings: Any) -> None:
    """Compare ARTIFACT with its checkpoint.

    Where they differ, the first layer that is wrong is named, the first node in it, and the command that repeats it.
    """
    from adakron_export import validate as validate_artifact
    from adakron_export.extras import package_versions
    from adakron_export.machine.description import describe_machine
    from adakron_export.runtimes.table import runtime_on

    options.check_report(report_to)
    candidate, reference = _sides(artifact, against, settings)
    report = validate_artifact(
        candidate,
        against=reference,
        limits=options.take(Limits, settings),
        batches=options.take(Batches, settings),
        data=settings.pop("data"),
        text=options.take_text(settings),
        layers=report_to is not None,
    )
    if as_json:
        options.print_json(report.to_json())
    else:
        from .parity import print_parity

        print_parity(report)
    options.write_report(
        report_to,
        artifact,
        machine=describe_machine(device=candidate.device, on_gpu=runtime_on(candidate.device).on_gpu),
        versions=package_versions(),
        parity=report.to_json(),
    )
    if not report.passed:
        sys.exit(1)


def _sides(artifact: str, against: str, settings: dict[str, Any]) -> tuple[Subject, Subject]:
    """Both sides; the backbone is that of whichever is a checkpoint."""
    backbone, code = settings.pop("backbone"), bool(settings["allow_engine_code"])
    candidate = options.take(Subject, settings, "device", "allow_engine_code", path=artifact)
    reference = options.take(
        Subject, settings, *_OF_REFERENCE, prefix="against-", path=against, allow_engine_code=code
    )
    if backbone is None:
        return candidate, reference
    if not candidate.is_exported:
        candidate = candidate.on(backbone=backbone)
    return candidate, reference if reference.is_exported and not candidate.is_exported else reference.on(
        backbone=backbone
    )

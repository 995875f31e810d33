"""`adakron-export validate`."""

from __future__ import annotations

import sys
from typing import Any

import click

from adakron_export.data.settings import TextSettings
from adakron_export.subjects.subject import Subject
from adakron_export.validation.limits import Batches, Limits

from . import options
from .console import echo

_OF_REFERENCE = ("device", "precision")


@click.command()
@click.argument("artifact")
@click.option("--against", required=True, multiple=True, metavar="[NAME=]PATH",
              help="The checkpoint, or another artifact; of a bank one for each adapter.")  # fmt: skip
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
def validate(
    *, artifact: str, against: tuple[str, ...], report_to: str | None, as_json: bool, **settings: Any
) -> None:
    """Compare ARTIFACT with its checkpoint.

    Where they differ, the first layer that is wrong is named, the first node in it, and the command that repeats it.
    """
    from adakron_export import validate as validate_artifact
    from adakron_export.extras import package_versions
    from adakron_export.machine.description import describe_machine
    from adakron_export.runtimes.table import runtime_on

    options.check_report(report_to)
    bank = _is_bank(artifact)
    if not bank and len(against) > 1:
        raise click.UsageError(f"{artifact} is no bank, and is compared with one reference; give one --against")
    if bank and report_to is not None:
        raise click.UsageError("--report is of one model: use it with an artifact, or with --json for a bank")
    limits, batches = options.take(Limits, settings), options.take(Batches, settings)
    data, text = settings.pop("data"), options.take_text(settings)
    asked: dict[str, Any] = {"limits": limits, "batches": batches, "data": data, "text": text}
    if bank:
        _validate_bank(artifact, against, settings, asked, as_json=as_json)
        return
    candidate, reference = _sides(artifact, against[0], settings)
    report = validate_artifact(candidate, against=reference, layers=report_to is not None, **asked)
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


def _is_bank(artifact: str) -> bool:
    from pathlib import Path

    from adakron_export.subjects.opening import is_bank

    return is_bank(Path(artifact))


def _validate_bank(
    artifact: str, against: tuple[str, ...], settings: dict[str, Any], asked: dict[str, Any], *, as_json: bool
) -> None:
    from adakron_export import validate_bank

    from .parity import print_parity

    pairs = [tuple(word.split("=", 1)) for word in against]
    wrong = next((word for word, pair in zip(against, pairs, strict=True) if len(pair) < 2), None)
    if wrong is not None:
        raise click.UsageError(f"{artifact} is a bank; say which adapter {wrong!r} is: --against NAME={wrong}")
    backbone = settings.pop("backbone")
    bank = options.take(Subject, settings, "device", "allow_engine_code", path=artifact)
    common = options.take(Subject, settings, *_OF_REFERENCE, prefix="against-", path="", backbone=backbone)
    reports = validate_bank(bank, against={name: common.on(path=path) for name, path in pairs}, **asked)
    if as_json:
        options.print_json({name: report.to_json() for name, report in reports.items()})
    for name, report in reports.items() if not as_json else ():
        echo(f"adapter {name}:")
        print_parity(report)
    if not all(report.passed for report in reports.values()):
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

"""Banks: one graph, and many adapters that it takes as inputs."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from adakron_export.artifacts.adapters import (
    adapter_folder,
    check_name,
)
from adakron_export.artifacts.artifact import Artifact
from adakron_export.artifacts.listing import written_files
from adakron_export.artifacts.manifest import BASE, PARITY, Bank
from adakron_export.errors import ArtifactError, CheckpointError, ExportError, first_few
from adakron_export.files.places import check_there
from adakron_export.files.records import write_json
from adakron_export.files.staging import check_replaceable, check_writable, put_in_place, staged_folder
from adakron_export.graph.targets import GraphSpec, check_spec
from adakron_export.runtimes.bank import check_fits
from adakron_export.subjects.subject import Subject, as_subject
from adakron_export.validation.limits import Limits
from adakron_export.verbs.bank_folder import (
    bank_of,
    change_bank,
    finish,
    read_bank,
    with_adapters,
    with_member,
    write_adapters,
)
from adakron_export.verbs.bank_proof import prove
from adakron_export.verbs.making import BankRows, Making, check_places, check_runtimes
from adakron_export.verbs.members import layout_of, load_member, load_members
from adakron_export.verbs.settings import BankSettings, MakingSettings

if TYPE_CHECKING:
    from adakron_export.validation.parity import ParityReport

_log = logging.getLogger(__name__)
Adapters = Mapping[str, "str | Path | Subject"] | Sequence["str | Path | Subject"]


@dataclass(frozen=True, slots=True)
class BankResult:
    """What a change of a bank came to.

    Attributes:
        folder: Where the bank is.
        written: Whether it was written.
        parity: What the comparison of each new adapter said, by name; empty where it was left out.
        artifact: The bank, where it was written.
    """

    folder: Path
    written: bool
    parity: Mapping[str, ParityReport]
    artifact: Artifact | None

    @property
    def passed(self) -> bool:
        """Whether every new adapter is its eager model."""
        return all(report.passed for report in self.parity.values())


def create_bank(
    checkpoints: Adapters,
    output: str | Path,
    *,
    target: str = "portable",
    dtype: str = "fp32",
    data: str | Path | None = None,
    overwrite: bool = False,
    limits: Limits | None = None,
    settings: BankSettings | None = None,
) -> BankResult:
    """Export one graph for many adapters of a backbone, and prove each of them against its eager model.

    Args:
        checkpoints: Checkpoints by the names of their adapters, or a list of them, whose folders name them. The first
            is what programs get that know nothing of banks.
        output: The bank's folder.
        target: The runtime to export for, as for `export_onnx`.
        dtype: What the backbone computes in; adapters and heads stay in the floating dtype.
        data: Text to find fixed scales on, where target and dtype have such.
        overwrite: Replace an artifact that is there, in one step, at the end.
        limits: How far the bank may be off.
        settings: How the bank is made and written.

    Raises:
        CheckpointError: A checkpoint cannot be read, or does not belong with the others.
        BackboneError: The backbone cannot be loaded.
        ExportError: The model or an option cannot be exported.
        ArtifactError: A name cannot be an adapter's, or ``output`` is something that must not be replaced.
    """
    limits, settings, folder = limits or Limits(), settings or BankSettings(), Path(output)
    subjects = _named(checkpoints)
    spec = GraphSpec(target, dtype, settings.opset, settings.per_token).complete()
    data = None if data is None else str(data)
    check_spec(spec, calibrated=data is not None)
    if data is None and settings.text is not None:
        raise ExportError("text is about how data is read; pass --data (data=...) too")
    _check_limits(limits)
    check_places(subjects.values(), folder, overwrite=overwrite)
    check_runtimes(spec, runs=settings.validate or data is not None)
    members = load_members(subjects, data=data, text=settings.text, force=settings.force)
    ids = {member.name: index for index, member in enumerate(members)}
    bank = Bank(layout_of(members, spec), ids, settings.sealed)
    if bank.places is not None and bank.places < len(members):
        raise ArtifactError(f"sealed has {bank.places} places for {len(members)} adapters; give it more")
    first = next(member for member in members if member.name == bank.first)
    with ThreadPoolExecutor(1) as beside, staged_folder(folder) as staged:
        rows = BankRows(bank, first.stored(bank.layout).rows)
        artifact = Making(first.source, beside.submit(first.source.files), spec, bank=rows)(spec, staged)
        write_adapters(artifact, members)
        reports = prove(artifact, members, limits) if settings.validate else {}
        if not (settings.force or all(report.passed for report in reports.values())):
            return BankResult(folder, False, reports, None)
        if first.name in reports:
            write_json(staged / PARITY, reports[first.name].to_json())
        artifact = finish(artifact, folder)
        put_in_place(
            staged, folder, problem=partial(check_replaceable, folder, ours=written_files, overwrite=overwrite)
        )
    return BankResult(folder, True, reports, replace(artifact, folder=folder))


def add_to_bank(
    bank: str | Path,
    checkpoints: Adapters,
    *,
    overwrite: bool = False,
    limits: Limits | None = None,
    settings: MakingSettings | None = None,
) -> BankResult:
    """Add adapters to a bank; its graph stays as it is, and so do the outputs of the others.

    Args:
        bank: The bank's folder.
        checkpoints: Checkpoints by the names of their adapters, or a list of them, as for `create_bank`.
        overwrite: Replace adapters of the same names.
        limits: How far an adapter may be off.
        settings: Whether each is compared with its eager model, alone and in batches with the others, and whether one
            is added that differs or changes nothing.

    Raises:
        ArtifactError: There is such an adapter, or the bank is none, is damaged, or has no place left.
        CheckpointError: A checkpoint cannot be read, or does not fit the bank.
    """
    folder, subjects = Path(bank), _named(checkpoints)
    limits, settings = limits or Limits(), settings or MakingSettings()
    _check_limits(limits)
    if settings.opset is not None or settings.per_token or settings.text is not None:
        raise ExportError("opset, per_token and text are about the graph, which is made already; leave them out")
    known = read_bank(folder, partial(_checked_new, subjects=subjects, overwrite=overwrite))
    for subject in subjects.values():
        check_there(subject.path, CheckpointError)
    check_writable(folder)
    members = [
        load_member(name, replace(subject, task=subject.task or known.manifest.task), force=settings.force)
        for name, subject in subjects.items()
    ]
    reports: dict[str, ParityReport] = {}

    def change(staged: Artifact) -> Artifact | None:
        changed = _checked_new(staged, subjects, overwrite=overwrite)
        for member in members:
            check_fits(changed.manifest, member.record, str(member.source.found.path))
            changed = with_member(changed, member)
        if settings.validate:
            reports.update(prove(changed, members, limits))
        return changed if settings.force or all(report.passed for report in reports.values()) else None

    written = change_bank(folder, change)
    return BankResult(folder, written is not None, reports, written)


def remove_from_bank(bank: str | Path, name: str) -> BankResult:
    """Remove an adapter; the outputs of the others stay as they are.

    Args:
        bank: The bank's folder.
        name: The adapter.

    Raises:
        ArtifactError: There is no such adapter, or it is the one that programs get that know nothing of banks.
    """
    folder = Path(bank)

    def change(staged: Artifact) -> Artifact:
        known = bank_of(staged)
        if name not in known.adapters:
            raise ArtifactError(f"{folder} has no adapter {name!r:.80}; there are {first_few(known.adapters, 8)}")
        if name in (BASE, known.first):
            raise ArtifactError(
                f"{name} is what programs get that know nothing of banks, and part of the graph; make a bank without "
                "it: `adakron-export bank create`"
            )
        shutil.rmtree(adapter_folder(staged.folder, name))
        left = [each for each in known.adapters if each != name]
        return with_adapters(staged, left)

    return BankResult(folder, True, {}, change_bank(folder, change))


def _check_limits(limits: Limits) -> None:
    if limits.max_drop is not None:
        raise ExportError("max_drop is for one model and its text; validate each adapter of the bank with it")


def _named(checkpoints: Adapters) -> dict[str, Subject]:
    """Subjects by the names of their adapters.

    Raises:
        ArtifactError: There is none, a name cannot be an adapter's, or two are alike.
    """
    if isinstance(checkpoints, Mapping):
        pairs = [(name, as_subject(each)) for name, each in checkpoints.items()]
    else:
        subjects = [as_subject(each) for each in checkpoints]
        pairs = [(adapter_name(subject.path), subject) for subject in subjects]
    named: dict[str, Subject] = {}
    for name, subject in pairs:
        check_name(name)
        if name in named:
            raise ArtifactError(
                f"two adapters are called {name!r} ({named[name].path} and {subject.path}); name them: NAME=CHECKPOINT"
            )
        named[name] = subject
    if not named:
        raise ArtifactError("there is no adapter to take; give NAME=CHECKPOINT")
    return named


def adapter_name(path: str | Path) -> str:
    """What an adapter is called that nobody named: its folder, or the last part of its hub id."""
    found = Path(path)
    return (found.parent if found.is_file() else found).resolve().name if found.exists() else found.name


def _checked_new(artifact: Artifact, subjects: Mapping[str, Subject], *, overwrite: bool) -> Artifact:
    """The bank, if there is place for all and none has the name of one that must stay.

    Raises:
        ArtifactError: There is not, or one has.
    """
    known = bank_of(artifact)
    there = [name for name in subjects if name in known.adapters]
    if there and not overwrite:
        raise ArtifactError(
            f"{artifact.folder} has an adapter {there[0]!r} already; --overwrite (overwrite=True) replaces it"
        )
    if known.first in there:
        raise ArtifactError(
            f"{known.first} is what programs get that know nothing of banks, and part of the graph; make the bank "
            "anew: `adakron-export bank create --overwrite`"
        )
    needed = len({*known.adapters, *subjects})
    if known.places is not None and needed > known.places:
        raise ArtifactError(
            f"{artifact.folder} has {known.places} places, and {needed} adapters would be in it; remove one, or make "
            "the bank anew with a larger --sealed"
        )
    return artifact

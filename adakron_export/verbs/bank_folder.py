"""A bank's folder, changed in one step: its files stay, as links, but for those that are written anew."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from adakron_export.artifacts.adapters import write_adapter
from adakron_export.artifacts.artifact import Artifact, ReplacedError, opened_with, write_manifest
from adakron_export.artifacts.card import model_card
from adakron_export.artifacts.manifest import ADAPTER_FOLDER, CARD, MANIFEST, SIGNATURE, Bank
from adakron_export.artifacts.sealed import seal, write_row
from adakron_export.errors import ArtifactError
from adakron_export.files.staging import folder_lock, put_in_place, staged_folder
from adakron_export.verbs.members import Member

_log = logging.getLogger(__name__)
T = TypeVar("T")
_TRIES = 5  # to change a bank without holding off its other writers


def read_bank(folder: Path, make: Callable[[Artifact], T]) -> T:
    """What is made of a bank, while its files are hashed beside; where it is changed meanwhile, all is made again.

    Args:
        folder: Where it is.
        make: Reads what it needs.

    Raises:
        ArtifactError: The folder is no bank, or is damaged.
    """

    def made(artifact: Artifact) -> T:
        if artifact.manifest.bank is None:
            raise ArtifactError(
                f"{folder} is an artifact of one adapter; make a bank with `adakron-export bank create`"
            )
        return make(artifact)

    return opened_with(folder, made)


def bank_of(artifact: Artifact) -> Bank:
    """What is said of the adapters."""
    assert artifact.manifest.bank is not None
    return artifact.manifest.bank


def write_adapters(artifact: Artifact, members: Sequence[Member]) -> None:
    """Write the adapters of a bank that is being made."""
    known = bank_of(artifact)
    stored = {member.name: member.stored(known.layout) for member in members}
    for name, adapter in stored.items():
        write_adapter(artifact.folder / ADAPTER_FOLDER / name, adapter)
    if known.places is not None:
        seal(artifact, {name: adapter.rows for name, adapter in stored.items()})


def with_member(artifact: Artifact, member: Member) -> Artifact:
    """A staged bank with another adapter in it."""
    known, name = bank_of(artifact), member.name
    place = artifact.folder / ADAPTER_FOLDER / name
    stored = member.stored(known.layout)
    if place.exists():
        shutil.rmtree(place)
    write_adapter(place, stored)
    changed = with_adapters(artifact, [*known.adapters, *([] if name in known.adapters else [name])])
    if known.places is not None:
        write_row(changed, name, stored.rows)
    return changed


def with_adapters(artifact: Artifact, names: Sequence[str]) -> Artifact:
    """A staged bank that names other adapters: in a file of stacks, those that were there keep their places."""
    known = bank_of(artifact)
    if known.places is None:
        ids = {name: index for index, name in enumerate(names)}
    else:
        ids = {name: known.adapters[name] for name in names if name in known.adapters}
        free = iter(index for index in range(known.places) if index not in ids.values())
        ids |= {name: next(free) for name in names if name not in ids}
    return replace(artifact, manifest=replace(artifact.manifest, bank=replace(known, adapters=ids)))


def change_bank(folder: Path, change: Callable[[Artifact], Artifact | None]) -> Artifact | None:
    """Change a bank in one step; where another writer was faster, its change is taken in and all is done again.

    Args:
        folder: The bank.
        change: Makes the new bank in a staged copy, whose files are links to those that stay; ``None`` where nothing
            is to be written.
    """
    for _ in range(_TRIES):
        with contextlib.suppress(ReplacedError):
            return _changed(folder, change)
    with folder_lock(folder):  # the others wait for this one
        return _changed(folder, change, locked=True)


def _changed(folder: Path, change: Callable[[Artifact], Artifact | None], *, locked: bool = False) -> Artifact | None:
    with staged_folder(folder) as staged:
        before = read_bank(folder, partial(_copied, staged=staged))
        changed = change(replace(before, folder=staged))
        if changed is None:
            return None
        finished, signed = finish(changed, folder), (folder / SIGNATURE).is_file()
        put_in_place(staged, folder, problem=before.check_there, locked=locked)
    if signed:
        _log.warning("%s: its signature was of the bank before and is gone; sign it again", folder)
    return replace(finished, folder=folder)


def _copied(bank: Artifact, staged: Path) -> Artifact:
    """The bank, with its files in a staged folder, as links to the same ones; one that changes is written anew.

    Hidden files, which are no part of a bank, stay too. A signature does not: it is of the files before.
    """
    for left in staged.iterdir():  # by a try on a bank that was replaced meanwhile
        shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()
    for path in bank.folder.rglob("*"):
        place = staged / path.relative_to(bank.folder)
        if path.is_dir() and not path.is_symlink():
            place.mkdir(parents=True, exist_ok=True)
        elif path.parent != bank.folder or path.name not in (MANIFEST, SIGNATURE):
            place.parent.mkdir(parents=True, exist_ok=True)
            _link(path, place)
    return bank


def _link(file: Path, place: Path) -> None:
    try:
        os.link(file, place, follow_symlinks=False)
    except OSError:
        shutil.copy2(file, place, follow_symlinks=False)


def finish(artifact: Artifact, folder: Path) -> Artifact:
    """The card and the manifest of a staged bank."""
    card = artifact.folder / CARD
    card.unlink(missing_ok=True)  # a link to the one that stands
    card.write_text(model_card(artifact, folder.name), encoding="utf-8")
    return write_manifest(artifact.folder, artifact.manifest)

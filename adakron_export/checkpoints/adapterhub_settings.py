"""Reads the ``config`` part of AdapterHub's files: a setting is understood, known to change no answer, or refused."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from adakron_export.checkpoints.checkpoint import ADAPTER_CONFIG
from adakron_export.errors import CheckpointError, first_few
from adakron_export.files.records import record_of

T = TypeVar("T")


def settings_as(
    kind: type[T], path: Path, config: Mapping[str, Any], *, refused: Mapping[str, str], ignored: Collection[str]
) -> T:
    """The settings of a method, as a record.

    Args:
        kind: The record: a dataclass with AdapterHub's own names.
        path: The folder.
        config: The settings; one that is ``null`` has its default.
        refused: What settings that are not exported ask for, where they are on.
        ignored: Settings that change no answer.

    Raises:
        CheckpointError: A setting is not exported, not known, or impossible.
    """
    file, known = path / ADAPTER_CONFIG, {row.name for row in fields(kind)}  # type: ignore[arg-type]
    asked = next((name for name in refused if config.get(name) not in (None, False)), None)
    if asked is not None:
        raise CheckpointError(f"{file}: {asked} asks for {refused[asked]}, which is not exported from such a file")
    unknown = sorted(config.keys() - {*known, *ignored, *refused})
    if unknown:
        raise CheckpointError(f"{file}: {first_few(unknown)} is no setting that is known; a newer release saved it")
    given = {key: value for key, value in config.items() if key in known and value is not None}
    try:
        return record_of(given, kind)  # type: ignore[type-var]
    except ValueError as error:
        raise CheckpointError(f"{file}: not readable ({error})") from error

"""One adapter of a bank: a folder of its weights, and of what it is. Needs no torch.

adapter.safetensors   its row of each of the graph's stacks: what is computed with, padded to the widest adapter
adapter.json          what it is and belongs to: settings, labels, checkpoint, backbone, task
parity.json           what was compared when it was added, and the result
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np

from adakron_export.artifacts.listing import sha256_of
from adakron_export.artifacts.manifest import ADAPTER_FOLDER, ADAPTER_NAME, BASE, Bank, Positive, SourceFile
from adakron_export.errors import ArtifactError
from adakron_export.files.records import read_object, record_of, write_json
from adakron_export.graph.stacks import Array

ADAPTER_WEIGHTS = "adapter.safetensors"
ADAPTER_RECORD = "adapter.json"


@dataclass(frozen=True, slots=True)
class AdapterRecord:
    """What ``adapter.json`` holds.

    Attributes:
        task: What the model is for.
        settings: The adapter's configuration.
        labels: What its ``config.json`` says of labels.
        classes: How many logits are its own; ``None`` where all are.
        source: The checkpoint's file.
        backbone: The backbone's files.
        weights_sha256: The sha256 of ``adapter.safetensors``.
        versions: Versions of the packages that made it.
    """

    task: str
    settings: dict[str, Any]
    labels: dict[str, Any]
    classes: Positive | None
    source: SourceFile
    backbone: tuple[SourceFile, ...]
    weights_sha256: Annotated[str, msgspec.Meta(pattern="^([0-9a-f]{64})?$")] = ""
    versions: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class StoredAdapter:
    """An adapter of a bank: its record, and its row of each stack."""

    record: AdapterRecord
    rows: Mapping[str, Array]


def same_weights(one: Sequence[SourceFile], other: Sequence[SourceFile]) -> bool:
    """Whether two backbones have the same files of weights; labels may change their configuration."""
    first, second = (
        {file.name: file.sha256 for file in files if file.name != "config.json"} for files in (one, other)
    )
    return bool(first) and first == second


def check_name(name: str) -> str:
    """The name itself, where it can be an adapter's.

    Raises:
        ArtifactError: The name cannot be an adapter's.
    """
    if not ADAPTER_NAME.fullmatch(name):
        raise ArtifactError(
            f"{name!r:.80} cannot be the name of an adapter; it has letters, digits, dots, dashes and underscores, at "
            "most 64, and begins with a letter or digit"
        )
    return name


def write_adapter(folder: Path, adapter: StoredAdapter) -> None:
    """Write an adapter into a new folder.

    Args:
        folder: Where to; it is made.
        adapter: Its record, without a hash, and its rows.
    """
    from safetensors.numpy import save_file

    folder.mkdir(parents=True)
    save_file({name: np.ascontiguousarray(row) for name, row in adapter.rows.items()}, folder / ADAPTER_WEIGHTS)
    record = {**asdict(adapter.record), "weights_sha256": sha256_of(folder / ADAPTER_WEIGHTS)}
    write_json(folder / ADAPTER_RECORD, record)


def adapter_folder(folder: Path, name: str) -> Path:
    """Where an adapter of a bank is.

    Raises:
        ArtifactError: There is none of this name.
    """
    if name != BASE:
        check_name(name)
    place = folder / ADAPTER_FOLDER / name
    if not place.is_dir():
        raise ArtifactError(f"{folder} has no adapter {name!r}; `adakron-export bank list` shows those that it has")
    return place


def read_adapters(folder: Path, bank: Bank) -> Iterator[tuple[str, StoredAdapter]]:
    """The adapters of a bank whose files were, or will be, held against its manifest, one by one by their ids.

    Where the stacks are in a file, they are read without their weights.

    Args:
        folder: The bank's, or that of an engine of one.
        bank: What its manifest says.

    Raises:
        ArtifactError: One cannot be read.
    """
    for name in sorted(bank.adapters, key=lambda name: bank.adapters[name]):
        place = adapter_folder(folder, name)
        rows = _rows(place / ADAPTER_WEIGHTS) if bank.places is None else {}
        yield name, StoredAdapter(read_record(place), rows)


def read_record(folder: Path) -> AdapterRecord:
    """What an adapter says of itself.

    Raises:
        ArtifactError: The folder holds no adapter, or its record cannot be read.
    """
    path = folder / ADAPTER_RECORD
    if not path.is_file():
        raise ArtifactError(f"{folder} holds no {ADAPTER_RECORD}; give the folder of a bank's adapter")
    try:
        return record_of(read_object(path), AdapterRecord)
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path}: not readable ({error})") from error


def read_adapter(folder: Path) -> StoredAdapter:
    """An adapter with its weights.

    Raises:
        ArtifactError: The folder holds no adapter, or its weights are damaged.
    """
    record, path = read_record(folder), folder / ADAPTER_WEIGHTS
    if not path.is_file() or sha256_of(path) != record.weights_sha256:
        raise ArtifactError(f"{path}: missing, or changed since it was written; add the adapter again")
    return StoredAdapter(record, _rows(path))


def _rows(path: Path) -> dict[str, Array]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        rows: dict[str, Array] = load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{path}: not a readable safetensors file ({error})") from error
    broken = next((name for name, row in rows.items() if row.dtype.kind != "f" or not np.isfinite(row).all()), None)
    if broken is not None:
        raise ArtifactError(f"{path}: {broken} has values that are no numbers")
    return rows

"""What a bank holds: its adapters listed, or one of them for ONNX Runtime's own interface."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from adakron_export.artifacts.adapters import adapter_folder, read_adapter, read_record
from adakron_export.artifacts.artifact import Artifact
from adakron_export.artifacts.listing import files_of
from adakron_export.artifacts.manifest import PARITY, Bank
from adakron_export.errors import ArtifactError
from adakron_export.extras import require
from adakron_export.files.records import read_object
from adakron_export.files.staging import check_writable
from adakron_export.graph.stacks import Array
from adakron_export.verbs.bank_folder import bank_of, read_bank


@dataclass(frozen=True, slots=True)
class ListedAdapter:
    """One adapter of a bank.

    Attributes:
        name: Its name.
        id: What the graph's ``adapter_ids`` calls it.
        settings: Its configuration.
        labels: The names of its classes, in their order.
        size_bytes: Size of its files.
        stacked_bytes: What it takes in the graph's stacks, padded to the widest.
        max_abs_error: The largest difference from its eager model when it was added; ``None`` where not compared.
        source: The checkpoint's file, and its sha256.
    """

    name: str
    id: int
    settings: Mapping[str, Any]
    labels: tuple[str, ...]
    size_bytes: int
    stacked_bytes: int
    max_abs_error: float | None
    source: tuple[str, str]


def list_bank(bank: str | Path) -> list[ListedAdapter]:
    """The adapters of a bank, in the order of their ids.

    Args:
        bank: The bank's folder.

    Raises:
        ArtifactError: The folder is no bank, or is damaged.
    """
    return read_bank(Path(bank), _listed)


def _listed(artifact: Artifact) -> list[ListedAdapter]:
    bank = bank_of(artifact)
    return [_one_listed(artifact, bank, name) for name in sorted(bank.adapters, key=lambda name: bank.adapters[name])]


def export_adapter(bank: str | Path, name: str, output: str | Path, *, overwrite: bool = False) -> Path:
    """Write one adapter as ONNX Runtime's own ``.onnx_adapter``, for calls from any of its languages.

    Args:
        bank: The bank's folder.
        name: The adapter.
        output: The file to write.
        overwrite: Replace a file that is there.

    Raises:
        ArtifactError: There is no such adapter, the bank is sealed, or the file is there already.
    """
    ort = require("onnxruntime", extra="cpu' or 'adakron-export[gpu")
    folder, file = Path(bank), Path(output)
    rows = read_bank(folder, partial(_rows_of, name=name))
    if file.exists() and not overwrite:
        raise ArtifactError(f"{file} is there already; --overwrite (overwrite=True) replaces it")
    check_writable(file)
    values = {stack: ort.OrtValue.ortvalue_from_numpy(row[None]) for stack, row in rows.items()}
    adapter = ort.AdapterFormat()
    adapter.set_adapter_version(1)
    adapter.set_model_version(1)
    adapter.set_parameters(values)
    with tempfile.TemporaryDirectory(prefix=f".{file.name}.", dir=file.parent) as beside:
        adapter.export_adapter(str(Path(beside) / file.name))
        (Path(beside) / file.name).replace(file)
    return file


def _rows_of(artifact: Artifact, name: str) -> Mapping[str, Array]:
    if bank_of(artifact).places is not None:
        raise ArtifactError(f"{artifact.folder} is sealed: its graph takes adapter_ids and no adapter of a file")
    return read_adapter(adapter_folder(artifact.folder, name)).rows


def _one_listed(artifact: Artifact, bank: Bank, name: str) -> ListedAdapter:
    folder = adapter_folder(artifact.folder, name)
    record, parity = read_record(folder), folder / PARITY
    error = None
    if parity.is_file():
        try:
            error = float(read_object(parity)["max_abs_error"])
        except (OSError, ValueError, KeyError, TypeError) as wrong:
            raise ArtifactError(f"{parity}: not readable ({wrong})") from wrong
    labels = record.labels.get("id2label") or {}
    return ListedAdapter(
        name, bank.adapters[name], record.settings, tuple(map(str, labels.values())),
        sum((folder / file).stat().st_size for file in files_of(folder)), bank.layout.row_bytes, error,
        (record.source.name, record.source.sha256),
    )  # fmt: skip

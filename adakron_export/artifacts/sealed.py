"""Banks whose stacks are in a file of their own, for programs that cannot bind inputs: ``model.onnx_adapters``.

The file has a fixed number of places. An adapter is written into one of them, and the graph stays as it is: whoever
serves it opens it anew.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from math import prod
from pathlib import Path

import numpy as np
import onnx_ir as ir

from adakron_export.artifacts.artifact import Artifact
from adakron_export.artifacts.manifest import STACKS, Bank
from adakron_export.graph.layout import IDS, Stack
from adakron_export.graph.stacks import Array

_ALIGNED = 4096  # bytes; runtimes map the file into memory


def seal(artifact: Artifact, rows: Mapping[str, Mapping[str, Array]]) -> None:
    """Write the file of stacks.

    Args:
        artifact: A sealed bank that is being made.
        rows: The adapters' rows by stack, by name.
    """
    bank = _bank(artifact)
    offsets, size = _offsets(bank)
    with (artifact.folder / STACKS).open("wb") as stream:
        stream.truncate(size)
    memory = np.memmap(artifact.folder / STACKS, mode="r+", dtype=np.uint8)
    for name, own in rows.items():
        _write(memory, bank, offsets, bank.adapters[name], own)
    memory.flush()


def write_row(artifact: Artifact, name: str, rows: Mapping[str, Array]) -> None:
    """Write an adapter into its place, in a new file: whoever has mapped the old one keeps it.

    Args:
        artifact: A staged bank that names the adapter.
        name: The adapter.
        rows: Its rows by stack.
    """
    bank, file = _bank(artifact), artifact.folder / STACKS
    copy = file.with_name(f"{STACKS}.copy")  # in a staged folder, which is nobody else's
    shutil.copyfile(file, copy)
    copy.replace(file)
    memory = np.memmap(file, mode="r+", dtype=np.uint8)
    _write(memory, bank, _offsets(bank)[0], bank.adapters[name], rows)
    memory.flush()


def seal_graph(model: ir.Model, bank: Bank, folder: Path) -> None:
    """Make the stacks of a graph those of the file; `IDS` stays an input, which is the first adapter by default.

    Args:
        model: The graph of a bank.
        bank: What is said of it.
        folder: Where the file will be.
    """
    assert bank.places is not None
    graph, (offsets, _) = model.graph, _offsets(bank)
    for stack in bank.layout.stacks:
        value = next(value for value in graph.inputs if value.name == stack.name)
        graph.inputs.remove(value)
        assert value.dtype is not None
        value.shape = ir.Shape([bank.places, *stack.shape])
        value.const_value = ir.ExternalTensor(
            STACKS, offsets[stack.name], bank.places * _row_bytes(bank, stack), value.dtype, shape=value.shape,
            name=stack.name, base_dir=folder,
        )  # fmt: skip
        graph.initializers[stack.name] = value
    first = np.array([bank.first_id], np.int64)
    graph.initializers[IDS].const_value = ir.tensor(first, name=IDS)


def _write(memory: Array, bank: Bank, offsets: Mapping[str, int], place: int, rows: Mapping[str, Array]) -> None:
    for stack in bank.layout.stacks:
        size = _row_bytes(bank, stack)
        start = offsets[stack.name] + place * size
        memory[start : start + size] = np.ascontiguousarray(rows[stack.name]).reshape(-1).view(np.uint8)


def _offsets(bank: Bank) -> tuple[dict[str, int], int]:
    """Where each stack begins, and how large the file is."""
    assert bank.places is not None
    offsets, at = {}, 0
    for stack in bank.layout.stacks:
        offsets[stack.name] = at
        at += -(-bank.places * _row_bytes(bank, stack) // _ALIGNED) * _ALIGNED
    return offsets, at


def _row_bytes(bank: Bank, stack: Stack) -> int:
    return prod(stack.shape) * np.dtype(bank.layout.dtype).itemsize


def _bank(artifact: Artifact) -> Bank:
    assert artifact.manifest.bank is not None
    return artifact.manifest.bank

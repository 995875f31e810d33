"""A bank of adapters in any runtime: each row of a batch is answered by the adapter that its caller names."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import numpy as np

from adakron_export.artifacts.adapters import AdapterRecord, StoredAdapter, check_name, read_adapter, same_weights
from adakron_export.artifacts.engine import EngineManifest
from adakron_export.artifacts.manifest import BASE, Bank, Manifest
from adakron_export.errors import ArtifactError, RunnerError, first_few
from adakron_export.graph.layout import IDS, BankLayout
from adakron_export.graph.stacks import check_rows
from adakron_export.runtimes.base import Array, Batch, HoldingRunner

_SHOWN = 8  # names in a message
_ROOM = 16  # adapters that fit beside those of the folder; memory that nothing was written to is not there yet


class BankRunner:
    """A bank that was opened.

    Threads may run, add and remove at once: a call under way sees the adapters that were there when it began.

    Args:
        inner: The runtime with the bank's graph.
        adapters: The adapters with their names, in the order of their ids; of a bank whose stacks are in a file,
            those of the file.

    Raises:
        ArtifactError: An adapter does not fit the graph.
    """

    def __init__(self, inner: HoldingRunner, adapters: Iterable[tuple[str, StoredAdapter]]) -> None:
        manifest = inner.manifest
        assert isinstance(manifest, Manifest | EngineManifest)
        bank = manifest.bank
        assert bank is not None
        self._inner = inner
        self._layout = bank.layout
        self._turn = threading.Lock()  # one change at a time
        self.manifest = manifest
        self.name = inner.name
        self.pad_id = inner.pad_id
        self.on_gpu = inner.on_gpu
        self.input_names, self.output_names = inner.input_names, inner.output_names
        self._stacks = _Stacks(bank.layout, len(bank.adapters)) if bank.places is None else None
        slots = {name: self._slot(bank, name, adapter) for name, adapter in adapters}
        self._now = self._adapters(slots)

    @property
    def names(self) -> tuple[str, ...]:
        """The adapters, in the order in which they came."""
        return tuple(self._now.slots)

    def run(self, batch: Batch, adapters: str | Sequence[str] | None = None) -> dict[str, Any]:
        """Run one batch.

        Args:
            batch: Every input by name, as for `Runner.run`.
            adapters: One name for all texts, or one for each of them.

        Returns:
            Every output by name, float32. Logits have the labels of their row's own adapter; where those differ in
            number, they are a list with an array for each text.

        Raises:
            RunnerError: The batch does not fit, or there is no such adapter.
        """
        now, feed = self._now, self._inner.feed(batch)
        chosen = self._chosen(now, adapters, len(next(iter(feed.values()))))
        feed[IDS] = _ids(chosen)
        return self._cut(self._inner.run_feed(feed, now.held), chosen)

    def run_cached(self, batch: Batch, adapters: str | Sequence[str] | None = None) -> dict[str, Array]:
        """Run one batch of a model with a cache; see `run` and `CachedRunner`."""
        now, feed = self._now, self._inner.feed(batch)
        chosen = self._chosen(now, adapters, len(next(iter(feed.values()))))
        feed[IDS] = _ids(chosen)
        names = [info.name for info in self.manifest.outputs]
        return self._cut(self._inner.run_feed(feed, now.held, names), chosen)

    def held(self, adapters: str | Sequence[str]) -> tuple[HoldingRunner, dict[str, Any], object]:
        """The runtime, what it holds of an adapter now, or of one for each text, and what keeps their places."""
        now = self._now
        chosen = self._chosen(now, adapters, 1 if isinstance(adapters, str) else len(adapters))
        return self._inner, {**now.held, **self._inner.hold({IDS: _ids(chosen)})}, chosen

    def prepare(self, batch: Batch, adapters: str | Sequence[str] | None = None) -> Callable[[], float]:
        """A timed run with the adapters that are there now; see `Runner.prepare` and `run`."""
        now, feed = self._now, self._inner.feed(batch)
        feed[IDS] = _ids(self._chosen(now, adapters, len(next(iter(feed.values())))))
        timed = self._inner.prepare_feed(feed, now.held)

        def once(_kept: _Adapters = now) -> float:  # its places are not written to meanwhile
            return timed()

        return once

    def adapter(self, name: str) -> OneAdapter:
        """The model of one adapter, as a runner of its own.

        Raises:
            RunnerError: There is no such adapter.
        """
        self._chosen(self._now, name, 1)
        return OneAdapter(self, name)

    def add(self, name: str, path: str | Path) -> None:
        """Take another adapter, which the next call may name.

        Args:
            name: Its name, which no other one has.
            path: The folder of an adapter, such as ``BANK/adapters/NAME``; a checkpoint becomes one by
                `add_to_bank`.

        Raises:
            RunnerError: There is an adapter of this name, or the bank's stacks are in a file.
            ArtifactError: The adapter is damaged, or is one of another model.
        """
        check_name(name)
        adapter = read_adapter(Path(path))
        check_fits(self.manifest, adapter.record, str(path))
        _check_rows(self._layout, adapter, str(path))
        with self._turn:
            if name in self._now.slots:
                raise RunnerError(f"there is an adapter {name!r} already; remove it before, or choose another name")
            if self._stacks is None:
                raise RunnerError(
                    "the bank is sealed: its stacks are in a file; add the adapter with `adakron-export bank add` and "
                    "open the bank anew"
                )
            slot = self._stacks.put(adapter.rows, adapter.record.classes)
            self._now = self._adapters({**self._now.slots, name: slot})

    def remove(self, name: str) -> None:
        """Forget an adapter; calls under way still have it.

        Raises:
            RunnerError: There is no such adapter, or it is the last one.
        """
        with self._turn:
            self._chosen(self._now, name, 1)
            left = {each: slot for each, slot in self._now.slots.items() if each != name}
            if not left:
                raise RunnerError(f"{name!r} is the bank's last adapter")
            self._now = _Adapters(left, self._now.held)

    def _slot(self, bank: Bank, name: str, adapter: StoredAdapter) -> _Slot:
        if self._stacks is None:
            return _Slot(bank.adapters[name], adapter.record.classes)
        _check_rows(bank.layout, adapter, name)
        return self._stacks.put(adapter.rows, adapter.record.classes)

    def _adapters(self, slots: Mapping[str, _Slot]) -> _Adapters:
        """Adapters, and the stacks as far as these reach into them."""
        if self._stacks is None:
            return _Adapters(slots, {})
        return _Adapters(slots, self._inner.hold(self._stacks.views(1 + max(slot.index for slot in slots.values()))))

    def _chosen(self, now: _Adapters, adapters: str | Sequence[str] | None, texts: int) -> list[_Slot]:
        """The adapter of each text, or the one of all."""
        if adapters is None:
            raise RunnerError(f"this is a bank of {len(now.slots)} adapters; say which answers: {_some(now.slots)}")
        names = [adapters] if isinstance(adapters, str) else list(adapters)
        if not isinstance(adapters, str) and len(names) != texts:
            raise RunnerError(
                f"there are {len(names)} adapters for a batch of {texts}; name one for all texts, or one for each"
            )
        for name in names:
            if name not in now.slots:
                known = sorted(now.slots, key=lambda each: -SequenceMatcher(None, str(name), each).ratio())
                raise RunnerError(f"there is no adapter {name!r:.80}; there are {_some(known)}")
        if len(set(names)) == 1:
            names = names[:1]
        return [now.slots[name] for name in names]

    def _cut(self, outputs: dict[str, Array], chosen: Sequence[_Slot]) -> dict[str, Any]:
        """The outputs without the logits of labels that a row's adapter does not have."""
        found: dict[str, Any] = dict(outputs)
        classes = [slot.classes for slot in chosen]
        if not any(classes):
            return found
        logits = outputs["logits"]
        if len(set(classes)) == 1:
            found["logits"] = logits[..., : classes[0]]
        else:
            found["logits"] = [row[..., :count] for row, count in zip(logits, classes, strict=True)]
        return found


class OneAdapter:
    """One adapter of an opened bank, as a runner of its own.

    Args:
        bank: The bank.
        name: The adapter.
    """

    def __init__(self, bank: BankRunner, name: str) -> None:
        self.bank = bank
        self.adapter = name
        self.manifest, self.pad_id, self.on_gpu = bank.manifest, bank.pad_id, bank.on_gpu
        self.input_names, self.output_names = bank.input_names, bank.output_names
        self.name = f"{bank.name}, adapter {name}"

    def run(self, batch: Batch) -> dict[str, Array]:
        """Run one batch; see `Runner.run`."""
        return self.bank.run(batch, self.adapter)

    def run_cached(self, batch: Batch) -> dict[str, Array]:
        """Run one batch; see `CachedRunner`."""
        return self.bank.run_cached(batch, self.adapter)

    def prepare(self, batch: Batch) -> Callable[[], float]:
        """A timed run; see `Runner.prepare`."""
        return self.bank.prepare(batch, self.adapter)


def check_fits(manifest: Manifest | EngineManifest, record: AdapterRecord, where: str) -> None:
    """Raise unless an adapter belongs to a bank's backbone and task.

    Raises:
        ArtifactError: The adapter belongs to another one.
    """
    if record.task != manifest.task:
        raise ArtifactError(f"{where} is for {record.task}, the bank for {manifest.task}")
    if not same_weights(record.backbone, manifest.backbone_source):
        raise ArtifactError(f"{where} belongs to another backbone than the bank, whose is {manifest.backbone}")


class _Slot:
    """A place in the stacks, which is free again when nothing refers to it."""

    def __init__(self, index: int, classes: int | None) -> None:
        self.index = index
        self.classes = classes


@dataclass(frozen=True, slots=True)
class _Adapters:
    """What there is at one moment; a call keeps it for as long as it runs."""

    slots: Mapping[str, _Slot]
    held: Mapping[str, Any]


class _Stacks:
    """The memory of the stacks: rows are written once, before anybody is told of them."""

    def __init__(self, layout: BankLayout, adapters: int) -> None:
        self._layout = layout
        self._adapters = adapters
        self._used = 0
        self._free: list[int] = []
        self._memory: dict[str, Array] = {}  # there is none before an adapter was found to be of these shapes

    def put(self, rows: Mapping[str, Array], classes: int | None) -> _Slot:
        """Write an adapter's rows where nobody reads."""
        self._memory = self._memory or self._room(2 * self._adapters + _ROOM)
        index = self._free.pop() if self._free else self._next()
        for name, row in rows.items():
            self._memory[name][index] = row
        slot = _Slot(index, classes)
        weakref.finalize(slot, self._free.append, index)
        return slot

    def views(self, count: int) -> dict[str, Array]:
        """The first so many adapters of each stack."""
        return {name: memory[:count] for name, memory in self._memory.items()}

    def _next(self) -> int:
        if self._used == len(next(iter(self._memory.values()))):
            wider = self._room(2 * self._used)
            for name, memory in self._memory.items():
                wider[name][: self._used] = memory
            self._memory = wider
        self._used += 1
        return self._used - 1

    def _room(self, adapters: int) -> dict[str, Array]:
        dtype = np.dtype(self._layout.dtype)
        return {stack.name: np.empty((adapters, *stack.shape), dtype) for stack in self._layout.stacks}


def _check_rows(layout: BankLayout, adapter: StoredAdapter, where: str) -> None:
    try:
        check_rows(layout, adapter.rows)
    except ArtifactError as error:
        raise ArtifactError(f"{where} does not fit the bank: {error}") from error


def _ids(chosen: Sequence[_Slot]) -> Array:
    return np.array([slot.index for slot in chosen], dtype=np.int64)


def _some(names: Mapping[str, Any] | Sequence[str]) -> str:
    own = [name for name in names if name != BASE]
    return first_few([*own, *(name for name in names if name == BASE)], _SHOWN)

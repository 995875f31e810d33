"""Holds the weights in a graph against the parameters of the model that it was made from.

Outputs cannot show every weight: a batch meets some tokens of a vocabulary, and a row of an embedding table that no
batch reads may hold anything. So each parameter is looked for among the graph's constants, whatever they are called:
as it is, transposed, merged with others, or rounded to 8 or 4 bits within what rounding may change.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from adakron_export.errors import first_few
from adakron_export.runtimes.base import Array
from adakron_export.validation.stored import Stored, stored_constants

_SAMPLE = 64  # numbers that are looked at before all are


@dataclass(frozen=True, slots=True)
class WeightsReport:
    """What was found of a model's parameters in a graph.

    Attributes:
        found: How many numbers of the parameters are in the graph.
        parameters: How many there are.
        changed: What is there with other numbers, in words.
        absent: Parameters that are not there under any shape: unused ones, and vectors that were folded into others.
        unexplained: Matrices of the graph that are no parameter of the model.
    """

    found: int
    parameters: int
    changed: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()
    unexplained: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether no parameter has other numbers."""
        return not self.changed

    def describe(self) -> str:
        """In a sentence or two."""
        share = f"{self.found:,} of {self.parameters:,} numbers of the checkpoint are in the graph as they should be"
        rest = [f"not traced: {first_few(self.absent, 4)}"] if self.absent else []
        rest += [f"of no parameter: {first_few(self.unexplained, 4)}"] if self.unexplained else []
        return "; ".join([share, *rest])

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "passed": self.passed,
            "found": self.found,
            "parameters": self.parameters,
            "changed": list(self.changed),
            "absent": list(self.absent),
            "unexplained": list(self.unexplained),
        }


@dataclass(slots=True)
class _Match:
    """The constants of a graph, and which of them are explained."""

    stored: list[Stored]
    changed: list[str] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)


def compare_weights(model: ir.Model, parameters: Mapping[str, Array]) -> WeightsReport:
    """Look for every parameter of a folded model in a graph.

    Args:
        model: The graph, its functions inlined or not.
        parameters: The parameters by name, float32, of any shape; a tied one once.
    """
    wanted = {name: array for name, array in parameters.items() if array.size > 1}
    match = _Match([each for each in stored_constants(model) if each.values.size > 1])
    left = _unmatched(match, wanted)
    for name, array in left.items():
        _explain_missing(match, name, array)
    return WeightsReport(
        found=sum(array.size for name, array in wanted.items() if name not in left),
        parameters=sum(array.size for array in wanted.values()),
        changed=tuple(match.changed),
        absent=tuple(match.absent),
        unexplained=tuple(
            f"{each.name} {list(each.values.shape)}"
            for each in match.stored
            if not each.explained and sum(size > 1 for size in each.values.shape) > 1
        ),
    )


def _unmatched(match: _Match, wanted: Mapping[str, Array]) -> dict[str, Array]:
    """The parameters that no constant has; of the constants, those of some parameter are marked."""
    left = dict(wanted)
    for find in (_by_name, _by_numbers, _within_merged):
        left = {name: array for name, array in left.items() if not find(match, name, array)}
    # Two that are alike may be in the graph once, and one that is read in two ways twice.
    left = {name: array for name, array in left.items() if not any(_agrees(each, array) for each in match.stored)}
    for stored in match.stored:
        if not stored.explained and not any(_same_shape(stored, array) for array in left.values()):
            stored.explained = any(
                _agrees(stored, array) or _held_at(stored, array) is not None for array in wanted.values()
            )
    return left


def _views(stored: Stored, array: Array) -> Iterator[tuple[Array, Array | None]]:
    """The constant in the shape of a parameter: as it is, and transposed."""
    if stored.values.shape == array.shape:
        yield stored.values, stored.step
    if array.ndim == 2 and stored.values.shape == array.shape[::-1]:
        yield stored.values.T, None if stored.step is None else stored.step.T


def _same_shape(stored: Stored, array: Array) -> bool:
    return next(_views(stored, array), None) is not None


def _agrees(stored: Stored, array: Array) -> bool:
    return any(_is_like(stored, values, step, array) for values, step in _views(stored, array))


def _is_like(stored: Stored, values: Array, step: Array | None, array: Array) -> bool:
    stride = max(1, array.size // _SAMPLE)
    sample = array.reshape(-1)[::stride]
    found = np.asarray(values).reshape(-1)[::stride] if values.flags.c_contiguous else values.flat[::stride]
    steps = None if step is None else (step.reshape(-1)[::stride] if step.flags.c_contiguous else step.flat[::stride])
    return _within(stored, found, steps, sample) and _within(stored, values, step, array)


def _within(stored: Stored, values: Array, step: Array | None, array: Array) -> bool:
    return not _wrong(stored, values, step, array).any()


def _wrong(stored: Stored, values: Array, step: Array | None, array: Array) -> Array:
    """Where numbers are off by more than their rounding."""
    one = Stored(stored.name, values, stored.dtype, step)
    with np.errstate(invalid="ignore", over="ignore"):
        error = np.abs(values.astype(np.float32) - array)
        return np.asarray(~(error <= one.bound(array)))


def _by_name(match: _Match, name: str, array: Array) -> bool:
    """A constant with the parameter's own name, which then must have its numbers."""
    stored = next((each for each in match.stored if each.name == name and not each.explained), None)
    if stored is None or not _same_shape(stored, array) or not _agrees(stored, array):
        return False
    stored.explained = True
    return True


def _by_numbers(match: _Match, _name: str, array: Array) -> bool:
    for stored in match.stored:
        if not stored.explained and _same_shape(stored, array) and _agrees(stored, array):
            stored.explained = True
            return True
    return False


def _within_merged(match: _Match, _name: str, array: Array) -> bool:
    for stored in match.stored:
        place = _held_at(stored, array)
        if place is not None:
            stored.explained = True
            stored.taken.append(place)
            return True
    return False


def _held_at(stored: Stored, array: Array) -> slice | None:
    """The columns of a constant that hold a parameter, beside others."""
    return next((place for each in _lying(stored, array) if (place := _columns_of(stored, each)) is not None), None)


def _lying(stored: Stored, array: Array) -> list[Array]:
    """A parameter as it may stand beside others: what was rounded may have been transposed before."""
    ways = [array] if array.ndim < 2 or stored.step is None else [array, array.T]
    values = stored.values
    return [each for each in ways if values.ndim == each.ndim <= 2 and values.shape[:-1] == each.shape[:-1]
            and values.shape[-1] > each.shape[-1]]  # fmt: skip


def _columns_of(stored: Stored, array: Array) -> slice | None:
    values, step, width = stored.values, stored.step, array.shape[-1]
    row, others = array.reshape(-1, width)[0], values.reshape(-1, values.shape[-1])[0]
    peak = int(np.abs(row).argmax())  # where it would have to stand tells most places apart
    standing = slice(peak, len(others) - width + 1 + peak)
    steps = None if step is None else step.reshape(-1, step.shape[-1])[0][standing]
    expected = np.full(others[standing].shape, row[peak], dtype=row.dtype)
    near = ~_wrong(stored, others[standing], steps, expected)
    places = [slice(start, start + width) for start in map(int, np.flatnonzero(near))]
    return next(
        (place for place in places
         if _is_like(stored, values[..., place], None if step is None else step[..., place], array)), None
    )  # fmt: skip


def _gaps(stored: Stored, array: Array) -> Iterator[tuple[Array, Array | None]]:
    """What stands where a parameter should: beside others that were found, with room for it, or where none was."""
    open_to_all = stored.taken or (stored.step is not None and not stored.explained)
    for each in _lying(stored, array) if open_to_all else ():
        for start in (0, *(place.stop for place in stored.taken)):
            place = slice(start, start + each.shape[-1])
            free = all(place.stop <= other.start or other.stop <= start for other in stored.taken)
            if free and place.stop <= stored.values.shape[-1]:
                values, step = stored.values[..., place], None if stored.step is None else stored.step[..., place]
                yield (values, step) if each is array else (values.T, None if step is None else step.T)


def _explain_missing(match: _Match, name: str, array: Array) -> None:
    """Tell a parameter that has other numbers from one that is not there."""
    like = [each for each in match.stored if not each.explained and _same_shape(each, array)]
    own = [each for each in like if each.name == name]
    ways = [(each, values, step) for each in own or like for values, step in _views(each, array)]
    if not ways and array.ndim > 1:
        ways = [(each, values, step) for each in match.stored for values, step in _gaps(each, array)]
    if not ways or (array.ndim < 2 and not own):  # a vector may have been added to another: the outputs speak for it
        match.absent.append(name)
        return
    counts = [int(_wrong(each, values, step, array).sum()) for each, values, step in ways]
    nearest, values, step = ways[int(np.argmin(counts))]
    nearest.explained = True
    match.changed.append(_difference(name, nearest, values, step, array))


def _difference(name: str, stored: Stored, values: Array, step: Array | None, array: Array) -> str:
    wrong = _wrong(stored, values, step, array)
    with np.errstate(invalid="ignore"):
        largest = float(np.nanmax(np.abs(values.astype(np.float64) - array)))
    where = f"{int(wrong.sum())} of {array.size} numbers"
    if array.ndim > 1:
        rows = np.flatnonzero(wrong.reshape(len(array), -1).any(axis=1))
        where = f"{len(rows)} of {len(array)} rows, the first {rows[0]},"
    called = name if stored.name == name else f"{name} (in the graph {stored.name})"
    return f"{called}: {where} differ by up to {largest:.2g}"

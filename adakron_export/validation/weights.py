"""Holds the weights in a graph against the parameters of the model that it was made from.

Outputs cannot show every weight: a batch meets some tokens of a vocabulary, and a row of an embedding table that no
batch reads may hold anything. So each parameter is looked for among the graph's constants, whatever they are called:
as it is, transposed, merged with others, or rounded to 8 or 4 bits within what rounding may change.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from adakron_export.errors import first_few
from adakron_export.graph.dtypes import DTYPES, dtype_stored_as
from adakron_export.runtimes.base import Array

_ULPS = 4  # folding in another build of PyTorch may round the last bit another way
_HALF_STEP = 0.5 * (1 + 1e-3)  # a rounded number is half a step off at most
_SAMPLE = 64  # numbers that are looked at before all are
_ENDING = re.compile(r"_(u?int[48]|fp8)$")
_MIDDLE = {ir.DataType.UINT8: 128, ir.DataType.UINT4: 8}  # of unsigned numbers
_CUT_STEPS = 4


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
class _Stored:
    """A constant of the graph, as numbers, and how far each may be off."""

    name: str
    values: Array
    dtype: ir.DataType
    step: Array | None = None  # between two numbers, where they were rounded
    explained: bool = False
    taken: list[slice] = field(default_factory=list)  # columns of parameters that stand beside others

    def bound(self, expected: Array) -> Array:
        """How far each number may be off."""
        row = dtype_stored_as(self.dtype)
        eps = row.rounding if row is not None and row.rounding is not None else DTYPES["fp32"].rounding
        assert eps is not None
        rounding = _ULPS * eps * np.abs(expected) + 1e-30
        if self.dtype is ir.DataType.FLOAT16:
            rounding = rounding + 2.0**-24  # below which it has no numbers
        return rounding if self.step is None else rounding + _HALF_STEP * self.step


@dataclass(slots=True)
class _Match:
    """The constants of a graph, and which of them are explained."""

    stored: list[_Stored]
    changed: list[str] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)


def graph_dtype(model: ir.Model) -> str:
    """What a graph computes in: the dtype of most numbers that its products read, whatever is said of it.

    Args:
        model: The graph.

    Returns:
        A name of `DTYPES`.
    """
    sizes: dict[str, int] = {}
    for value in _constants(model):
        tensor = value.const_value
        assert tensor is not None
        dtype = dtype_stored_as(tensor.dtype)
        tables = all(use.node.op_type == "Gather" and use.idx == 0 for use in value.uses())
        if dtype is not None and len(tensor.shape) > 1 and not tables:
            sizes[dtype.name] = sizes.get(dtype.name, 0) + tensor.size
    narrow = {name: size for name, size in sizes.items() if DTYPES[name].quantised}
    if 2 * sum(narrow.values()) >= sum(sizes.values()) > 0:
        return max(narrow, key=lambda name: narrow[name])
    wide = {name: size for name, size in sizes.items() if name not in narrow}
    return max(wide, key=lambda name: wide[name], default="fp32")


def _rounded(tensor: ir.TensorProtocol) -> bool:
    row = dtype_stored_as(tensor.dtype)
    return row is not None and row.quantised


def _floating(tensor: ir.TensorProtocol) -> bool:
    row = dtype_stored_as(tensor.dtype)
    return row is not None and not row.quantised


def has_fixed_scales(model: ir.Model) -> bool:
    """Whether a graph rounds what it computes by scales that a calibration found."""
    return any(node.op_type == "QuantizeLinear" for node in model.graph)


def compare_weights(model: ir.Model, parameters: Mapping[str, Array]) -> WeightsReport:
    """Look for every parameter of a folded model in a graph.

    Args:
        model: The graph, its functions inlined or not.
        parameters: The parameters by name, float32, of any shape; a tied one once.
    """
    wanted = {name: array for name, array in parameters.items() if array.size > 1}
    match = _Match([each for each in _all_stored(model) if each.values.size > 1])
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


def _constants(model: ir.Model) -> list[ir.Value]:
    return [value for value in model.graph.initializers.values() if value.const_value is not None]


def _all_stored(model: ir.Model) -> Iterator[_Stored]:
    """The graph's constants that stand for real numbers."""
    by_name = {str(value.name): value for value in _constants(model)}
    for name, value in by_name.items():
        tensor = value.const_value
        assert tensor is not None
        if _rounded(tensor):
            stored = _dequantised(name, value, by_name)
            if stored is not None:
                yield stored
        elif _floating(tensor) and not name.endswith("_scale"):
            yield _Stored(name, tensor.numpy(), tensor.dtype)
    for node in model.graph:
        tensor = (
            node.attributes["value"].as_tensor() if node.op_type == "Constant" and "value" in node.attributes else None
        )
        if tensor is not None and _floating(tensor):
            yield _Stored(str(node.outputs[0].name), tensor.numpy(), tensor.dtype)


def _dequantised(name: str, value: ir.Value, by_name: Mapping[str, ir.Value]) -> _Stored | None:
    """What a rounded weight stands for; ``None`` where its scale is not found."""
    tensor, base = value.const_value, _ENDING.sub("", name)
    assert tensor is not None
    named = [
        f"{name}_scale",
        *(f"{base}_{row.name}_scale" for row in DTYPES.values() if row.quantised),
        f"{base}_scale",
    ]
    scale = next((by_name[each].const_value for each in named if each in by_name), None)
    if scale is None:
        return None
    levels = tensor.numpy().astype(np.float32) - _MIDDLE.get(tensor.dtype, 0)
    wide = next((use.node for use in value.uses() if use.node.op_type == "DequantizeLinear"), None)
    columns_first = (
        wide is not None and wide.attributes.get_int("axis", 1) == 0 and "block_size" not in wide.attributes
    )
    steps = scale.numpy().astype(np.float32)
    if steps.ndim == 1 and columns_first:
        steps = steps[:, None]
    if wide is not None and "block_size" in wide.attributes:  # one for a block of rows
        steps = np.repeat(steps, wide.attributes["block_size"].as_int(), axis=0)[: levels.shape[0]]
    factors = _smoothing(wide, by_name)
    if factors is not None:
        steps = steps * (factors if columns_first else factors[:, None])
    if np.broadcast_shapes(steps.shape, levels.shape) != levels.shape:
        return None
    values, step = levels * steps, np.abs(np.broadcast_to(steps, levels.shape))
    if tensor.dtype is ir.DataType.FLOAT8E4M3FN:
        step = np.abs(values) * 2.0**-3 + step * 2.0**-9
    else:  # the largest numbers may have been cut off
        step = np.where(
            np.abs(levels) >= np.abs(levels).max() - (tensor.dtype is ir.DataType.INT4), _CUT_STEPS * step, step
        )
    return _Stored(name, values, scale.dtype, step)


def _smoothing(wide: ir.Node | None, by_name: Mapping[str, ir.Value]) -> Array | None:
    """What a product's input is multiplied with, channel by channel, before it is rounded (SmoothQuant)."""
    product = next((use.node for use in wide.outputs[0].uses()), None) if wide is not None else None
    value = product.inputs[0] if product is not None else None
    for op_type in ("DequantizeLinear", "QuantizeLinear", "Mul"):
        node = value.producer() if value is not None else None
        if node is None or node.op_type != op_type:
            return None
        value, factors = node.inputs[0], node.inputs[1]
    known = by_name.get(str(factors.name)) if factors is not None else None
    return None if known is None or known.const_value is None else known.const_value.numpy().astype(np.float32)


def _views(stored: _Stored, array: Array) -> Iterator[tuple[Array, Array | None]]:
    """The constant in the shape of a parameter: as it is, and transposed."""
    if stored.values.shape == array.shape:
        yield stored.values, stored.step
    if array.ndim == 2 and stored.values.shape == array.shape[::-1]:
        yield stored.values.T, None if stored.step is None else stored.step.T


def _same_shape(stored: _Stored, array: Array) -> bool:
    return next(_views(stored, array), None) is not None


def _agrees(stored: _Stored, array: Array) -> bool:
    return any(_is_like(stored, values, step, array) for values, step in _views(stored, array))


def _is_like(stored: _Stored, values: Array, step: Array | None, array: Array) -> bool:
    stride = max(1, array.size // _SAMPLE)
    sample = array.reshape(-1)[::stride]
    found = np.asarray(values).reshape(-1)[::stride] if values.flags.c_contiguous else values.flat[::stride]
    steps = None if step is None else (step.reshape(-1)[::stride] if step.flags.c_contiguous else step.flat[::stride])
    return _within(stored, found, steps, sample) and _within(stored, values, step, array)


def _within(stored: _Stored, values: Array, step: Array | None, array: Array) -> bool:
    return not _wrong(stored, values, step, array).any()


def _wrong(stored: _Stored, values: Array, step: Array | None, array: Array) -> Array:
    """Where numbers are off by more than their rounding."""
    one = _Stored(stored.name, values, stored.dtype, step)
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


def _held_at(stored: _Stored, array: Array) -> slice | None:
    """The columns of a constant that hold a parameter, beside others."""
    return next((place for each in _lying(stored, array) if (place := _columns_of(stored, each)) is not None), None)


def _lying(stored: _Stored, array: Array) -> list[Array]:
    """A parameter as it may stand beside others: what was rounded may have been transposed before."""
    ways = [array] if array.ndim < 2 or stored.step is None else [array, array.T]
    values = stored.values
    return [each for each in ways if values.ndim == each.ndim <= 2 and values.shape[:-1] == each.shape[:-1]
            and values.shape[-1] > each.shape[-1]]  # fmt: skip


def _columns_of(stored: _Stored, array: Array) -> slice | None:
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


def _gaps(stored: _Stored, array: Array) -> Iterator[tuple[Array, Array | None]]:
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


def _difference(name: str, stored: _Stored, values: Array, step: Array | None, array: Array) -> str:
    wrong = _wrong(stored, values, step, array)
    with np.errstate(invalid="ignore"):
        largest = float(np.nanmax(np.abs(values.astype(np.float64) - array)))
    where = f"{int(wrong.sum())} of {array.size} numbers"
    if array.ndim > 1:
        rows = np.flatnonzero(wrong.reshape(len(array), -1).any(axis=1))
        where = f"{len(rows)} of {len(array)} rows, the first {rows[0]},"
    called = name if stored.name == name else f"{name} (in the graph {stored.name})"
    return f"{called}: {where} differ by up to {largest:.2g}"

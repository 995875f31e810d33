"""The constants of a graph as the real numbers that they stand for, rounded or not."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from adakron_export.graph.dtypes import DTYPES, dtype_stored_as
from adakron_export.runtimes.base import Array

_ULPS = 4  # folding in another build of PyTorch may round the last bit another way
_HALF_STEP = 0.5 * (1 + 1e-3)  # a rounded number is half a step off at most
_ENDING = re.compile(r"_(u?int[48]|fp8)$")
_MIDDLE = {ir.DataType.UINT8: 128, ir.DataType.UINT4: 8}  # of unsigned numbers
_CUT_STEPS = 4


@dataclass(slots=True)
class Stored:
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


def _constants(model: ir.Model) -> list[ir.Value]:
    return [value for value in model.graph.initializers.values() if value.const_value is not None]


def stored_constants(model: ir.Model) -> Iterator[Stored]:
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
            yield Stored(name, tensor.numpy(), tensor.dtype)
    for node in model.graph:
        tensor = (
            node.attributes["value"].as_tensor() if node.op_type == "Constant" and "value" in node.attributes else None
        )
        if tensor is not None and _floating(tensor):
            yield Stored(str(node.outputs[0].name), tensor.numpy(), tensor.dtype)


def _dequantised(name: str, value: ir.Value, by_name: Mapping[str, ir.Value]) -> Stored | None:
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
    return Stored(name, values, scale.dtype, step)


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

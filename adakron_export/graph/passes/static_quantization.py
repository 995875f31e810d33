"""int8 or fp8 weights and activations with fixed scales, for TensorRT."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

import ml_dtypes
import numpy as np
import onnx_ir as ir

from adakron_export.graph.passes.quantize import LEVELS, MIDDLE, is_product
from adakron_export.graph.passes.rewriting import array_of, initializer, integer_of

_SMOOTHING = "_smoothing"
_TOP_BESIDE_UINT8 = 64  # of weights: two products, 2 * 255 * 64, fit into the 16 bits of CPUs without VNNI
_SMALLEST_SCALE = float(np.finfo(np.float16).tiny)


class Kind(Enum):
    """What values are rounded to; its value is its name as `--dtype` takes it."""

    INT8 = "int8"
    FP8 = "fp8"  # E4M3: three bits of mantissa, so that the error is relative; no infinity

    @property
    def top(self) -> int:
        """The largest number that it holds."""
        return LEVELS if self is Kind.INT8 else int(ml_dtypes.finfo(ml_dtypes.float8_e4m3fn).max)

    def round(self, values: np.ndarray) -> np.ndarray:
        """Values of at most `top`, rounded."""
        clipped = np.clip(values, -self.top, self.top)
        rounded: np.ndarray
        rounded = np.round(clipped).astype(np.int8) if self is Kind.INT8 else clipped.astype(ml_dtypes.float8_e4m3fn)
        return rounded


@dataclass(frozen=True, slots=True)
class Rounding:
    """How a value is rounded.

    Attributes:
        largest: The magnitude that the largest number stands for, after smoothing.
        smoothing: For each channel, what the value is divided by before, and the rows of the weights are multiplied
            with,
            as in SmoothQuant (Xiao et al., 2023, equation 3); ``None`` for no change.
    """

    largest: float
    smoothing: np.ndarray | None = None


@dataclass(slots=True)
class StaticQuantizationPass(ir.passes.InPlacePass):
    """Products of int8 by int8, or fp8 by fp8, written as ``QuantizeLinear`` and ``DequantizeLinear``.

    1. In ``MatMul(X, W)`` and ``Gemm(X, W, B)`` with an initializer ``W``, ``X`` is smoothed where that helps and goes
       through a pair of the two with one symmetric scale; ``W`` is rounded with one scale per column, followed by a
       ``DequantizeLinear``. TensorRT makes one product of them.
    2. Products of the same ``X`` share its pair. Scales have the dtype of the graph, so that all else stays in it.
    3. Beside uint8 the weights have 7 bits, -64 to 64: x86 CPUs without VNNI add two products in 16 bits.
    4. The same products as for `DynamicInt8Pass` stay as they are, adapters among them; so do embedding tables.

    Attributes:
        roundings: How each ``X`` is rounded, by its name.
        kind: What to round to.
        unsigned: Whether ``X`` becomes uint8 around 128 in place of int8; what comes out is the same.
    """

    roundings: Mapping[str, Rounding]
    kind: Kind = Kind.INT8
    unsigned: bool = False

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite the main graph."""
        products = products_by_input(model)
        top = _TOP_BESIDE_UINT8 if self.unsigned else self.kind.top
        for value, nodes in products.items():
            rounding = self.roundings[str(value.name)]
            rounded = _round(model.graph, nodes[0], value, rounding, self._zero(), self.kind.top)
            for node in nodes:
                weight = _rounded_weight(model.graph, node, rounding, self.kind, top)
                node.replace_input_with(0, rounded)
                node.replace_input_with(1, weight)
        return ir.passes.PassResult(model, modified=bool(products))

    def _zero(self) -> np.ndarray:
        """The number that stands for 0, in the type that values are rounded to."""
        return np.array(MIDDLE, dtype=np.uint8) if self.unsigned else self.kind.round(np.array(0.0))


def products_by_input(model: ir.Model) -> dict[ir.Value, list[ir.Node]]:
    """The products that `StaticQuantizationPass` rewrites, by the value that it rounds for them."""
    found: dict[ir.Value, list[ir.Node]] = {}
    for node in model.graph:
        if is_product(node) and node.inputs[0] is not None:
            found.setdefault(node.inputs[0], []).append(node)
    return found


def smoothing_in(model: ir.Model) -> dict[str, np.ndarray]:
    """The smoothing that a rewritten graph holds, by the name of the value."""
    return {
        name.removesuffix(_SMOOTHING): 1 / array_of(value).astype(np.float32)
        for name, value in model.graph.initializers.items()
        if name.endswith(_SMOOTHING)
    }


def weight_of(node: ir.Node) -> np.ndarray:
    """A product's weights, float32, ``[in, out]``."""
    array = array_of(node.inputs[1]).astype(np.float32)
    return array.T if integer_of(node, "transB") else array


def _round(
    graph: ir.Graph, node: ir.Node, value: ir.Value, rounding: Rounding, zero: np.ndarray, top: int
) -> ir.Value:
    dtype = array_of(node.inputs[1]).dtype
    smooth = value
    if rounding.smoothing is not None:
        factors = initializer(graph, f"{value.name}{_SMOOTHING}", (1 / rounding.smoothing).astype(dtype))
        scaled = ir.node("Mul", [value, factors])
        scaled.metadata_props.update(node.metadata_props)
        smooth = scaled.outputs[0]
        smooth.name = f"{value.name}_smooth"
        _say(smooth, value.dtype, value)
        graph.insert_before(node, scaled)
    scale = max(rounding.largest / top, _SMALLEST_SCALE)
    return _pair(graph, node, smooth, np.array(scale, dtype=dtype), zero)


def _pair(graph: ir.Graph, node: ir.Node, value: ir.Value, scale: np.ndarray, zero: np.ndarray) -> ir.Value:
    held = initializer(graph, f"{value.name}_scale", scale)
    middle = initializer(graph, f"{zero.dtype}_zero", zero)
    assert middle.dtype is not None
    down = ir.node("QuantizeLinear", [value, held, middle])
    up = ir.node("DequantizeLinear", [down.outputs[0], held, middle])
    for each in (down, up):
        each.metadata_props.update(node.metadata_props)
    _say(down.outputs[0], middle.dtype, value)
    _say(up.outputs[0], held.dtype, value)
    graph.insert_before(node, [down, up])
    return up.outputs[0]


def _rounded_weight(graph: ir.Graph, node: ir.Node, rounding: Rounding, kind: Kind, top: int) -> ir.Value:
    weight, name = node.inputs[1], node.outputs[0].name
    assert weight is not None
    dtype, transposed = array_of(weight).dtype, bool(integer_of(node, "transB"))
    array = weight_of(node)
    if rounding.smoothing is not None:
        array = array * rounding.smoothing[:, None]
    scales = np.maximum(np.abs(array).max(axis=0) / top, _SMALLEST_SCALE).astype(dtype)
    levels = kind.round(array / scales.astype(np.float32))
    held = initializer(graph, f"{name}_weight_{kind.value}", np.ascontiguousarray(levels.T) if transposed else levels)
    factors = initializer(graph, f"{name}_weight_scale", scales)
    up = ir.node("DequantizeLinear", [held, factors], {"axis": 0 if transposed else 1})
    up.metadata_props.update(node.metadata_props)
    _say(up.outputs[0], factors.dtype, weight)
    graph.insert_before(node, up)
    return up.outputs[0]


def _say(value: ir.Value, dtype: ir.DataType | None, like: ir.Value) -> None:
    """Note what shape inference would find."""
    assert dtype is not None
    value.dtype, value.shape = dtype, like.shape

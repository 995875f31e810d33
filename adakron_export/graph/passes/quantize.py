"""int8 weights for CPUs: products and embedding tables."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from adakron_export.graph.passes.rewriting import array_of, initializer, integer_of, replace_node

LEVELS = 127  # symmetric: -128 is not used
MIDDLE = 128  # of uint8, where it stands for 0
_SMALLEST = 1e-6
_BELOW_GELU = 0.2  # GELU is nowhere below -0.17, nor is its approximation by tanh


@dataclass(slots=True)
class DynamicInt8Pass(ir.passes.InPlacePass):
    """Weights in int8, one scale per column; activations in uint8, with scales of their own at each run.

    1. Rewrites ``MatMul(X, W)`` and ``Gemm(X, W, B)`` with an initializer ``W`` into ``DynamicQuantizeLinear``,
       ``MatMulInteger``, ``Cast`` and ``Mul``, in the form that ONNX Runtime fuses; products of the same ``X``
       quantise it once.
    2. Weights with fewer than ``MIN_COLUMNS`` columns stay (heads that classify). Run before functions are inlined it
       leaves the adapters as they are: they are small, and the Kronecker product would multiply their errors.
    3. Products with fewer columns than rows, and with ``per_token`` all of them, first divide each row of ``X`` by its
       largest magnitude, and multiply the result with it: one scale for all rows leaves most of them few levels where
       some are much larger, as behind a GELU.
    """

    MIN_COLUMNS = 16
    per_token: bool = False
    _quantised: dict[tuple[ir.Value, bool], _Rounded] = field(default_factory=dict)

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite the main graph."""
        products = [node for node in model.graph if is_product(node)]
        for node in products:
            self._rewrite_product(model.graph, node)
        return ir.passes.PassResult(model, modified=bool(products))

    def _rewrite_product(self, graph: ir.Graph, node: ir.Node) -> None:
        value, weight = node.inputs[0], node.inputs[1]
        assert value is not None
        assert weight is not None
        transposed = bool(integer_of(node, "transB"))
        name = product_name(weight, transposed=transposed)
        levels, scales = _symmetric(array_of(weight).T if transposed else array_of(weight), axis=0)
        held = initializer(graph, f"{name}_int8", np.ascontiguousarray(levels))
        factors = initializer(graph, f"{name}_int8_scale", scales[0])
        added: list[ir.Node] = []
        key = (value, self.per_token or _narrows(node))
        if key not in self._quantised:
            self._quantised[key] = _round(graph, value, added, per_token=key[1])
        rounded = self._quantised[key]
        product = ir.node("MatMulInteger", [rounded.levels, held, rounded.zero])
        wide = ir.node("Cast", [product.outputs[0]], {"to": int(ir.DataType.FLOAT)})
        both = ir.node("Mul", [rounded.scale, factors])
        last = ir.node("Mul", [wide.outputs[0], both.outputs[0]])
        added += [product, wide, both, last]
        if rounded.rows is not None:
            last = ir.node("Mul", [last.outputs[0], rounded.rows])
            added.append(last)
        if len(node.inputs) > 2 and node.inputs[2] is not None:
            last = ir.node("Add", [last.outputs[0], node.inputs[2]])
            added.append(last)
        replace_node(graph, node, added)


@dataclass(frozen=True, slots=True)
class _Rounded:
    """A value as ``(levels - zero) * scale``, times ``rows`` where each row was divided by its own."""

    levels: ir.Value
    scale: ir.Value
    zero: ir.Value
    rows: ir.Value | None


def _round(graph: ir.Graph, value: ir.Value, added: list[ir.Node], *, per_token: bool) -> _Rounded:
    rows = _largest_of_rows(graph, value, added) if per_token else None
    if rows is not None:
        added.append(ir.node("Div", [value, rows]))
        value = added[-1].outputs[0]
    added.append(ir.node("DynamicQuantizeLinear", [value], num_outputs=3))
    levels, scale, zero = added[-1].outputs
    return _Rounded(levels, scale, zero, rows)


def _largest_of_rows(graph: ir.Graph, value: ir.Value, added: list[ir.Node]) -> ir.Value:
    """The largest magnitude of each row, and never 0."""
    producer = value.producer()
    least = _SMALLEST
    if producer is not None and producer.op_type == "Gelu":
        least = _BELOW_GELU  # what is negative is no larger: it need not be looked at
    else:
        added.append(ir.node("Abs", [value]))
        value = added[-1].outputs[0]
    last = initializer(graph, "int8_last_axis", np.array([-1], dtype=np.int64))
    bound = initializer(graph, f"int8_least_{least:.0e}", np.array(least, dtype=np.float32))
    added.append(ir.node("ReduceMax", [value, last], {"keepdims": 1}))
    added.append(ir.node("Max", [added[-1].outputs[0], bound]))
    return added[-1].outputs[0]


class Int8TablesPass(ir.passes.InPlacePass):
    """Embedding tables in int8, one scale per row.

    Rewrites ``Gather(W, ids)`` from a table of fp32 into a gather of int8 rows and one of their scales. Tables with
    fewer than ``MIN_ROWS`` rows stay. A table that a tied head has in uint8 is kept so, that both may be one.
    """

    MIN_ROWS = 32

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite the main graph."""
        tables = [node for node in model.graph if node.op_type == "Gather" and _is_table(node)]
        for node in tables:
            _rewrite_gather(model.graph, node)
        return ir.passes.PassResult(model, modified=bool(tables))


def _is_table(node: ir.Node) -> bool:
    table = node.inputs[0]
    return _is_weight(table) and array_of(table).shape[0] >= Int8TablesPass.MIN_ROWS and not integer_of(node, "axis")


def is_product(node: ir.Node) -> bool:
    """Whether it multiplies with a constant weight that is worth being int8."""
    if node.op_type not in ("MatMul", "Gemm"):
        return False
    weight = node.inputs[1]
    if not _is_weight(weight) or integer_of(node, "transA"):
        return False
    factors = [node.attributes[name].as_float() for name in ("alpha", "beta") if name in node.attributes]
    columns = array_of(weight).shape[0 if integer_of(node, "transB") else 1]
    return all(factor == 1.0 for factor in factors) and columns >= DynamicInt8Pass.MIN_COLUMNS


def product_name(weight: ir.Value, *, transposed: bool) -> str:
    """What a product's rounded weight is called; layers that share the weight share this too."""
    return f"{weight.name}_transposed" if transposed else f"{weight.name}_product"


def _narrows(node: ir.Node) -> bool:
    first, second = array_of(node.inputs[1]).shape
    return bool(first < second if integer_of(node, "transB") else second < first)


def _is_weight(value: ir.Value | None) -> bool:
    tensor = value.const_value if value is not None else None
    return tensor is not None and tensor.dtype in (ir.DataType.FLOAT, ir.DataType.FLOAT16) and len(tensor.shape) == 2


def _rewrite_gather(graph: ir.Graph, node: ir.Node) -> None:
    table, ids = node.inputs
    assert table is not None
    levels, scales = _symmetric(array_of(table), axis=1)
    unsigned = (levels.astype(np.int16) + MIDDLE).astype(np.uint8)
    tied = _has(graph, unsigned.T)  # a head that reads the same weights
    held = initializer(graph, f"{table.name}_uint8" if tied else f"{table.name}_int8", unsigned if tied else levels)
    rows = ir.node("Gather", [held, ids])
    factors = ir.node("Gather", [initializer(graph, f"{table.name}_int8_scale", scales), ids])
    added = [rows, factors, ir.node("Cast", [rows.outputs[0]], {"to": int(ir.DataType.FLOAT)})]
    if tied:
        middle = initializer(graph, "uint8_middle_float", np.array(MIDDLE, dtype=np.float32))
        added.append(ir.node("Sub", [added[-1].outputs[0], middle]))
    replace_node(graph, node, [*added, ir.node("Mul", [added[-1].outputs[0], factors.outputs[0]])])


def _has(graph: ir.Graph, array: np.ndarray) -> bool:
    """Whether a weight of the graph has these numbers."""
    return any(
        value.const_value is not None
        and value.const_value.dtype == ir.DataType.UINT8
        and tuple(value.const_value.shape.numpy()) == array.shape
        and np.array_equal(array_of(value), array)
        for value in graph.initializers.values()
    )


def _symmetric(array: np.ndarray, *, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Integers, and the scales ``max |w| / 127`` along an axis that give the array back."""
    scales = np.abs(array).max(axis=axis, keepdims=True) / LEVELS
    scales[scales == 0] = 1
    return np.round(array / scales).astype(np.int8), scales.astype(np.float32)

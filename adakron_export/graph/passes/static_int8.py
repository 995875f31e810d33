"""int8 weights and activations with fixed scales, for TensorRT."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from adakron_export.graph.passes.quantize import LEVELS, array_of, integer_of, is_product
from adakron_export.graph.passes.rewriting import initializer

_SMALLEST_SCALE = float(np.finfo(np.float16).tiny)


@dataclass(slots=True)
class StaticInt8Pass(ir.passes.InPlacePass):
    """Products of int8 by int8, written as ``QuantizeLinear`` and ``DequantizeLinear``.

    1. In ``MatMul(X, W)`` and ``Gemm(X, W, B)`` with an initializer ``W``, ``X`` goes through a pair of the two with
       one symmetric scale, and ``W`` becomes int8 with one scale per column, followed by a ``DequantizeLinear``.
       TensorRT makes one int8 product of them.
    2. Products of the same ``X`` share its pair. Scales have the dtype of the graph, so that all else stays in it.
    3. The same products as for `DynamicInt8Pass` stay as they are, adapters among them; so do embedding tables.

    Attributes:
        ranges: By the name of each ``X``, the magnitude that 127 stands for.
    """

    ranges: Mapping[str, float]

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite the main graph."""
        products = [node for node in model.graph if is_product(node)]
        rounded: dict[ir.Value, ir.Value] = {}
        for node in products:
            value = node.inputs[0]
            assert value is not None
            if value not in rounded:
                rounded[value] = self._round_input(model.graph, node, value)
            node.replace_input_with(0, rounded[value])
            node.replace_input_with(1, _int8_weight(model.graph, node))
        return ir.passes.PassResult(model, modified=bool(products))

    def _round_input(self, graph: ir.Graph, node: ir.Node, value: ir.Value) -> ir.Value:
        weight = array_of(node.inputs[1])
        scale = max(self.ranges[str(value.name)] / LEVELS, _SMALLEST_SCALE)
        return _pair(graph, node, value, np.array(scale, dtype=weight.dtype))


def inputs_of_products(model: ir.Model) -> list[str]:
    """The names of the values that `StaticInt8Pass` needs the ranges of."""
    return list(dict.fromkeys(str(node.inputs[0].name) for node in model.graph if is_product(node) and node.inputs[0]))


def _pair(graph: ir.Graph, node: ir.Node, value: ir.Value, scale: np.ndarray) -> ir.Value:
    held = initializer(graph, f"{value.name}_scale", scale)
    zero = initializer(graph, "int8_zero", np.array(0, dtype=np.int8))
    down = ir.node("QuantizeLinear", [value, held, zero])
    up = ir.node("DequantizeLinear", [down.outputs[0], held, zero])
    for each in (down, up):
        each.metadata_props.update(node.metadata_props)
    _say(down.outputs[0], ir.DataType.INT8, value)
    _say(up.outputs[0], held.dtype, value)
    graph.insert_before(node, [down, up])
    return up.outputs[0]


def _int8_weight(graph: ir.Graph, node: ir.Node) -> ir.Value:
    weight = node.inputs[1]
    assert weight is not None
    columns = 0 if integer_of(node, "transB") else 1
    array = array_of(weight)
    largest = np.abs(array.astype(np.float32)).max(axis=1 - columns, keepdims=True)
    scales = np.maximum(largest / LEVELS, _SMALLEST_SCALE).astype(array.dtype)
    levels = np.clip(np.round(array.astype(np.float32) / scales.astype(np.float32)), -LEVELS, LEVELS)
    held = initializer(graph, f"{weight.name}_int8", levels.astype(np.int8))
    factors = initializer(graph, f"{weight.name}_scale", scales.reshape(-1))
    up = ir.node("DequantizeLinear", [held, factors], {"axis": columns})
    up.metadata_props.update(node.metadata_props)
    _say(up.outputs[0], factors.dtype, weight)
    graph.insert_before(node, up)
    return up.outputs[0]


def _say(value: ir.Value, dtype: ir.DataType | None, like: ir.Value) -> None:
    """Note what shape inference would find."""
    assert dtype is not None
    value.dtype, value.shape = dtype, like.shape

"""What a CPU without VNNI makes of integer products: the graph in which sums of two saturate in 16 bits."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from adakron_export.graph.keys import EXACT_SUMS
from adakron_export.graph.passes.rewriting import initializer, replace_node
from adakron_export.graph.passes.unsigned_weights import UnsignedWeightsPass, is_wide, levels_of, signed_products

_LOWEST, _HIGHEST = -(2**15), 2**15 - 1


def integer_products(model: ir.Model) -> str:
    """What becomes of a graph's integer products on x86 CPUs without VNNI, in words; empty where it has none."""
    dynamic = any(node.op_type == "MatMulInteger" for node in model.graph)
    fixed = [
        node.inputs[0] for node in model.graph if node.op_type == "DequantizeLinear" and _is_weight(node.inputs[0])
    ]
    beside_uint8 = any(node.outputs[0].dtype == ir.DataType.UINT8 for node in model.graph
                       if node.op_type == "QuantizeLinear")  # fmt: skip
    if not dynamic and not fixed:
        return ""
    if signed_products(model) or (beside_uint8 and any(is_wide(weight) for weight in fixed if weight is not None)):
        return f"exact with open_runner; elsewhere they need VNNI, or the session entry {EXACT_SUMS} = 1"
    return "exact on every CPU"


def _is_weight(value: ir.Value | None) -> bool:
    return value is not None and value.const_value is not None and value.dtype == ir.DataType.INT8


def saturating(model: ir.Model) -> ir.Model:
    """A new graph, right on every CPU, that computes what ``model`` gives in a plain session on one without VNNI.

    x86's ``VPMADDUBSW`` adds products of two neighbours along the inner axis and clips the sum to 16 bits; the rest
    is exact. So what was clipped off is taken from the exact product.
    """
    emulated = model.clone()
    for node in signed_products(emulated):
        weight = node.inputs[1]
        assert weight is not None
        levels = levels_of(weight)
        pairs, columns = len(levels) // 2, levels.shape[1]  # one that is left over is no sum
        held = levels[: 2 * pairs].reshape(pairs, 2, columns).astype(np.float32)
        _take_off(emulated.graph, node, initializer(emulated.graph, f"{weight.name}_pairs", held))
    UnsignedWeightsPass()(emulated)
    return emulated


def _take_off(graph: ir.Graph, node: ir.Node, weights: ir.Value) -> None:
    pairs, _, columns = weights.shape.numpy()  # type: ignore[union-attr]
    exact = ir.node("MatMulInteger", node.inputs)
    added = [exact]

    def add(op_type: str, *inputs: ir.Value | None, **attributes: object) -> ir.Value:
        added.append(ir.node(op_type, inputs, attributes))  # type: ignore[arg-type]
        return added[-1].outputs[0]

    def numbers(name: str, *values: int) -> ir.Value:
        return initializer(graph, f"saturation_{name}", np.array(values, dtype=np.int64))

    value = exact.inputs[0]
    kept = add("Slice", value, numbers("first", 0), numbers(f"{pairs}_pairs", 2 * pairs), numbers("last_axis", -1))
    split = add("Reshape", kept, numbers(f"split_{pairs}", -1, pairs, 2))
    rows = add("Cast", add("Transpose", split, perm=[1, 0, 2]), to=int(ir.DataType.FLOAT))  # [pairs, rows, 2]
    flat = add("Reshape", exact.outputs[0], numbers(f"flat_{columns}", -1, columns))
    clipped = add("Scan", flat, rows, weights, body=_body(f"{node.outputs[0].name}_pair"), num_scan_inputs=2)
    add("Reshape", clipped, add("Shape", exact.outputs[0]))
    replace_node(graph, node, added)


def _body(prefix: str) -> ir.Graph:
    """One pair: ``sum - (pair - clipped pair)``."""
    total = ir.Value(type=ir.TensorType(ir.DataType.INT32))
    rows, weights = (ir.Value(type=ir.TensorType(ir.DataType.FLOAT)) for _ in range(2))
    lowest, highest = (
        ir.node("Constant", [], {"value_float": float(bound)}).outputs[0] for bound in (_LOWEST, _HIGHEST)
    )
    pair = ir.node("MatMul", [rows, weights])
    clipped = ir.node("Clip", [pair.outputs[0], lowest, highest])
    over = ir.node("Sub", [pair.outputs[0], clipped.outputs[0]])
    whole = ir.node("Cast", [over.outputs[0]], {"to": int(ir.DataType.INT32)})
    rest = ir.node("Sub", [total, whole.outputs[0]])
    nodes = [lowest.producer(), highest.producer(), pair, clipped, over, whole, rest]
    for index, value in enumerate((total, rows, weights, *(each.outputs[0] for each in nodes if each))):
        value.name = f"{prefix}_{index}"  # no name may stand in two graphs
    rest.outputs[0].type = ir.TensorType(ir.DataType.INT32)
    return ir.Graph([total, rows, weights], rest.outputs, nodes=nodes, name="saturation")  # type: ignore[arg-type]

"""Integer weights that no CPU adds up wrongly."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from adakron_export.graph.passes.quantize import MIDDLE
from adakron_export.graph.passes.rewriting import array_of, initializer


class UnsignedWeightsPass(ir.passes.InPlacePass):
    """Weights of ``MatMulInteger`` in uint8 around 128, in the place of int8 around 0.

    1. Rewrites a ``MatMulInteger`` whose second input is an int8 initializer without a zero point, which nothing
       else reads. The products are the same integers.
    2. x86 CPUs without VNNI add uint8 times int8 in pairs of 16 bits, which saturate; uint8 times uint8 they add in
       32. So the graph is right in every session on every CPU.

    ONNX Runtime takes 2.2 times as long for such a product where there is VNNI (1.32), so a graph that only our runner
    opens keeps int8.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite the main graph."""
        weights = {weight: nodes for weight, nodes in _signed(model).items() if len(weight.uses()) == len(nodes)}
        for weight, nodes in weights.items():
            _make_unsigned(model.graph, weight, nodes)
        common.RemoveUnusedNodesPass()(model)
        return ir.passes.PassResult(model, modified=bool(weights))


def signed_products(model: ir.Model) -> list[ir.Node]:
    """The products of uint8 by int8 whose sums of two do not all fit into 16 bits."""
    return [node for weight, nodes in _signed(model).items() if is_wide(weight) for node in nodes]


def is_wide(weight: ir.Value) -> bool:
    """Whether two products of int8 weights by uint8 may be more than 16 bits hold: 2 * 255 * 64 is less."""
    return bool(np.abs(levels_of(weight).astype(np.int16)).max(initial=0) > 64)


def levels_of(weight: ir.Value) -> np.ndarray:
    """The numbers of a weight, which may be another one transposed."""
    if weight.const_value is not None:
        return weight.const_value.numpy()
    node = weight.producer()
    assert node is not None
    return array_of(node.inputs[0]).T


def _signed(model: ir.Model) -> dict[ir.Value, list[ir.Node]]:
    found: dict[ir.Value, list[ir.Node]] = {}
    for node in model.graph:
        weight = node.inputs[1] if node.op_type == "MatMulInteger" else None
        centred = len(node.inputs) < 4 or node.inputs[3] is None
        if weight is not None and _is_constant(weight) and weight.dtype == ir.DataType.INT8 and centred:
            found.setdefault(weight, []).append(node)
    return found


def _is_constant(weight: ir.Value) -> bool:
    node = weight.producer()
    transposed = node.inputs[0] if node is not None and node.op_type == "Transpose" else None
    return weight.const_value is not None or (transposed is not None and transposed.const_value is not None)


def _make_unsigned(graph: ir.Graph, weight: ir.Value, nodes: list[ir.Node]) -> None:
    levels = (levels_of(weight).astype(np.int16) + MIDDLE).astype(np.uint8)
    held = initializer(graph, f"{str(weight.name).removesuffix('_int8')}_uint8", levels)
    zero = initializer(graph, "uint8_middle", np.array(MIDDLE, dtype=np.uint8))
    for node in nodes:
        node.replace_input_with(1, held)
        node.resize_inputs(4)
        node.replace_input_with(3, zero)
    graph.initializers.pop(str(weight.name), None)

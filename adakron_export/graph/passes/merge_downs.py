"""Merges the two down-projections of an adapter into one."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir


class MergeDownProjectionsPass(ir.passes.InPlacePass):
    """One matrix product for both small networks of each inlined adapter.

    1. Rewrites ``Add(MatMul(X, A1), B1)`` and ``Add(MatMul(X, A2), B2)`` that read the same ``X``, where all four
       weights are initializers, both products are read once, and ``A1``, ``A2`` have the same number of rows,
       into one ``MatMul`` and ``Add`` followed by a ``Split`` along the last axis.
    2. Only pairs that together are at most ``MAX_COLUMNS`` wide: a projection of a wide layer gains nothing.
    3. Outputs are the same numbers: each column is the same dot product.
    """

    MAX_COLUMNS = 256

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite the main graph; functions must have been inlined."""
        groups: dict[int, list[ir.Node]] = {}
        for node in model.graph:
            if node.op_type == "Add" and _product(node) is not None:
                product = _product(node)
                groups.setdefault(id(product.inputs[0]), []).append(node)  # type: ignore[union-attr]
        merged = [_merge(model.graph, adds) for adds in groups.values() if len(adds) == 2 and _fits(adds)]
        return ir.passes.PassResult(model, modified=bool(merged))


def _product(add: ir.Node) -> ir.Node | None:
    """The MatMul with a constant weight whose result this Add gives a constant bias, if it is that."""
    value, bias = add.inputs
    product = value.producer() if value is not None else None
    if product is None or product.op_type != "MatMul" or bias is None or len(product.outputs[0].uses()) != 1:
        return None
    weight = product.inputs[1]
    constant = weight is not None and weight.const_value is not None and bias.const_value is not None
    return product if constant else None


def _weights(add: ir.Node) -> tuple[np.ndarray, np.ndarray]:
    product = add.inputs[0].producer()  # type: ignore[union-attr]
    return product.inputs[1].const_value.numpy(), add.inputs[1].const_value.numpy()  # type: ignore[union-attr]


def _fits(adds: list[ir.Node]) -> bool:
    (first, first_bias), (second, second_bias) = _weights(adds[0]), _weights(adds[1])
    columns = first.shape[-1] + second.shape[-1]
    plain = first.ndim == second.ndim == 2 and first_bias.ndim == second_bias.ndim == 1
    return plain and first.shape[0] == second.shape[0] and columns <= MergeDownProjectionsPass.MAX_COLUMNS


def _merge(graph: ir.Graph, adds: list[ir.Node]) -> None:
    products = [add.inputs[0].producer() for add in adds]
    source = products[0].inputs[0]  # type: ignore[union-attr]
    weights, biases = zip(*(_weights(add) for add in adds), strict=True)
    name = str(adds[0].outputs[0].name)
    constants = {
        f"{name}_merged_weight": np.concatenate(weights, axis=1),
        f"{name}_merged_bias": np.concatenate(biases),
        f"{name}_merged_split": np.array([weight.shape[1] for weight in weights], dtype=np.int64),
    }
    values = [_initializer(graph, key, array) for key, array in constants.items()]
    matmul = ir.node("MatMul", [source, values[0]])
    add = ir.node("Add", [matmul.outputs[0], values[1]])
    split = ir.node("Split", [add.outputs[0], values[2]], {"axis": -1}, num_outputs=2)
    graph.insert_before(min(adds, key=list(graph).index), [matmul, add, split])
    for old, new in zip(adds, split.outputs, strict=True):
        old.outputs[0].replace_all_uses_with(new)
        graph.remove(old, safe=True)
    for product in products:
        graph.remove(product, safe=True)


def _initializer(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    value = ir.Value(name=name, const_value=ir.tensor(array, name=name))
    value.dtype, value.shape = value.const_value.dtype, ir.Shape(array.shape)  # type: ignore[union-attr]
    graph.register_initializer(value)
    return value

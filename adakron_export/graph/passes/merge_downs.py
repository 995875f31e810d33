"""Merges the two down-projections of an adapter into one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from adakron_export.graph.passes.rewriting import initializer


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
        groups: dict[ir.Value | None, list[_Affine]] = {}
        for node in model.graph:
            affine = _match(node) if node.op_type == "Add" else None
            if affine is not None:
                groups.setdefault(affine.product.inputs[0], []).append(affine)
        pairs = [pair for pair in groups.values() if len(pair) == 2 and _fits(*pair)]
        for pair in pairs:
            _merge(model.graph, pair)
        return ir.passes.PassResult(model, modified=bool(pairs))


@dataclass(frozen=True, slots=True)
class _Affine:
    """A product with a constant weight ``[in, out]``, and the addition of a constant bias ``[out]``."""

    product: ir.Node
    add: ir.Node
    weight: np.ndarray
    bias: np.ndarray


def _match(add: ir.Node) -> _Affine | None:
    value, bias = add.inputs
    product = value.producer() if value is not None else None
    if product is None or product.op_type != "MatMul" or bias is None or len(product.outputs[0].uses()) != 1:
        return None
    weight = product.inputs[1]
    if weight is None or weight.const_value is None or bias.const_value is None:
        return None
    return _Affine(product, add, weight.const_value.numpy(), bias.const_value.numpy())


def _fits(first: _Affine, second: _Affine) -> bool:
    plain = first.weight.ndim == second.weight.ndim == 2 and first.bias.ndim == second.bias.ndim == 1
    columns = first.weight.shape[-1] + second.weight.shape[-1]
    return plain and len(first.weight) == len(second.weight) and columns <= MergeDownProjectionsPass.MAX_COLUMNS


def _merge(graph: ir.Graph, pair: list[_Affine]) -> None:
    name = str(pair[0].add.outputs[0].name)
    constants = {
        f"{name}_merged_weight": np.concatenate([affine.weight for affine in pair], axis=1),
        f"{name}_merged_bias": np.concatenate([affine.bias for affine in pair]),
        f"{name}_merged_split": np.array([affine.weight.shape[1] for affine in pair], dtype=np.int64),
    }
    values = [initializer(graph, key, array) for key, array in constants.items()]
    matmul = ir.node("MatMul", [pair[0].product.inputs[0], values[0]])
    add = ir.node("Add", [matmul.outputs[0], values[1]])
    split = ir.node("Split", [add.outputs[0], values[2]], {"axis": -1}, num_outputs=2)
    for node in (matmul, add, split):
        node.metadata_props.update(pair[0].product.metadata_props)
    graph.insert_before(pair[0].product, [matmul, add, split])
    for affine, output in zip(pair, split.outputs, strict=True):
        affine.add.outputs[0].replace_all_uses_with(output)
        graph.remove([affine.add, affine.product], safe=True)

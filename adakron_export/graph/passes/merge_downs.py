"""Merges the two down-projections of an adapter into one."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from adakron_export.graph.passes.rewriting import Affine, affine, initializer


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
        groups: dict[ir.Value | None, list[Affine]] = {}
        for node in model.graph:
            found = affine(node)
            if found is not None:
                groups.setdefault(found.product.inputs[0], []).append(found)
        pairs = [pair for pair in groups.values() if len(pair) == 2 and _fits(*pair)]
        for pair in pairs:
            _merge(model.graph, pair)
        return ir.passes.PassResult(model, modified=bool(pairs))


def _fits(first: Affine, second: Affine) -> bool:
    columns = first.weight.shape[-1] + second.weight.shape[-1]
    return len(first.weight) == len(second.weight) and columns <= MergeDownProjectionsPass.MAX_COLUMNS


def _merge(graph: ir.Graph, pair: list[Affine]) -> None:
    name = str(pair[0].add.outputs[0].name)
    constants = {
        f"{name}_merged_weight": np.concatenate([each.weight for each in pair], axis=1),
        f"{name}_merged_bias": np.concatenate([each.bias for each in pair]),
        f"{name}_merged_split": np.array([each.weight.shape[1] for each in pair], dtype=np.int64),
    }
    values = [initializer(graph, key, array) for key, array in constants.items()]
    matmul = ir.node("MatMul", [pair[0].product.inputs[0], values[0]])
    add = ir.node("Add", [matmul.outputs[0], values[1]])
    split = ir.node("Split", [add.outputs[0], values[2]], {"axis": -1}, num_outputs=2)
    for node in (matmul, add, split):
        node.metadata_props.update(pair[0].product.metadata_props)
    graph.insert_before(pair[0].product, [matmul, add, split])
    for each, output in zip(pair, split.outputs, strict=True):
        each.add.outputs[0].replace_all_uses_with(output)
        graph.remove([each.add, each.product], safe=True)

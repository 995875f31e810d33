"""4-bit weights, for devices that are short of memory and for decoders, which read every weight for each token."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir

from adakron_export.graph.passes.quantize import is_product, product_name
from adakron_export.graph.passes.rewriting import array_of, initializer, integer_of, replace_node

_TOP, _BOTTOM = 7, -8  # of int4
_SHRINK = (1.0, 0.94, 0.88, 0.82)  # of the largest magnitude: cutting it may leave the others finer steps


class Int4WeightsPass(ir.passes.InPlacePass):
    """Weights in int4, one scale per `BLOCK` rows of a column; activations as they are.

    1. Rewrites ``MatMul(X, W)`` and ``Gemm(X, W, B)`` with an initializer ``W`` into a ``DequantizeLinear`` with
       blocks (opset 21) and a ``MatMul``, which ONNX Runtime makes its ``MatMulNBits`` of.
    2. The scale of a block is the one with the smallest squared error, of several.
    3. Products that read the same ``X`` (queries, keys and values; a gate and what it lets through) become one, and a
       ``Split``.
    4. The same products as for `DynamicInt8Pass` stay as they are, adapters among them.
    """

    BLOCK = 32

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite the main graph."""
        groups: dict[ir.Value | None, list[ir.Node]] = {}
        for node in model.graph:
            if is_product(node):
                groups.setdefault(node.inputs[0], []).append(node)
        for nodes in groups.values():
            _rewrite(model.graph, nodes)
        return ir.passes.PassResult(model, modified=bool(groups))


def _rewrite(graph: ir.Graph, nodes: list[ir.Node]) -> None:
    """Put one product in the place of those that read the same."""
    names, levels, scales = zip(*map(_rounded, nodes), strict=True)
    name = names[0] if len(nodes) == 1 else f"{'_'.join(names)}_merged"
    held = [
        initializer(graph, f"{name}_int4", np.concatenate(levels, axis=1)),
        initializer(graph, f"{name}_int4_scale", np.concatenate(scales, axis=1)),
    ]
    wide = ir.node("DequantizeLinear", held, {"axis": 0, "block_size": Int4WeightsPass.BLOCK})
    wide.outputs[0].dtype, wide.outputs[0].shape = ir.DataType.FLOAT, held[0].shape
    added = [wide, ir.node("MatMul", [nodes[0].inputs[0], wide.outputs[0]])]
    if len(nodes) > 1:
        sizes = initializer(graph, f"{name}_split", np.array([each.shape[1] for each in levels], dtype=np.int64))
        added.append(ir.node("Split", [added[1].outputs[0], sizes], {"axis": -1}, num_outputs=len(nodes)))
    for node in added:
        node.metadata_props.update(nodes[0].metadata_props)
    graph.insert_before(nodes[0], added)
    for node, result in zip(nodes, added[-1].outputs, strict=True):
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        if bias is None:
            replace_node(graph, node, [], result)
        else:
            replace_node(graph, node, [ir.node("Add", [result, bias])])


def _rounded(node: ir.Node) -> tuple[str, np.ndarray, np.ndarray]:
    """A name for a product's weight, its levels and its scales."""
    weight, transposed = node.inputs[1], bool(integer_of(node, "transB"))
    assert weight is not None
    array = array_of(weight).T if transposed else array_of(weight)
    return product_name(weight, transposed=transposed), *round_in_blocks(array, Int4WeightsPass.BLOCK)


def round_in_blocks(array: np.ndarray, block: int) -> tuple[np.ndarray, np.ndarray]:
    """Levels and scales that give a weight back.

    Args:
        array: ``[in, out]``.
        block: Rows that share a scale.

    Returns:
        int4 ``[in, out]``, and float32 ``[in / block, out]``, rounded up.
    """
    rows, columns = array.shape
    count = -(-rows // block)
    blocks = np.zeros((count * block, columns), dtype=np.float32)
    blocks[:rows] = array
    blocks = blocks.reshape(count, block, columns)
    top, bottom = blocks.max(axis=1), blocks.min(axis=1)
    extreme = np.where(top > -bottom, top, bottom)
    best = np.ones_like(top)
    least = np.full_like(top, np.inf)
    # With a scale of the sign of its extreme, a block has -8 for that one; without, 7.
    for full in (np.abs(extreme) / _TOP, extreme / _BOTTOM):
        for share in _SHRINK:
            scale = np.where(extreme == 0, 1, full * share).astype(np.float32)
            error = ((_levels(blocks, scale) * scale[:, None] - blocks) ** 2).sum(axis=1)
            better = error < least
            best, least = np.where(better, scale, best), np.where(better, error, least)
    levels = _levels(blocks, best).reshape(-1, columns)[:rows]
    return levels.astype(ml_dtypes.int4), best


def _levels(blocks: np.ndarray, scale: np.ndarray) -> np.ndarray:
    levels: np.ndarray = np.clip(np.round(blocks / scale[:, None]), _BOTTOM, _TOP)
    return levels

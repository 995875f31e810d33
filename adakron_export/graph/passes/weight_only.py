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
    3. The same products as for `DynamicInt8Pass` stay as they are, adapters among them.
    """

    BLOCK = 32

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite the main graph."""
        products = [node for node in model.graph if is_product(node)]
        for node in products:
            _rewrite(model.graph, node)
        return ir.passes.PassResult(model, modified=bool(products))


def _rewrite(graph: ir.Graph, node: ir.Node) -> None:
    value, weight = node.inputs[0], node.inputs[1]
    assert weight is not None
    transposed = bool(integer_of(node, "transB"))
    name = product_name(weight, transposed=transposed)
    rounded, steps = round_in_blocks(array_of(weight).T if transposed else array_of(weight), Int4WeightsPass.BLOCK)
    levels = initializer(graph, f"{name}_int4", rounded)
    scales = initializer(graph, f"{name}_int4_scale", steps)
    wide = ir.node("DequantizeLinear", [levels, scales], {"axis": 0, "block_size": Int4WeightsPass.BLOCK})
    wide.outputs[0].dtype, wide.outputs[0].shape = ir.DataType.FLOAT, levels.shape
    added = [wide, ir.node("MatMul", [value, wide.outputs[0]])]
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        added.append(ir.node("Add", [added[-1].outputs[0], node.inputs[2]]))
    replace_node(graph, node, added)


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

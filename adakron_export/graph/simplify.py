"""Folds constants and removes what a captured graph does not need: onnxscript's optimiser, run once."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common
from onnxscript import optimizer, rewriter


def simplify(model: ir.Model) -> None:
    """In place.

    `torch.onnx.export(optimize=True)` runs onnxscript's rules twice, which is most of the time that it optimises for.
    The second time none of them matches what the first left of the supported backbones.
    """
    optimizer.inline(model)
    common.CommonSubexpressionEliminationPass()(model)  # layers that share weights share their transposed copies
    optimizer.fold_constants(model, onnx_shape_inference=True)
    rewriter.rewrite(model)
    optimizer.fold_constants(model, onnx_shape_inference=True)
    ir.passes.Sequential(
        common.RemoveUnusedNodesPass(),
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.DeduplicateInitializersPass(),
        common.CommonSubexpressionEliminationPass(),
        common.OutputFixPass(),
        common.NameFixPass(),
    )(model)

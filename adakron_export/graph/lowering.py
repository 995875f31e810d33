"""Rewrites a captured graph for a runtime."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir
from onnx_ir.passes import common

from adakron_export.graph.keys import REWRITES_KEY
from adakron_export.graph.passes.cache_attention import CacheAttentionPass
from adakron_export.graph.passes.rms_norm import RmsNormPass
from adakron_export.graph.passes.rotary import RotaryPass
from adakron_export.graph.passes.share_transposed import ShareTransposedPass
from adakron_export.graph.targets import Target

# For a tied head, norms, rotations, a cache; nobody misses them elsewhere.
_WHERE_THERE_IS_ONE = (ShareTransposedPass, RmsNormPass, RotaryPass, CacheAttentionPass)


def lower(model: ir.Model, target: Target, *, quantise: Sequence[ir.passes.PassBase] = ()) -> ir.Model:
    """A new graph for a runtime; the captured one stays as it is, and both share their weights.

    Args:
        model: The captured graph.
        target: The runtime.
        quantise: Round weights to 8 bits; before functions are inlined, so that those of the adapters stay.
    """
    steps: list[ir.passes.PassBase] = [*quantise]
    steps += [] if target.keeps_function else [common.InlinePass()]
    steps += target.passes()
    steps += [ShareTransposedPass(), common.RemoveUnusedNodesPass(), common.RemoveUnusedOpsetsPass()]
    lowered = model.clone()
    rewrites = []
    for step in steps:
        result = step(lowered)
        lowered = result.model
        name = type(step).__name__.removesuffix("Pass")
        optional = isinstance(step, _WHERE_THERE_IS_ONE) and not result.modified
        if type(step).__module__.startswith(f"{__package__}.") and not optional:
            rewrites.append(name if result.modified else f"{name} (no match)")
    lowered.metadata_props[REWRITES_KEY] = ", ".join(rewrites)
    return lowered

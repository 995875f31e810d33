"""Where a graph runs: which rewrites it gets, and how its session is set up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import onnx_ir as ir
from onnx_ir.passes import common

from adakron_export.errors import ExportError
from adakron_export.graph.passes.merge_downs import MergeDownProjectionsPass


@dataclass(frozen=True, slots=True)
class Target:
    """A runtime to lower for.

    Attributes:
        name: As `--target` takes it.
        keeps_function: Whether `adakron::KronAdapter` stays a call, or is inlined.
        passes: Made anew for each graph, in their order.
        disabled_optimizers: ONNX Runtime optimisers to leave off.
    """

    name: str
    keeps_function: bool
    passes: tuple[Callable[[], ir.passes.InPlacePass], ...] = ()
    disabled_optimizers: tuple[str, ...] = ()


TARGETS = {
    target.name: target
    for target in (
        # Any runtime that inlines functions.
        Target("portable", keeps_function=True),
        # ONNX Runtime's CPU kernel of SkipLayerNormalization is slower than Add and LayerNormalization (1.32).
        Target("ort-cpu", False, (MergeDownProjectionsPass,), disabled_optimizers=("SkipLayerNormFusion",)),
        Target("ort-cuda", False, (MergeDownProjectionsPass,)),
        # Its parser inlines functions, and shows their names in messages and in the engine inspector.
        Target("tensorrt", keeps_function=True),
    )
}


def target_named(name: str) -> Target:
    """A row of `TARGETS`.

    Raises:
        ExportError: There is no such target.
    """
    if name not in TARGETS:
        raise ExportError(f"target {name!r} is unknown; choose one of {', '.join(TARGETS)}")
    return TARGETS[name]


def lower(model: ir.Model, target: Target) -> ir.Model:
    """A new graph for a runtime; the captured one stays as it is, and both share their weights."""
    lowered = model.clone()
    steps: list[ir.passes.PassBase] = [] if target.keeps_function else [common.InlinePass()]
    steps += [make() for make in target.passes]
    steps += [common.RemoveUnusedNodesPass(), common.RemoveUnusedOpsetsPass()]
    return ir.passes.Sequential(*steps)(lowered).model

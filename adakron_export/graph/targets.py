"""Where a graph runs: which rewrites it gets, and how its session is set up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import onnx_ir as ir
from onnx_ir.passes import common

from adakron_export.errors import ExportError
from adakron_export.graph.passes.merge_downs import MergeDownProjectionsPass
from adakron_export.graph.passes.quantize import DynamicInt8Pass


@dataclass(frozen=True, slots=True)
class Target:
    """A runtime to lower for.

    Attributes:
        name: As `--target` takes it.
        keeps_function: Whether `adakron::KronAdapter` stays a call, or is inlined.
        passes: Made anew for each graph, in their order.
        disabled_optimizers: ONNX Runtime optimisers to leave off.
        takes_int8: Whether it computes with int8 weights and activations that are quantised at each run.
    """

    name: str
    keeps_function: bool
    passes: tuple[Callable[[], ir.passes.InPlacePass], ...] = ()
    disabled_optimizers: tuple[str, ...] = ()
    takes_int8: bool = False


TARGETS = {
    target.name: target
    for target in (
        # Any runtime that inlines functions.
        Target("portable", keeps_function=True, takes_int8=True),
        # ONNX Runtime's CPU kernel of SkipLayerNormalization is slower than Add and LayerNormalization (1.32).
        Target(
            "ort-cpu",
            False,
            (MergeDownProjectionsPass,),
            disabled_optimizers=("SkipLayerNormFusion",),
            takes_int8=True,
        ),
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


def check_dtype(target: Target, dtype: str) -> None:
    """Raise where a target cannot compute in a dtype.

    Raises:
        ExportError: It cannot.
    """
    if dtype == "int8" and not target.takes_int8:
        able = [each.name for each in TARGETS.values() if each.takes_int8]
        raise ExportError(f"dtype int8 is for CPUs: use target {' or '.join(able)}, or fp16 for {target.name}")


def lower(model: ir.Model, target: Target, *, int8: bool = False) -> ir.Model:
    """A new graph for a runtime; the captured one stays as it is, and both share their weights.

    Args:
        model: As it was captured.
        target: The runtime.
        int8: Whether weights become int8; those of the adapters do not.
    """
    lowered = model.clone()
    steps: list[ir.passes.PassBase] = [DynamicInt8Pass()] if int8 else []
    steps += [] if target.keeps_function else [common.InlinePass()]
    steps += [make() for make in target.passes]
    steps += [common.RemoveUnusedNodesPass(), common.RemoveUnusedOpsetsPass()]
    return ir.passes.Sequential(*steps)(lowered).model

"""Where a graph runs: which rewrites it gets, and how its session is set up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

import onnx_ir as ir
from onnx_ir.passes import common

from adakron_export.artifact import QUANTISED_DTYPES
from adakron_export.errors import ExportError
from adakron_export.graph.passes.merge_downs import MergeDownProjectionsPass


class Quantisation(Enum):
    """How a runtime computes with 8 bits."""

    NOT = "not at all"
    DYNAMIC = "in int8, activations are quantised at each run"
    STATIC = "in int8 or fp8, activations have fixed scales from a calibration, all else is in half precision"

    def computes(self, dtype: str) -> bool:
        """Whether it has a dtype of 8 bits."""
        return self is Quantisation.STATIC or (self is Quantisation.DYNAMIC and dtype == "int8")


@dataclass(frozen=True, slots=True)
class Target:
    """A runtime to lower for.

    Attributes:
        name: As `--target` takes it.
        keeps_function: Whether `adakron::KronAdapter` stays a call, or is inlined.
        passes: Made anew for each graph, in their order.
        disabled_optimizers: ONNX Runtime optimisers to leave off.
        quantisation: How it computes with 8 bits.
    """

    name: str
    keeps_function: bool
    passes: tuple[Callable[[], ir.passes.InPlacePass], ...] = ()
    disabled_optimizers: tuple[str, ...] = ()
    quantisation: Quantisation = Quantisation.NOT


TARGETS = {
    target.name: target
    for target in (
        # Any runtime that inlines functions.
        Target("portable", keeps_function=True, quantisation=Quantisation.DYNAMIC),
        # ONNX Runtime's CPU kernel of SkipLayerNormalization is slower than Add and LayerNormalization (1.32).
        Target(
            "ort-cpu",
            False,
            (MergeDownProjectionsPass,),
            disabled_optimizers=("SkipLayerNormFusion",),
            quantisation=Quantisation.DYNAMIC,
        ),
        Target("ort-cuda", False, (MergeDownProjectionsPass,)),
        # Its parser inlines functions, and shows their names in messages and in the engine inspector.
        Target("tensorrt", keeps_function=True, quantisation=Quantisation.STATIC),
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


def check_dtype(target: Target, dtype: str, *, opset: int, calibrated: bool) -> None:
    """Raise where a target cannot compute in a dtype.

    Args:
        target: The runtime.
        dtype: Of the graph.
        opset: Version of the standard operators.
        calibrated: Whether there is text to calibrate on.

    Raises:
        ExportError: It cannot, or not with this opset, or text is missing or has no use.
    """
    quantised = dtype in QUANTISED_DTYPES
    static = quantised and target.quantisation is Quantisation.STATIC
    if quantised and not target.quantisation.computes(dtype):
        able = [each.name for each in TARGETS.values() if each.quantisation.computes(dtype)]
        raise ExportError(f"target {target.name} has no {dtype}: use {', '.join(able)}, or fp16 for {target.name}")
    if static and not calibrated:
        raise ExportError(f"{dtype} for {target.name} needs text to find its scales on; pass --data (data=...)")
    if calibrated and not static:
        raise ExportError("--data is for int8 and fp8 with target tensorrt; nothing else is calibrated")
    if static and opset < 19:
        raise ExportError(f"{dtype} for {target.name} needs opset 19 or later, for scales in half precision")


def lower(model: ir.Model, target: Target, *, quantise: ir.passes.InPlacePass | None = None) -> ir.Model:
    """A new graph for a runtime; the captured one stays as it is, and both share their weights.

    Args:
        model: As it was captured.
        target: The runtime.
        quantise: Rounds weights to 8 bits; before functions are inlined, so that those of the adapters stay.
    """
    lowered = model.clone()
    steps: list[ir.passes.PassBase] = [quantise] if quantise is not None else []
    steps += [] if target.keeps_function else [common.InlinePass()]
    steps += [make() for make in target.passes]
    steps += [common.RemoveUnusedNodesPass(), common.RemoveUnusedOpsetsPass()]
    return ir.passes.Sequential(*steps)(lowered).model

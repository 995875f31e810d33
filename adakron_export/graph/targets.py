"""Where a graph runs: which rewrites it gets, and how its session is set up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import onnx_ir as ir
from onnx_ir.passes import common

from adakron_export.artifact import INT4, QUANTISED_DTYPES, REWRITES_KEY
from adakron_export.device import Device
from adakron_export.errors import ExportError
from adakron_export.graph.passes.fold_biases import FoldBiasesPass
from adakron_export.graph.passes.fuse_attention import ATTENTION_OPSET, FuseAttentionPass
from adakron_export.graph.passes.merge_downs import MergeDownProjectionsPass
from adakron_export.graph.passes.share_transposed import ShareTransposedPass

DEFAULT_OPSET, INT4_OPSET = 20, 21


@dataclass(frozen=True, slots=True)
class Target:
    """A runtime to lower for.

    Attributes:
        name: As `--target` takes it.
        keeps_function: Whether `adakron::KronAdapter` stays a call, or is inlined.
        passes: Made anew for each graph, in their order.
        disabled_optimizers: ONNX Runtime optimisers to leave off.
        dynamic_int8: Whether it computes with int8 whose activations are quantised at each run.
        any_session: Whether the graph must be right in sessions that we did not open: no product may saturate.
        int4: Whether it computes with 4-bit weights.
        calibrated: Dtypes of 8 bits that it computes with, where activations have fixed scales from a calibration.
        float_dtype: Of all else in a calibrated graph.
        unsigned: Whether calibrated activations are uint8, around 128, which x86 multiplies faster than int8.
        device: Where an export for it is validated.
        opset: Version of the standard operators where nobody asks for another.
    """

    name: str
    keeps_function: bool
    passes: tuple[Callable[[], ir.passes.InPlacePass], ...] = ()
    disabled_optimizers: tuple[str, ...] = ()
    dynamic_int8: bool = False
    any_session: bool = False
    int4: bool = False
    calibrated: tuple[str, ...] = ()
    float_dtype: str = "fp32"
    unsigned: bool = False
    device: Device = Device.CPU
    opset: int = DEFAULT_OPSET

    def default_opset(self, dtype: str) -> int:
        """The version of the standard operators where nobody asks for another."""
        return max(self.opset, INT4_OPSET) if dtype == INT4 else self.opset

    def floating(self, dtype: str) -> str:
        """The dtype of all that is not in 8 bits, where the graph is in ``dtype``."""
        return self.float_dtype if dtype in (*QUANTISED_DTYPES, INT4) else dtype


TARGETS = {
    target.name: target
    for target in (
        # Any runtime that inlines functions.
        Target("portable", keeps_function=True, dynamic_int8=True, any_session=True, int4=True),
        # ONNX Runtime's CPU kernel of SkipLayerNormalization is slower than Add and LayerNormalization (1.32).
        Target(
            "ort-cpu",
            False,
            (MergeDownProjectionsPass, FuseAttentionPass, FoldBiasesPass),
            disabled_optimizers=("SkipLayerNormFusion",),
            dynamic_int8=True,
            int4=True,
            opset=ATTENTION_OPSET,
        ),
        # It reads no functions of a graph's own, and is slow with int8 that is quantised at each run.
        Target(
            "openvino", False, (MergeDownProjectionsPass,), calibrated=("int8",), unsigned=True, device=Device.OPENVINO
        ),
        Target("ort-cuda", False, (MergeDownProjectionsPass,)),
        # Its parser inlines functions, and shows their names in messages and in the engine inspector.
        Target("tensorrt", keeps_function=True, calibrated=QUANTISED_DTYPES, float_dtype="fp16"),
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
    static = dtype in target.calibrated
    if dtype in QUANTISED_DTYPES and not static and not (dtype == "int8" and target.dynamic_int8):
        able = [each.name for each in TARGETS.values()
                if dtype in each.calibrated or (dtype == "int8" and each.dynamic_int8)]  # fmt: skip
        raise ExportError(f"target {target.name} has no {dtype}: use {', '.join(able)}, or fp16 for {target.name}")
    if dtype == INT4 and not target.int4:
        able = [each.name for each in TARGETS.values() if each.int4]
        raise ExportError(f"target {target.name} has no int4: use {' or '.join(able)}")
    if dtype == INT4 and opset < INT4_OPSET:
        raise ExportError(f"int4 needs opset {INT4_OPSET} or later, for scales by block; opset is {opset}")
    if static and not calibrated:
        raise ExportError(f"{dtype} for {target.name} needs text to find its scales on; pass --data (data=...)")
    if calibrated and not static:
        raise ExportError("--data is for int8 and fp8 with target tensorrt or openvino; nothing else is calibrated")
    if static and opset < 19:
        raise ExportError(f"{dtype} for {target.name} needs opset 19 or later, for scales in half precision")


def lower(model: ir.Model, target: Target, *, quantise: Sequence[ir.passes.PassBase] = ()) -> ir.Model:
    """A new graph for a runtime; the captured one stays as it is, and both share their weights.

    Args:
        model: As it was captured.
        target: The runtime.
        quantise: Round weights to 8 bits; before functions are inlined, so that those of the adapters stay.
    """
    steps: list[ir.passes.PassBase] = [*quantise]
    steps += [] if target.keeps_function else [common.InlinePass()]
    steps += [make() for make in target.passes]
    steps += [ShareTransposedPass(), common.RemoveUnusedNodesPass(), common.RemoveUnusedOpsetsPass()]
    lowered = model.clone()
    rewrites = []
    for step in steps:
        result = step(lowered)
        lowered = result.model
        name = type(step).__name__.removesuffix("Pass")
        optional = isinstance(step, ShareTransposedPass) and not result.modified
        if type(step).__module__.startswith(f"{__package__}.") and not optional:
            rewrites.append(name if result.modified else f"{name} (no match)")
    lowered.metadata_props[REWRITES_KEY] = ", ".join(rewrites)
    return lowered

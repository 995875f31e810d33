"""The table of targets, the runtimes that a graph is lowered for; and what a graph is to be.

Rows import their passes when they are asked for them, so that reading the table costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated

import msgspec

from adakron_export.errors import ExportError
from adakron_export.graph.dtypes import DTYPES, dtype_named
from adakron_export.graph.keys import ATTENTION_OPSET

if TYPE_CHECKING:
    import onnx_ir as ir

DEFAULT_OPSET = 20


@dataclass(frozen=True, slots=True)
class Target:
    """A row.

    Attributes:
        name: Name that ``--target`` takes.
        keeps_function: Whether `adakron::KronAdapter` stays a call, or is inlined.
        passes: Makes the rewrites anew for each graph, in their order.
        disabled_optimizers: ONNX Runtime optimisers to leave off.
        any_session: Whether the graph must be right in sessions that we did not open: no product may saturate.
        float_dtype: What a quantised graph computes all else in.
        unsigned: Whether calibrated activations are uint8, around 128, which x86 multiplies faster than int8.
        runtime: The runtime that an export for it is validated in; a name of `runtimes.table`.
        opset: Version of the standard operators where nobody asks for another.
        optional_inputs: Whether an input may have an initializer, which counts where it is not given; other runtimes
            take that for a constant.
    """

    name: str
    keeps_function: bool
    passes: Callable[[], list[ir.passes.InPlacePass]] = list
    disabled_optimizers: tuple[str, ...] = ()
    any_session: bool = False
    float_dtype: str = "fp32"
    unsigned: bool = False
    runtime: str = "cpu"
    opset: int = DEFAULT_OPSET
    optional_inputs: bool = True

    def floating(self, dtype: str) -> str:
        """What everything is in that is not rounded to 8 or 4 bits, where the graph is in ``dtype``."""
        return self.float_dtype if dtype_named(dtype).quantised else dtype


def _merged() -> list[ir.passes.InPlacePass]:
    from adakron_export.graph.passes.merge_downs import MergeDownProjectionsPass

    return [MergeDownProjectionsPass()]


def _for_ort_cpu() -> list[ir.passes.InPlacePass]:
    from adakron_export.graph.passes.cache_attention import CacheAttentionPass
    from adakron_export.graph.passes.fold_biases import FoldBiasesPass
    from adakron_export.graph.passes.fuse_attention import FuseAttentionPass
    from adakron_export.graph.passes.rms_norm import RmsNormPass
    from adakron_export.graph.passes.rotary import RotaryPass

    return [*_merged(), RmsNormPass(), RotaryPass(), FuseAttentionPass(), CacheAttentionPass(), FoldBiasesPass()]


TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        # Any runtime that inlines functions.
        Target("portable", keeps_function=True, any_session=True),
        # ONNX Runtime's CPU kernel of SkipLayerNormalization is slower than Add and LayerNormalization (1.32).
        Target(
            "ort-cpu",
            keeps_function=False,
            passes=_for_ort_cpu,
            disabled_optimizers=("SkipLayerNormFusion",),
            opset=ATTENTION_OPSET,
        ),
        # It reads no functions of a graph's own, and is slow with int8 that is quantised at each run.
        Target(
            "openvino",
            keeps_function=False,
            passes=_merged,
            unsigned=True,
            runtime="openvino",
            optional_inputs=False,
        ),
        Target("ort-cuda", keeps_function=False, passes=_merged),
        # Its parser inlines functions, and shows their names in messages and in the engine inspector.
        Target("tensorrt", keeps_function=True, float_dtype="fp16", optional_inputs=False),
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


@dataclass(frozen=True, slots=True)
class GraphSpec:
    """What a graph is to be; an artifact's manifest stores it.

    Attributes:
        target: The runtime that it is lowered for, a name of `TARGETS`.
        dtype: What it computes in, a name of `DTYPES`. Outputs are float32 in any case.
        opset: Version of the standard operators, 18 to 23; ``None`` for the target's own, or the first one that can
            write the dtype.
        per_token: Whether every product in int8 has a scale per token; else only those with fewer columns than rows.
    """

    target: str = "portable"
    dtype: str = "fp32"
    opset: Annotated[int, msgspec.Meta(gt=0, le=2**53)] | None = None
    per_token: bool = False

    @property
    def label(self) -> str:
        """The dtype as people read it."""
        return f"{self.dtype}, scales per token" if self.per_token else self.dtype

    @property
    def lowered_for(self) -> Target:
        """The target's row."""
        return target_named(self.target)

    @property
    def floating(self) -> str:
        """What everything is in that is not rounded to 8 or 4 bits."""
        return self.lowered_for.floating(self.dtype)

    @property
    def needs_text(self) -> bool:
        """Whether its scales are found on text."""
        return self.target in dtype_named(self.dtype).calibrated

    def complete(self) -> GraphSpec:
        """With names as the tables have them, and an opset.

        Raises:
            ExportError: There is no such target or dtype.
        """
        target, dtype = target_named(self.target), dtype_named(self.dtype)
        opset = max(target.opset, dtype.least_opset) if self.opset is None else self.opset
        return replace(self, dtype=dtype.name, opset=opset)


def check_spec(spec: GraphSpec, *, calibrated: bool) -> None:
    """Raise where a target cannot compute in a dtype.

    Args:
        spec: Complete.
        calibrated: Whether there is text to calibrate on.

    Raises:
        ExportError: The target cannot, or not with this opset, or text is missing or has no use.
    """
    assert spec.opset is not None
    dtype = dtype_named(spec.dtype)
    if not dtype.runs_on(spec.target):
        instead = f", or fp16 for {spec.target}" if dtype.calibrated else ""
        raise ExportError(f"target {spec.target} has no {dtype.name}: use {_or(dtype.targets)}{instead}")
    if spec.per_token and (dtype.name, spec.needs_text) != ("int8", False):
        raise ExportError(
            f"scales per token are for int8 without a calibration; not for {spec.dtype} on {spec.target}"
        )
    if spec.opset < dtype.least_opset:
        raise ExportError(f"{dtype.name} needs opset {dtype.least_opset} or later; opset is {spec.opset}")
    if spec.needs_text and not calibrated:
        raise ExportError(f"{dtype.name} for {spec.target} needs text to find its scales on; pass --data (data=...)")
    if calibrated and not spec.needs_text:
        rows = [row for row in DTYPES.values() if row.calibrated]
        known = ", and ".join(f"{row.name} for {_or(row.calibrated)}" for row in rows)
        raise ExportError(
            f"--data has no use: {dtype.name} for {spec.target} has no scales to find on it; it is for {known}"
        )
    if spec.needs_text and spec.opset < dtype.calibrated_opset:
        raise ExportError(
            f"{dtype.name} for {spec.target} needs opset {dtype.calibrated_opset} or later, for scales in half "
            "precision"
        )


def _or(names: tuple[str, ...]) -> str:
    return " or ".join(filter(None, [", ".join(names[:-1]), names[-1]]))

"""The table of dtypes: what a graph of each computes in, how far it may be off, and the passes that make it.

A new quantisation is one row here and one pass. The rows import their passes when they are asked for them, so that
reading the table costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from adakron_export.errors import ExportError
from adakron_export.graph.tolerance import Tolerance

if TYPE_CHECKING:
    import onnx_ir as ir

    from adakron_export.graph.passes.static_quantization import Rounding
    from adakron_export.graph.targets import Target

FLOATING = ("fp32", "fp16", "bf16")  # what everything that is not rounded to 8 or 4 bits computes in


@dataclass(frozen=True, slots=True)
class Quantisation:
    """What the passes of a dtype are made for.

    Attributes:
        target: The runtime that the graph is lowered for.
        per_token: Whether every product has a scale per token; see `DynamicInt8Pass`.
        roundings: The fixed scales that a calibration found, by value; ``None`` without one.
    """

    target: Target
    per_token: bool = False
    roundings: Mapping[str, Rounding] | None = None


Passes = Callable[[Quantisation], "list[ir.passes.PassBase]"]


@dataclass(frozen=True, slots=True)
class Dtype:
    """A row.

    Attributes:
        name: Name that ``--dtype`` takes.
        tolerance: How far an output may be off.
        stored: What ONNX calls the types that its weights are stored in.
        synonyms: Other names that ``--dtype`` takes, such as PyTorch's.
        rounding: Largest relative error of one rounded number; ``None`` where the graph's own scales say it.
        dynamic: Targets that compute with it and need no calibration; ``None`` for all.
        calibrated: Targets that compute with it, where activations have fixed scales that are found on text.
        least_opset: The first opset that can write it.
        calibrated_opset: The first opset that can write it with fixed scales.
        falls_back_to: The next step of the ladder; ``None`` for the target's own floating dtype.
        passes: What rounds the weights of a captured graph; ``None`` for a dtype that the graph is captured in.
    """

    name: str
    tolerance: Tolerance
    stored: tuple[str, ...]
    synonyms: tuple[str, ...] = ()
    rounding: float | None = None
    dynamic: tuple[str, ...] | None = None
    calibrated: tuple[str, ...] = ()
    least_opset: int = 0
    calibrated_opset: int = 19
    falls_back_to: str | None = None
    passes: Passes | None = None

    @property
    def quantised(self) -> bool:
        """Whether weights are rounded to 8 bits or fewer, after the graph was captured in a floating dtype."""
        return self.passes is not None

    def runs_on(self, target: str) -> bool:
        """Whether a target computes with it at all."""
        return self.dynamic is None or target in (*self.dynamic, *self.calibrated)

    @property
    def targets(self) -> tuple[str, ...]:
        """The targets that compute with it, of a quantised one."""
        return tuple(dict.fromkeys((*(self.dynamic or ()), *self.calibrated)))


def _int8(wanted: Quantisation) -> list[ir.passes.PassBase]:
    from adakron_export.graph.passes.quantize import DynamicInt8Pass
    from adakron_export.graph.passes.unsigned_weights import UnsignedWeightsPass

    if wanted.target.name in DTYPES["int8"].calibrated:
        return _static("int8", wanted)
    return [DynamicInt8Pass(wanted.per_token), *([UnsignedWeightsPass()] if wanted.target.any_session else [])]


def _int4(_wanted: Quantisation) -> list[ir.passes.PassBase]:
    from adakron_export.graph.passes.weight_only import Int4WeightsPass

    return [Int4WeightsPass()]


def _static(kind: str, wanted: Quantisation) -> list[ir.passes.PassBase]:
    from adakron_export.graph.passes.static_quantization import Kind, StaticQuantizationPass

    assert wanted.roundings is not None
    return [StaticQuantizationPass(wanted.roundings, Kind(kind), unsigned=wanted.target.unsigned)]


# The relative part is what the dtype's own rounding, 2^-24, 2^-11 and 2^-8, comes to through the layers of a model;
# 8 and 4 bits have no such bound, and are held to what a sound export comes near to on real text.
_EIGHT_BITS = Tolerance(absolute=0.5, relative=0.15, cosine=0.97, top1=1.0, kl=0.3)
_FOUR_BITS = Tolerance(absolute=0.75, relative=0.2, cosine=0.95, top1=1.0, kl=0.6)
_FOR_CPUS = ("portable", "ort-cpu")
DTYPES: dict[str, Dtype] = {
    row.name: row
    for row in (
        Dtype(
            "fp32",
            Tolerance(absolute=1e-4, relative=0.0, cosine=0.99999, top1=1.0, kl=1e-6),
            stored=("FLOAT",),
            synonyms=("float32",),
            rounding=2.0**-24,
        ),
        Dtype(
            "fp16",
            Tolerance(absolute=2e-3, relative=1e-2, cosine=0.999, top1=1.0, kl=1e-2),
            stored=("FLOAT16",),
            synonyms=("float16", "half"),
            rounding=2.0**-11,
        ),
        Dtype(
            "bf16",
            Tolerance(absolute=2e-2, relative=8e-2, cosine=0.99, top1=1.0, kl=1e-1),
            stored=("BFLOAT16",),
            synonyms=("bfloat16",),
            rounding=2.0**-8,
        ),
        Dtype(
            "int8",
            _EIGHT_BITS,
            stored=("INT8", "UINT8"),
            dynamic=_FOR_CPUS,
            calibrated=("openvino", "tensorrt"),
            passes=_int8,
        ),
        Dtype(
            "fp8",
            _EIGHT_BITS,
            stored=("FLOAT8E4M3FN",),
            dynamic=(),
            calibrated=("tensorrt",),
            passes=lambda wanted: _static("fp8", wanted),
        ),
        Dtype(
            "int4",
            _FOUR_BITS,
            stored=("INT4", "UINT4"),
            dynamic=_FOR_CPUS,
            least_opset=21,  # scales by block
            falls_back_to="int8",
            passes=_int4,
        ),
    )
}


def dtype_named(name: str) -> Dtype:
    """A row of `DTYPES`, by its name or a synonym.

    Raises:
        ExportError: There is no such dtype.
    """
    found = DTYPES.get(DTYPE_SYNONYMS.get(name, name))
    if found is None:
        raise ExportError(f"dtype {name!r} is unknown; choose one of {', '.join(DTYPES)}")
    return found


DTYPE_SYNONYMS: dict[str, str] = {synonym: row.name for row in DTYPES.values() for synonym in row.synonyms}


def dtype_stored_as(onnx_type: Any) -> Dtype | None:
    """The dtype whose weights are stored in a type of ONNX, an `ir.DataType`; ``None`` where there is none."""
    return _BY_TYPE.get(onnx_type.name)


_BY_TYPE: dict[str, Dtype] = {name: row for row in DTYPES.values() for name in row.stored}

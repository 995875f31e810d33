"""From a folded model to the graph of a target: what every export does."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import onnx_ir as ir
import torch

from adakron_export.adapter.task_model import TaskModel
from adakron_export.artifact import INT4
from adakron_export.graph.capture import capture
from adakron_export.graph.passes.quantize import DynamicInt8Pass, Int8TablesPass
from adakron_export.graph.passes.share_transposed import CopyTransposedPass
from adakron_export.graph.passes.static_quantization import Kind, Rounding, StaticQuantizationPass
from adakron_export.graph.passes.unsigned_weights import UnsignedWeightsPass
from adakron_export.graph.passes.weight_only import Int4WeightsPass
from adakron_export.graph.sample import sample_batch
from adakron_export.graph.targets import Target, lower

Calibrate = Callable[[ir.Model], Mapping[str, Rounding]]


def torch_dtype(target: Target, dtype: str) -> torch.dtype:
    """What a graph of a target and dtype is captured in."""
    return {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[target.floating(dtype)]


def build_graph(
    folded: TaskModel, *, opset: int, target: Target, dtype: str, calibrate: Calibrate | None = None,
    per_token: bool = False,
) -> ir.Model:  # fmt: skip
    """Trace a model on a sample batch and lower it.

    Args:
        folded: In its `torch_dtype`.
        opset: Version of the standard operators.
        target: What it is lowered for.
        dtype: Of the graph: ``fp32``, ``fp16``, ``bf16``, ``int8``, ``fp8`` or ``int4``.
        calibrate: Finds the roundings for fixed scales; without, a graph that needs them stays in half precision.
        per_token: As of `DynamicInt8Pass`.

    Raises:
        ExportError: It cannot be exported.
    """
    sample = sample_batch(folded.config, folded.task, folded.signature)
    floating = next(folded.parameters()).dtype
    sample = {name: t.to(floating) if t.is_floating_point() else t for name, t in sample.items()}
    captured = capture(folded, sample, opset=opset)
    if calibrate is not None or dtype in ("int8", INT4):
        CopyTransposedPass()(captured)
    passes: list[ir.passes.PassBase] = []
    if calibrate is not None:
        passes.append(StaticQuantizationPass(calibrate(captured), Kind(dtype), unsigned=target.unsigned))
    elif dtype == "int8" and target.dynamic_int8:
        passes += [DynamicInt8Pass(per_token), *([UnsignedWeightsPass()] if target.any_session else [])]
    elif dtype == INT4:
        passes.append(Int4WeightsPass())
    if passes and target.floating(dtype) == "fp32":
        passes.append(Int8TablesPass())
    return lower(captured, target, quantise=passes)

"""From a folded model to the graph of a target: what every export does."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import onnx_ir as ir
import torch

from adakron_export.adapter.task_model import TaskModel
from adakron_export.artifact import QUANTISED_DTYPES
from adakron_export.graph.capture import capture
from adakron_export.graph.passes.quantize import DynamicInt8Pass
from adakron_export.graph.passes.static_quantization import Kind, Rounding, StaticQuantizationPass
from adakron_export.graph.sample import sample_batch
from adakron_export.graph.targets import Quantisation, Target, lower

Calibrate = Callable[[ir.Model], Mapping[str, Rounding]]


def torch_dtype(target: Target, dtype: str) -> torch.dtype:
    """What a graph of a target and dtype is captured in."""
    if dtype in QUANTISED_DTYPES:
        return torch.float16 if target.quantisation is Quantisation.STATIC else torch.float32
    return {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[dtype]


def build_graph(
    folded: TaskModel, *, opset: int, target: Target, dtype: str, calibrate: Calibrate | None = None
) -> ir.Model:
    """Trace a model on a sample batch and lower it.

    Args:
        folded: In its `torch_dtype`.
        opset: Version of the standard operators.
        target: What it is lowered for.
        dtype: Of the graph: ``fp32``, ``fp16``, ``bf16``, ``int8`` or ``fp8``.
        calibrate: Finds the roundings for fixed scales; without, a graph that needs them stays in half precision.

    Raises:
        ExportError: It cannot be exported.
    """
    sample = sample_batch(folded.config, folded.task, folded.signature)
    floating = next(folded.parameters()).dtype
    sample = {name: t.to(floating) if t.is_floating_point() else t for name, t in sample.items()}
    captured = capture(folded, sample, opset=opset)
    quantise: ir.passes.InPlacePass | None = None
    if calibrate is not None:
        quantise = StaticQuantizationPass(calibrate(captured), Kind(dtype))
    elif dtype == "int8" and target.quantisation is Quantisation.DYNAMIC:
        quantise = DynamicInt8Pass()
    return lower(captured, target, quantise=quantise)

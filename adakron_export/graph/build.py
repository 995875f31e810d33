"""From a folded model to the graph of a target: what every export does."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import onnx_ir as ir
import torch

from adakron_export.checkpoints.task_model import TaskModel
from adakron_export.graph.capture import capture
from adakron_export.graph.dtypes import Quantisation, dtype_named
from adakron_export.graph.lowering import lower
from adakron_export.graph.passes.bank import BankPass
from adakron_export.graph.passes.quantize import Int8TablesPass
from adakron_export.graph.passes.share_transposed import CopyTransposedPass
from adakron_export.graph.passes.static_quantization import Rounding
from adakron_export.graph.sample import sample_batch
from adakron_export.graph.targets import GraphSpec

Calibrate = Callable[[ir.Model], Mapping[str, Rounding]]


def torch_dtype(spec: GraphSpec) -> torch.dtype:
    """What a graph is captured in."""
    return {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[spec.floating]


def build_graph(
    folded: TaskModel, spec: GraphSpec, *, calibrate: Calibrate | None = None, bank: BankPass | None = None
) -> ir.Model:
    """Trace a model on a sample batch and lower it.

    Args:
        folded: The folded model, in its `torch_dtype`.
        spec: What the graph is to be; complete.
        calibrate: Finds the roundings for fixed scales; without, a graph that needs them stays in half precision.
        bank: Makes the adapters inputs, of a model that was folded without biases.

    Raises:
        ExportError: The model cannot be exported.
    """
    sample = sample_batch(folded.config, folded.signature)
    floating = next(folded.parameters()).dtype
    sample = {name: t.to(floating) if t.is_floating_point() else t for name, t in sample.items()}
    assert spec.opset is not None
    captured = capture(folded, sample, opset=spec.opset)
    if bank is not None:
        bank(captured)
    dtype = dtype_named(spec.dtype)
    if dtype.passes is None or (spec.needs_text and calibrate is None):
        return lower(captured, spec.lowered_for)
    CopyTransposedPass()(captured)
    roundings = calibrate(captured) if calibrate is not None else None
    passes = dtype.passes(Quantisation(spec.lowered_for, spec.per_token, roundings))
    if spec.floating == "fp32":
        passes.append(Int8TablesPass())
    return lower(captured, spec.lowered_for, quantise=passes)

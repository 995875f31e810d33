"""From a folded model to the graph of a target: what every export does."""

from __future__ import annotations

import onnx_ir as ir
import torch

from adakron_export.adapter.task_model import TaskModel
from adakron_export.graph.capture import capture
from adakron_export.graph.sample import sample_batch
from adakron_export.graph.targets import Target, lower

# What a graph of a dtype is captured in.
TORCH_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16, "int8": torch.float32}


def build_graph(folded: TaskModel, *, opset: int, target: Target, dtype: str) -> ir.Model:
    """Trace a model on a sample batch and lower it.

    Args:
        folded: In the dtype of `TORCH_DTYPES`.
        opset: Version of the standard operators.
        target: What it is lowered for.
        dtype: Of the graph: ``fp32``, ``fp16``, ``bf16`` or ``int8``.

    Raises:
        ExportError: It cannot be exported.
    """
    sample = sample_batch(folded.config, folded.task, folded.signature)
    floating = next(folded.parameters()).dtype
    sample = {name: t.to(floating) if t.is_floating_point() else t for name, t in sample.items()}
    return lower(capture(folded, sample, opset=opset), target, int8=dtype == "int8")

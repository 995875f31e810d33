"""Looks into a comparison that failed: the layer and the node where an artifact leaves its checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from adakron_export.artifact import Manifest
from adakron_export.runtimes.ort import Device
from adakron_export.sides import Side
from adakron_export.validation.batches import NamedBatch
from adakron_export.validation.divergence import Divergence, LayerError, first_divergence, layer_errors
from adakron_export.validation.tolerance import Tolerance

if TYPE_CHECKING:
    import onnx_ir as ir

    from adakron_export.adapter.checkpoint import Checkpoint
    from adakron_export.adapter.pooling import Pooling
    from adakron_export.tracing import TracedNode


@dataclass(frozen=True, slots=True)
class _Traced:
    """What both sides put out inside: the layers' errors, and the nodes of the artifact and of a fresh export."""

    layers: tuple[LayerError, ...]
    nodes: list[TracedNode]
    fresh: list[TracedNode]
    adapters: set[str]


def find_divergence(right: Side, candidate: Side, batch: NamedBatch, *, tolerance: Tolerance) -> Divergence | None:
    """The first layer, and the first node in it, where an artifact leaves its checkpoint.

    Args:
        right: A checkpoint; for other sides there is nothing to look into.
        candidate: An artifact.
        batch: Where they differ.
        tolerance: Of an output.

    Returns:
        ``None`` where a side shows no intermediate values.
    """
    found = _traced(right, candidate, batch, tolerance)
    if found is None:
        return None
    return first_divergence(batch.name, found.layers, found.nodes, found.fresh, lambda name: name in found.adapters)


def compare_layers(right: Side, candidate: Side, batch: NamedBatch, *, tolerance: Tolerance) -> tuple[LayerError, ...]:
    """The error of every layer; arguments as for `find_divergence`. Empty where a side shows none."""
    found = _traced(right, candidate, batch, tolerance)
    return found.layers if found else ()


def _traced(right: Side, candidate: Side, batch: NamedBatch, tolerance: Tolerance) -> _Traced | None:
    """Run both sides and show what is inside.

    The artifact's layers are held against the modules of the eager model. To know rounding from error, and to name
    the node, the checkpoint is exported anew in the same way, and both graphs are run side by side.
    """
    if right.eager is None or right.checkpoint is None or candidate.artifact is None:
        return None
    import onnx_ir as ir

    from adakron_export.adapter.layer import AdaKronLayer
    from adakron_export.runtimes.eager import EagerRunner
    from adakron_export.tracing import module_values, trace_graph

    assert isinstance(right.runner, EagerRunner)
    eager, manifest = right.eager, candidate.artifact.manifest
    device = getattr(candidate.runner, "device", Device.CPU)
    adapters = {name for name, module in eager.model.named_modules() if isinstance(module, AdaKronLayer)}
    expected = right.runner.trace(batch.inputs)
    nodes = trace_graph(ir.load(candidate.artifact.model), manifest, batch.inputs, device=device)
    anew = _exported_anew(right.checkpoint, manifest, eager.pooling)
    fresh = trace_graph(anew, manifest, batch.inputs, device=device)
    layers = layer_errors(
        expected, module_values(nodes), module_values(fresh), tolerance=tolerance,
        mask=batch.inputs.get("attention_mask"),
    )  # fmt: skip
    return _Traced(layers, nodes, fresh, adapters)


def _exported_anew(checkpoint: Checkpoint, manifest: Manifest, pooling: Pooling) -> ir.Model:
    """The checkpoint as a graph of the same dtype, opset and target."""
    from adakron_export.adapter.folding import fold
    from adakron_export.adapter.loading import load_model, task_of
    from adakron_export.adapter.task_model import TaskModel
    from adakron_export.graph.build import TORCH_DTYPES, build_graph
    from adakron_export.graph.targets import target_named

    model = load_model(checkpoint, task=manifest.task)
    folded = TaskModel(fold(model).to(TORCH_DTYPES[manifest.dtype]), task_of(model), pooling=pooling).eval()
    return build_graph(folded, opset=manifest.opset, target=target_named(manifest.target))

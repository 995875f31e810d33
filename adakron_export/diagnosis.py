"""Looks into a comparison that failed: the layer and the node where an artifact leaves its checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from adakron_export.artifact import Artifact
from adakron_export.calibration import calibrate
from adakron_export.device import Device
from adakron_export.graph.passes.static_quantization import Kind, smoothing_in
from adakron_export.sides import Side
from adakron_export.validation.batches import NamedBatch
from adakron_export.validation.divergence import Divergence, LayerError, first_divergence, layer_errors
from adakron_export.validation.tolerance import Tolerance

if TYPE_CHECKING:
    import onnx_ir as ir

    from adakron_export.adapter.checkpoint import Checkpoint
    from adakron_export.adapter.pooling import SentenceEmbedding
    from adakron_export.tracing import TracedNode


@dataclass(frozen=True, slots=True)
class _Traced:
    """What both sides put out inside: the layers' errors, and the nodes of the artifact and of a fresh export."""

    layers: tuple[LayerError, ...]
    nodes: list[TracedNode]
    fresh: list[TracedNode]
    adapters: set[str]


def find_divergence(right: Side, candidate: Side, batch: NamedBatch, *, tolerance: Tolerance) -> Divergence | None:
    """The first layer, and the first node in it, where an artifact leaves its checkpoint, or another artifact.

    Args:
        right: What is right.
        candidate: An artifact; into a checkpoint on this side nothing looks.
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
    """Run both sides and show what is inside; ``None`` where a side shows nothing."""
    if candidate.artifact is None or right.engine is not None:
        return None
    nodes = _nodes_of(candidate, batch)
    if right.artifact is not None:
        return _traced_artifact(right, nodes, batch, tolerance)
    return _traced_checkpoint(right, candidate, nodes, batch, tolerance)


def _traced_on(side: Side) -> Device:
    """Where ONNX Runtime shows what is inside; OpenVINO does not."""
    device = Device(getattr(side.runner, "device", Device.CPU))
    return Device.CPU if device.on_cpu else device


def _nodes_of(side: Side, batch: NamedBatch) -> list[TracedNode]:
    import onnx_ir as ir

    from adakron_export.tracing import trace_graph

    assert side.artifact is not None
    device = _traced_on(side)
    return trace_graph(ir.load(side.artifact.model), side.artifact.manifest, batch.inputs, device=device)


def _traced_artifact(right: Side, nodes: list[TracedNode], batch: NamedBatch, tolerance: Tolerance) -> _Traced:
    """Hold an artifact's layers against those of another, as far as both graphs name the same ones."""
    from adakron_export.tracing import module_values

    others = _nodes_of(right, batch)
    expected = {layer: values[-1] for layer, values in module_values(others).items() if values}
    found = module_values(nodes)
    layers = layer_errors(expected, found, {}, tolerance=tolerance, mask=batch.inputs.get("attention_mask"))
    suffix = ".projection"  # what `fold` calls the layer that an adapter follows
    adapters = {layer.removesuffix(suffix) for layer in found if layer.endswith(suffix)}
    return _Traced(layers, nodes, others, adapters)


def _traced_checkpoint(
    right: Side, candidate: Side, nodes: list[TracedNode], batch: NamedBatch, tolerance: Tolerance
) -> _Traced:
    """Hold an artifact's layers against the modules of the eager model.

    To know rounding from error, and to name the node, the checkpoint is exported anew in the same way, and both
    graphs are run side by side.
    """
    from adakron_export.adapter.layer import AdaKronLayer
    from adakron_export.runtimes.eager import EagerRunner
    from adakron_export.tracing import module_values, trace_graph

    assert isinstance(right.runner, EagerRunner)
    assert right.eager is not None
    assert right.checkpoint is not None
    assert candidate.artifact is not None
    eager, manifest = right.eager, candidate.artifact.manifest
    device = _traced_on(candidate)
    adapters = {name for name, module in eager.model.named_modules() if isinstance(module, AdaKronLayer)}
    expected = right.runner.trace(batch.inputs)
    anew = _exported_anew(right.checkpoint, candidate.artifact, eager.pooling, batch)
    fresh = trace_graph(anew, manifest, batch.inputs, device=device)
    layers = layer_errors(
        expected, module_values(nodes), module_values(fresh), tolerance=tolerance,
        mask=batch.inputs.get("attention_mask"),
    )  # fmt: skip
    return _Traced(layers, nodes, fresh, adapters)


def _exported_anew(
    checkpoint: Checkpoint, artifact: Artifact, pooling: SentenceEmbedding, batch: NamedBatch
) -> ir.Model:
    """The checkpoint as a graph of the same dtype, opset and target.

    Fixed scales are found on the batch itself, after the artifact's own smoothing, so that values compare.
    """
    import onnx_ir as ir

    from adakron_export.adapter.folding import fold
    from adakron_export.adapter.loading import load_model, task_of
    from adakron_export.adapter.task_model import TaskModel
    from adakron_export.graph.build import build_graph, torch_dtype
    from adakron_export.graph.targets import target_named

    manifest = artifact.manifest
    target = target_named(manifest.target)
    model = load_model(checkpoint, task=manifest.task)
    module = fold(model).to(torch_dtype(target, manifest.dtype))
    folded = TaskModel(module, task_of(model), pooling=pooling).eval()
    find = None
    if manifest.calibrated_on:
        smoothing = smoothing_in(ir.load(artifact.model))
        kind = Kind(manifest.dtype)
        find = partial(calibrate, manifest=manifest, batches=[batch], kind=kind, smoothing=smoothing)
    return build_graph(folded, opset=manifest.opset, target=target, dtype=manifest.dtype, calibrate=find,
                       per_token=manifest.per_token)  # fmt: skip

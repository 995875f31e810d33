"""Looks into a comparison that failed: the layer and the node where an artifact leaves its checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from adakron_export.backbones.table import backbone_row
from adakron_export.graph.passes.bank import BankPass, OneAdapterPass
from adakron_export.graph.passes.static_quantization import Kind, smoothing_in
from adakron_export.graph.tolerance import Tolerance
from adakron_export.runtimes.base import Array
from adakron_export.runtimes.space import NamedBatch
from adakron_export.runtimes.table import runtime_on
from adakron_export.subjects.opened import Opened, OpenedArtifact, OpenedCheckpoint, bank_rows_of
from adakron_export.validation.divergence import Divergence, LayerError, first_divergence, layer_errors

if TYPE_CHECKING:
    import onnx_ir as ir

    from adakron_export.probing.tracing import TracedNode


@dataclass(frozen=True, slots=True)
class _Traced:
    """What both sides put out inside: the layers' errors, and the nodes of the artifact and of a fresh export."""

    layers: tuple[LayerError, ...]
    nodes: list[TracedNode]
    fresh: list[TracedNode]
    adapters: set[str]


def find_divergence(
    reference: Opened, candidate: Opened, batch: NamedBatch, *, tolerance: Tolerance
) -> Divergence | None:
    """The first layer, and the first node in it, where an artifact leaves its checkpoint, or another artifact.

    Args:
        reference: What is right.
        candidate: An artifact; into a checkpoint on this side nothing looks.
        batch: Where they differ.
        tolerance: What is allowed of an output.

    Returns:
        ``None`` where a side shows no intermediate values.
    """
    found = _traced(reference, candidate, batch, tolerance)
    if found is None:
        return None
    row = backbone_row(reference.config)

    def part_of(module: str) -> str:
        if module in found.adapters:
            return "adapter"
        return "head" if row.is_head(module) else "backbone"

    return first_divergence(batch.name, found.layers, found.nodes, found.fresh, part_of)


def compare_layers(
    reference: Opened, candidate: Opened, batch: NamedBatch, *, tolerance: Tolerance
) -> tuple[LayerError, ...]:
    """The error of every layer; arguments as for `find_divergence`. Empty where a side shows none."""
    found = _traced(reference, candidate, batch, tolerance)
    return found.layers if found else ()


def _traced(reference: Opened, candidate: Opened, batch: NamedBatch, tolerance: Tolerance) -> _Traced | None:
    """Run both sides and show what is inside; ``None`` where a side shows nothing."""
    if not isinstance(candidate, OpenedArtifact):
        return None
    if isinstance(reference, OpenedArtifact):
        return _traced_artifact(reference, _nodes_of(candidate, batch), batch, tolerance)
    if isinstance(reference, OpenedCheckpoint):
        return _traced_checkpoint(reference, candidate, batch, tolerance)
    return None


def _nodes_of(opened: OpenedArtifact, batch: NamedBatch) -> list[TracedNode]:
    return _trace(opened.graph(), opened, batch)


def _trace(graph: ir.Model, opened: OpenedArtifact, batch: NamedBatch) -> list[TracedNode]:
    """Run a graph as the artifact's, where its values can be looked at."""
    from adakron_export.probing.tracing import trace_graph

    device = runtime_on(opened.subject.device).traced_on
    return trace_graph(graph, opened.artifact.manifest, batch.inputs, device=device)


def _mask(batch: NamedBatch) -> Array | None:
    """The mask of the tokens that are read, without those of the past."""
    mask = batch.inputs.get("attention_mask")
    return None if mask is None else mask[:, -batch.inputs["input_ids"].shape[1] :]


def _traced_artifact(
    reference: OpenedArtifact, nodes: list[TracedNode], batch: NamedBatch, tolerance: Tolerance
) -> _Traced:
    """Hold an artifact's layers against those of another, as far as both graphs name the same ones."""
    from adakron_export.probing.tracing import module_values

    others = _nodes_of(reference, batch)
    expected = {layer: values[-1] for layer, values in module_values(others).items() if values}
    found = module_values(nodes)
    layers = layer_errors(expected, found, {}, tolerance=tolerance, mask=_mask(batch))
    suffix = ".projection"  # what `fold` calls the layer that an adapter follows
    adapters = {layer.removesuffix(suffix) for layer in found if layer.endswith(suffix)}
    return _Traced(layers, nodes, others, adapters)


def _traced_checkpoint(
    reference: OpenedCheckpoint, candidate: OpenedArtifact, batch: NamedBatch, tolerance: Tolerance
) -> _Traced:
    """Hold an artifact's layers against the modules of the eager model.

    To know rounding from error, and to name the node, the checkpoint is exported anew in the same way, and both
    graphs are run side by side.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    from adakron_export.probing.tracing import module_values

    nodes = _nodes_of(candidate, batch)
    modules = reference.eager.model.named_modules()
    adapters = {name for name, module in modules if isinstance(module, BaseTunerLayer)}
    expected = reference.runner.trace(batch.inputs)
    fresh = _trace(_exported_anew(reference, candidate, batch), candidate, batch)
    layers = layer_errors(
        expected, module_values(nodes), module_values(fresh), tolerance=tolerance,
        mask=_mask(batch),
    )  # fmt: skip
    return _Traced(layers, nodes, fresh, adapters)


def _exported_anew(reference: OpenedCheckpoint, candidate: OpenedArtifact, batch: NamedBatch) -> ir.Model:
    """The checkpoint as a graph of the same target, dtype and opset.

    Fixed scales are found on the batch itself, after the artifact's own smoothing, so that values compare.
    """
    from adakron_export.checkpoints.loading import load_checkpoint
    from adakron_export.checkpoints.task_model import TaskModel
    from adakron_export.graph.banking import with_places
    from adakron_export.graph.build import build_graph, torch_dtype
    from adakron_export.probing.calibration import calibrate

    manifest = candidate.artifact.manifest
    assert reference.checkpoint is not None
    loaded = load_checkpoint(reference.checkpoint, task=manifest.task)
    bank = manifest.bank
    module = loaded.fold() if bank is None else with_places(loaded.peft_model, bank.layout)
    module = module.to(torch_dtype(manifest.spec))
    folded = TaskModel(module, loaded.task, pooling=reference.eager.pooling).eval()
    find = None
    if manifest.calibrated_on:
        smoothing = smoothing_in(candidate.graph())
        kind = Kind(manifest.spec.dtype)
        find = partial(calibrate, manifest=manifest, batches=[batch], kind=kind, smoothing=smoothing)
    if bank is None:
        return build_graph(folded, manifest.spec, calibrate=find)
    rows = bank_rows_of(reference, bank.layout)
    graph = build_graph(folded, manifest.spec, calibrate=find, bank=BankPass(bank.layout, None))
    return OneAdapterPass(bank.layout, rows)(graph).model

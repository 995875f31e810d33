"""Compares two opened sides on batches: outputs, weights, and what a reader should know of it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from adakron_export.artifacts.artifact import Artifact
from adakron_export.artifacts.listing import sha256_of
from adakron_export.artifacts.shapes import bounds_text
from adakron_export.graph.keys import EXACT_SUMS
from adakron_export.graph.tolerance import Tolerance
from adakron_export.probing.watching import graph_runner
from adakron_export.runtimes.decoding import keeps_cache
from adakron_export.runtimes.space import InputSpace, NamedBatch
from adakron_export.subjects.opened import (
    Opened,
    OpenedArtifact,
    OpenedCheckpoint,
    OpenedEngine,
    bank_parameters_of,
    parameters_of,
)
from adakron_export.subjects.opening import Purpose, open_artifact_on, open_model
from adakron_export.subjects.space import model_space
from adakron_export.subjects.subject import Subject
from adakron_export.validation.batches import make_batches
from adakron_export.validation.decoding import compare_writing, decoding_batches, has_room
from adakron_export.validation.identity import differences, identity_of
from adakron_export.validation.parity import ParityReport, compare

if TYPE_CHECKING:
    import onnx_ir as ir

    from adakron_export.checkpoints.task_model import TaskModel
    from adakron_export.validation.weights import WeightsReport

_log = logging.getLogger(__name__)
_EMULATED_TOKENS = 24  # of a batch in which saturation is emulated: 4 s for BERT-base


def graph_of(candidate: Opened) -> ir.Model | None:
    """The candidate's graph; ``None`` where it shows none."""
    return candidate.graph() if isinstance(candidate, OpenedArtifact) else None


def dtype_of(candidate: Opened, graph: ir.Model | None) -> str:
    """What the limits are for: what the graph holds, whatever the artifact says of itself."""
    if graph is not None:
        from adakron_export.validation.stored import graph_dtype

        return graph_dtype(graph)
    return candidate.engine.manifest.dtype if isinstance(candidate, OpenedEngine) else "fp32"


def mismatches_of(reference: Opened, candidate: Opened, graph: ir.Model | None) -> tuple[str, ...]:
    """In what the candidate is another model than the reference, or another one than it says."""
    found = differences(identity_of(reference), identity_of(candidate))
    if isinstance(candidate, OpenedArtifact):
        foreign = candidate.foreign_default()
        if foreign is not None:
            found.append(
                f"the graph's own {foreign} is not that of the bank's first adapter, which plain programs run"
            )
        said, held = candidate.artifact.manifest.spec.dtype, dtype_of(candidate, graph)
        if said != held:
            found.append(f"dtype: the manifest says {said}, the graph holds {held}, whose limits count")
    return tuple(found)


def same_signature(reference: Opened, candidate: Opened) -> bool:
    """Whether both have the same inputs and outputs, whatever their order."""
    one, other = reference.runner, candidate.runner
    return set(one.input_names) == set(other.input_names) and set(one.output_names) == set(other.output_names)


def not_comparable(
    reference: Opened, candidate: Opened, *, tolerance: Tolerance, seed: int, mismatches: tuple[str, ...]
) -> ParityReport:
    """The report of two sides that are not run."""
    return ParityReport(reference.runner.name, candidate.runner.name, tolerance, seed, (), mismatches=mismatches)


def common_space(reference: Opened, candidate: Opened, graph: ir.Model | None) -> InputSpace:
    """What the reference takes, as far as an engine's shapes reach.

    Fixed scales promise nothing of words that they were not found on, so such a graph is held to those of its
    calibration; its weights are compared whatever those are.
    """
    from adakron_export.validation.stored import has_fixed_scales

    words = candidate.space.vocabulary if graph is not None and has_fixed_scales(graph) else ()
    space = reference.space.within(candidate.space.bounds)
    return replace(space, vocabulary=words, max_length=min(space.max_length, candidate.space.max_length))


def compare_weights_of(reference: Opened, candidate: Opened, graph: ir.Model | None) -> WeightsReport | None:
    """A checkpoint's weights looked for in the candidate's graph; ``None`` where either shows none."""
    if graph is None or not isinstance(reference, OpenedCheckpoint) or reference.loaded is None:
        return None
    from adakron_export.validation.weights import compare_weights

    _log.info("compare the weights")
    bank = candidate.artifact.manifest.bank if isinstance(candidate, OpenedArtifact) else None
    if bank is not None:
        return compare_weights(graph, bank_parameters_of(reference, bank.layout))
    folded = reference.folded()
    assert folded is not None
    return compare_weights(graph, parameters_of(folded))


@dataclass(frozen=True, slots=True)
class Sides:
    """A reference and a candidate that can be compared.

    Attributes:
        reference: What is right.
        candidate: What is held against it.
        space: What batches are made of.
        tolerance: What is allowed.
    """

    reference: Opened
    candidate: Opened
    space: InputSpace
    tolerance: Tolerance

    def batches(self, *, seed: int = 0) -> list[NamedBatch]:
        """What to run both sides on: `make_batches`, and where both keep a cache the steps of writing."""
        made = make_batches(self.space, seed=seed)
        return [*made, *decoding_batches(self.reference.runner, self.space, seed=seed)] if self.writes else made

    @property
    def writes(self) -> bool:
        """Whether both sides write with a cache."""
        return keeps_cache(self.reference.runner) and keeps_cache(self.candidate.runner)

    def compare(self, batches: Sequence[NamedBatch], *, seed: int) -> ParityReport:
        """Run both sides on batches, which were made with a seed, and let them write where all are run."""
        reference, candidate = self.reference, self.candidate
        try:
            rows = compare(reference.runner, candidate.runner, batches, tolerance=self.tolerance)
            if self.writes and len(batches) > 1:
                _log.info("write the likeliest tokens")
                rows += compare_writing(reference.runner, candidate.runner, self.space, self.tolerance, seed=seed)
        except ValueError as error:
            wrong = (f"outputs: {error}",)
            return not_comparable(reference, candidate, tolerance=self.tolerance, seed=seed, mismatches=wrong)
        notes = [
            *_notes(candidate, self.space),
            *_provenance(reference, candidate),
            *_without_vnni(candidate, batches),
        ]
        if self.writes and not has_room(self.space):
            notes.append("writing was not compared: the shapes leave no room for a prompt and what follows it")
        names = reference.runner.name, candidate.runner.name
        return ParityReport(*names, self.tolerance, seed, tuple(rows), notes=tuple(notes))


def prove(
    artifact: Artifact, eager: TaskModel, folded: TaskModel, *, tolerance: Tolerance, device: str = "cpu"
) -> ParityReport:
    """Compare an artifact with a loaded model on generated batches.

    Args:
        artifact: The exported folder, or one that is being made.
        eager: The unfolded model.
        folded: The folded one, whose parameters are looked for in the graph.
        tolerance: What is allowed.
        device: Where the artifact runs.
    """
    from adakron_export.validation.weights import compare_weights

    subject = Subject(str(artifact.folder), device=device)
    reference = open_model(eager, Subject(str(artifact.folder)))
    candidate = OpenedArtifact(subject, open_artifact_on(artifact, device, purpose=Purpose.COMPARE), artifact)
    space = replace(reference.space, vocabulary=artifact.calibration_tokens())
    sides = Sides(reference, candidate, space, tolerance)
    report = sides.compare(sides.batches(), seed=0)
    graph = graph_of(candidate)
    assert graph is not None
    _log.info("compare the weights")
    return replace(report, weights=compare_weights(graph, parameters_of(folded)))


def find_overflow(folded: TaskModel) -> str | None:
    """The first module of a half-precision model that puts out NaN or Inf, and on which batch."""
    import numpy as np

    from adakron_export.runtimes.eager import EagerRunner

    runner = EagerRunner(folded)
    for batch in make_batches(model_space(folded)):
        for module, values in runner.trace(batch.inputs).items():
            if not np.isfinite(values).all():
                return f"{module} overflows on batch {batch.name!r}"
    return None


def _notes(candidate: Opened, space: InputSpace) -> list[str]:
    notes = []
    manifest = candidate.artifact.manifest if isinstance(candidate, OpenedArtifact) else None
    if manifest is not None and ", emulated" in candidate.runner.name:
        notes.append(f"{manifest.spec.dtype} on the CPU: fp32 operators, each result rounded")
    longest = manifest.max_length if manifest else None
    if longest is not None and longest > space.max_length:
        notes.append(f"validated up to {space.max_length} of {longest} tokens")
    if space.bounds:
        notes.append(f"validated within the engine's shapes: {bounds_text(space.bounds)}")
    if isinstance(candidate, OpenedEngine):
        dtype = candidate.engine.manifest.dtype
        notes.append(
            f"an engine shows neither weights nor layers: the limits are those of {dtype}, which its manifest names, "
            "and the artifact that it was built from is to be validated too"
        )
    if space.vocabulary:
        words, size = len(space.vocabulary), space.vocab_size
        notes.append(f"fixed scales: batches are made of the {words} of {size} tokens that they were found on")
    if not space.left_padding:
        notes.append("texts padded on the left were left out: this model leaves them undefined")
    return notes


def _provenance(reference: Opened, candidate: Opened) -> list[str]:
    """Whether the artifact was made of this very checkpoint."""
    if not isinstance(candidate, OpenedArtifact) or not isinstance(reference, OpenedCheckpoint):
        return []
    checkpoint, source = reference.checkpoint, candidate.adapter_source
    if checkpoint is None or sha256_of(checkpoint.weights) == source.sha256:
        return []
    return [f"the artifact was exported from another {source.name} than {checkpoint.weights}"]


def _without_vnni(candidate: Opened, batches: Sequence[NamedBatch]) -> list[str]:
    """What a small batch would give in a plain session on a CPU that saturates."""
    if not isinstance(candidate, OpenedArtifact) or candidate.artifact.manifest.spec.dtype != "int8":
        return []
    import numpy as np

    from adakron_export.graph.passes.unsigned_weights import signed_products
    from adakron_export.graph.saturation import saturating

    graph = candidate.graph()
    if not signed_products(graph):
        return []
    runner = graph_runner(saturating(graph), candidate.artifact.manifest)
    batch = min(batches, key=lambda batch: abs(next(iter(batch.inputs.values())).size - _EMULATED_TOKENS))
    exact, saturated = candidate.runner.run(batch.inputs), runner.run(batch.inputs)
    error = max(float(np.abs(exact[name] - saturated[name]).max()) for name in exact)
    return [
        f"in a plain session on an x86 CPU without VNNI, batch {batch.name} would be off by {error:.2g}: open_runner "
        f"prevents it, or set {EXACT_SUMS} to 1"
    ]

"""Finds how ONNX Runtime is fastest with an artifact on this machine."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from adakron_export.artifacts.artifact import Artifact, open_artifact, update_manifest
from adakron_export.artifacts.manifest import Tuning
from adakron_export.errors import RunnerError
from adakron_export.graph.keys import MULTI_HEAD_ATTENTION, PLAIN_ATTENTION
from adakron_export.machine.description import describe_machine
from adakron_export.subjects.subject import Subject
from adakron_export.timing.latency import Interval, measure, overall_speedup
from adakron_export.timing.process import RunnerProcess

_log = logging.getLogger(__name__)

SHAPES = ((1, 16), (1, 128), (8, 128))
_SKIP_LAYER_NORM = "SkipLayerNormFusion"
_WORTHWHILE = 1.02  # what is not so much faster may be chance, and stays as it is


@dataclass(frozen=True, slots=True)
class TriedSetting:
    """One step away from the best so far.

    Attributes:
        label: What was changed, such as ``threads 4``.
        speedup: Over the best so far, as a geometric mean over the shapes.
        taken: Whether it became the best.
    """

    label: str
    speedup: Interval
    taken: bool


@dataclass(frozen=True, slots=True)
class TuneReport:
    """What was tried.

    Attributes:
        folder: The artifact.
        tuning: What its manifest has now; ``None`` where nothing beats the settings it was exported with.
        tried: What was tried, in its order.
        confirmed: The last setting against those it was exported with, in new processes; ``None`` where it is those.
        machine: What it was measured on.
    """

    folder: Path
    tuning: Tuning | None
    tried: tuple[TriedSetting, ...]
    confirmed: Interval | None
    machine: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return {"format_version": 1, **asdict(self), "folder": str(self.folder)}


def tune(
    artifact: str | Path, *, shapes: Sequence[tuple[int, int]] = SHAPES, budget_s: float = 60.0,
) -> TuneReport:  # fmt: skip
    """Measure session settings and forms of the graph one after the other, and write the best ones into the manifest.

    Threads, the form of attention, optimisers and spinning are varied in turn; each is kept only if it is at least 2 %
    faster than the best so far, with an interval that does not hold 1. At the end the winner is held against the
    settings of the export in new processes, and only if it is faster there too is it written. On another machine the
    artifact runs as it was exported.

    Args:
        artifact: The exported folder; all but the manifest stays as it is.
        shapes: Texts and tokens, as far as the model takes them; all count alike.
        budget_s: What the rounds may take together, in seconds; warming up comes on top.

    Raises:
        ArtifactError: The artifact is damaged.
        RunnerError: The artifact does not run on the CPU, or there is no shape.
    """
    opened = open_artifact(artifact)
    machine = describe_machine()
    known = opened.manifest.max_length
    fitting = tuple(dict.fromkeys((texts, min(tokens, known or tokens)) for texts, tokens in shapes))
    if not fitting:
        raise RunnerError("there is no shape to measure; pass --shapes, such as 1x128")
    exported = Tuning(str(machine["processor"]), int(machine["cores"] or 1),
                      disabled_optimizers=opened.manifest.disabled_optimizers)  # fmt: skip
    steps = _steps(exported, has_attention=_has_attention(opened))
    trial = _Trial(opened, fitting, budget_s / (len(steps) + 1) / len(fitting))
    best, tried = exported, []
    for step in steps:
        candidates = {label: replace(best, **change) for label, change in step.items()}
        speedups = trial.speedups(best, candidates)
        winner = max(speedups, key=lambda label: speedups[label].estimate)
        better = _is_better(speedups[winner])
        tried += [TriedSetting(label, each, taken=better and label == winner) for label, each in speedups.items()]
        best = candidates[winner] if better else best
    confirmed = trial.speedups(exported, {"winner": best})["winner"] if best != exported else None
    tuning = None
    if confirmed is not None and _is_better(confirmed):
        names = tuple(f"{texts}x{tokens}" for texts, tokens in fitting)
        tuning = replace(best, speedup=confirmed.estimate, shapes=names)
    update_manifest(opened, lambda manifest: replace(manifest, tuning=tuning))
    return TuneReport(opened.folder, tuning, tuple(tried), confirmed, machine)


def _has_attention(artifact: Artifact) -> bool:
    """Whether the graph has attention that there are other forms of."""
    import onnx_ir as ir

    from adakron_export.graph.passes.attention_forms import attention_nodes

    return bool(attention_nodes(ir.load(artifact.model)))


def _steps(exported: Tuning, *, has_attention: bool) -> list[dict[str, dict[str, Any]]]:
    """What is changed in each step, by label."""
    powers = {2**power for power in range(exported.cores.bit_length())}
    threads = {f"threads {count}": {"threads": count} for count in sorted(powers | {exported.cores})
               if count <= exported.cores}  # fmt: skip
    forms = {f"attention {form}": {"attention": form} for form in (PLAIN_ATTENTION, MULTI_HEAD_ATTENTION)}
    disabled = exported.disabled_optimizers
    other = tuple(name for name in disabled if name != _SKIP_LAYER_NORM)
    toggled = other if _SKIP_LAYER_NORM in disabled else (*disabled, _SKIP_LAYER_NORM)
    label = f"{_SKIP_LAYER_NORM} {'on' if _SKIP_LAYER_NORM in disabled else 'off'}"
    optional = [forms] if has_attention else []
    return [threads, *optional, {label: {"disabled_optimizers": toggled}}, {"spinning off": {"spinning": False}}]


def _is_better(speedup: Interval) -> bool:
    return speedup.estimate >= _WORTHWHILE and speedup.low > 1.0


@dataclass(frozen=True, slots=True)
class _Trial:
    """Measures settings of an artifact against one another, each in a process of its own."""

    artifact: Artifact
    shapes: tuple[tuple[int, int], ...]
    budget_s: float

    def speedups(self, reference: Tuning, candidates: Mapping[str, Tuning]) -> dict[str, Interval]:
        """How many times faster each is than the reference."""
        sides = {"so far": reference, **candidates}
        rounds: dict[str, list[Sequence[float]]] = {label: [] for label in sides}
        with contextlib.ExitStack() as stack:
            processes = {}
            for label, tuning in sides.items():
                _log.info("open with %s", label if label in candidates else "what is best so far")
                bank = self.artifact.manifest.bank
                adapter = None if bank is None else bank.first  # all take the same time
                subject = Subject(str(self.artifact.folder), tuning=asdict(tuning), adapter=adapter)
                processes[label] = stack.enter_context(RunnerProcess(subject))
            for shape in self.shapes:
                found = measure(processes, shape, budget_s=self.budget_s, reference=None)
                for row in found:
                    rounds[row.side].append(row.round_ms)
        return {
            label: overall_speedup(list(zip(rounds["so far"], rounds[label], strict=True))) for label in candidates
        }

"""Measures latencies, and guards them against a baseline."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, replace
from functools import reduce
from pathlib import Path
from typing import Any

from adakron_export.artifacts.artifact import open_artifact
from adakron_export.artifacts.engine import is_engine, open_engine
from adakron_export.engines.loading import check_loadable
from adakron_export.errors import RunnerError
from adakron_export.extras import package_versions
from adakron_export.files.staging import check_writable
from adakron_export.machine.description import describe_machine
from adakron_export.quantities import timed_shape, timed_text
from adakron_export.runtimes.table import eager_beside, runtime_on
from adakron_export.subjects.opening import task_of_exported
from adakron_export.subjects.subject import Subject, as_subject
from adakron_export.timing.baseline import (
    Ratios,
    Regression,
    check_covered,
    read_baseline,
    regressions,
    round_ratios,
    save_baseline,
)
from adakron_export.timing.latency import FEWEST_ROUNDS, Latency, measure
from adakron_export.timing.load import LoadLatency, Scenario, measure_load
from adakron_export.timing.process import RunnerProcess
from adakron_export.timing.settings import SHAPES, Guard, Timing

_log = logging.getLogger(__name__)

EAGER = "eager"
_MEASURED_AGAIN = 2  # times, for a baseline and before a regression is believed


@dataclass(frozen=True, slots=True)
class SideInfo:
    """A side as it was opened."""

    label: str
    path: str
    runtime: str
    load_s: float
    peak_mb: float | None


@dataclass(frozen=True, slots=True)
class BenchReport:
    """What was measured.

    Attributes:
        reference: The label of the side that the others are compared with.
        sides: What ran.
        latencies: One per side and shape.
        machine: What it was measured on.
        versions: Versions of the packages.
        loads: One per side, shape and load.
        regressions: One per side and shape, where there was a baseline.
        strict: Whether what cannot be told counts as failed.
    """

    reference: str
    sides: tuple[SideInfo, ...]
    latencies: tuple[Latency, ...]
    machine: dict[str, Any]
    versions: dict[str, str]
    loads: tuple[LoadLatency, ...] = ()
    regressions: tuple[Regression, ...] = ()
    strict: bool = False

    @property
    def passed(self) -> bool:
        """Whether nothing became slower than allowed and, where that is asked for, that could be told."""
        return all(row.passed and not (self.strict and row.undecided) for row in self.regressions)

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "format_version": 1,
            "passed": self.passed,
            "reference": self.reference,
            "machine": self.machine,
            "versions": self.versions,
            "sides": [asdict(side) for side in self.sides],
            "latencies": [row.to_json() for row in self.latencies],
            "loads": [row.to_json() for row in self.loads],
            "regressions": [row.to_json() for row in self.regressions],
        }


@dataclass(frozen=True, slots=True)
class _Plan:
    """What is measured, and for how long; the first of the subjects is the reference. No shapes are `SHAPES`."""

    subjects: dict[str, Subject]
    shapes: tuple[tuple[int, ...], ...]
    scenarios: tuple[Scenario, ...]
    budget_s: float  # of one go, from opening the sides on
    seed: int
    new_tokens: int | None = None

    @property
    def reference(self) -> str:
        return next(iter(self.subjects))


@dataclass(frozen=True, slots=True)
class _Measured:
    """What one go through a plan showed."""

    sides: tuple[SideInfo, ...]
    latencies: tuple[Latency, ...]
    loads: tuple[LoadLatency, ...]


def bench(
    artifacts: Sequence[str | Path | Subject],
    *,
    against: str | Path | Subject | None = None,
    timing: Timing | None = None,
    guard: Guard | None = None,
) -> BenchReport:
    """Time artifacts and engines against eager PyTorch, each in a process of its own, in interleaved rounds.

    Args:
        artifacts: At least one; engines too. Beside an engine everything runs on the GPU.
        against: The checkpoint to run in eager PyTorch, or another artifact; without it the first artifact is the
            reference.
        timing: What is timed, and for how long. Where the budget is too little for `FEWEST_ROUNDS` rounds they are
            made all the same, and it is said.
        guard: What it is held against, or where the ratios are kept, which are then measured in three openings of the
            processes.

    Raises:
        RunnerError: A side cannot be opened or run, or the baseline does not fit.
        ArtifactError: An artifact is damaged.
    """
    timing, guard = timing or Timing(), guard or Guard()
    if not artifacts or (against is None and len(artifacts) < 2 and (guard.baseline or guard.save_to)):
        raise RunnerError("there is nothing to compare with; pass --against with the checkpoint, or more artifacts")
    if guard.save_to is not None:
        check_writable(Path(guard.save_to))
    subjects = _on_one_device(_labelled([as_subject(each) for each in artifacts],
                                        None if against is None else as_subject(against)))  # fmt: skip
    measured = list(subjects.values())[-1]
    machine = describe_machine(
        device=measured.device, threads=measured.threads, on_gpu=runtime_on(measured.device).on_gpu
    )
    then = None
    if guard.baseline is not None:
        then = read_baseline(Path(guard.baseline), machine=machine, other_machine=guard.other_machine)
    shapes = _named_shapes(timing, then)
    start, goes = time.perf_counter(), 1 + (_MEASURED_AGAIN if guard.baseline or guard.save_to else 0)
    scenarios = (*(Scenario(clients=number) for number in timing.clients), *(Scenario(rate=r) for r in timing.rates))
    plan = _Plan(
        subjects, tuple(dict.fromkeys(shapes)), scenarios, timing.budget_s / goes, timing.seed, timing.new_tokens
    )

    def check(keys: Sequence[tuple[str, str]]) -> None:
        if then is not None:
            check_covered(keys, then, Path(str(guard.baseline)))

    first = _measured(plan, check)
    found = _guarded(plan, first.latencies, then, guard.limit) if then is not None else []
    report = BenchReport(plan.reference, first.sides, first.latencies, machine, package_versions(), first.loads,
                         tuple(found), guard.strict)  # fmt: skip
    if guard.save_to is not None:
        _save(Path(guard.save_to), plan, report)
    _say_if_longer(time.perf_counter() - start, timing.budget_s)
    return report


def _named_shapes(timing: Timing, then: Ratios | None) -> tuple[tuple[int, ...], ...]:
    """The shapes that are named, or those of the baseline; none for those that all sides take."""
    if timing.shapes is not None or then is None:
        return timing.shapes or ()
    if timing.new_tokens is not None:
        raise RunnerError("the baseline says how many tokens are written; leave new_tokens out, or name shapes too")
    shapes = tuple(timed_shape(shape) for _, shape in then)
    if (timing.clients or timing.rates) and any(len(shape) > 2 for shape in shapes):
        raise RunnerError("clients and rate are about single runs, and the baseline has new tokens; name shapes too")
    return shapes


def _save(path: Path, plan: _Plan, report: BenchReport) -> None:
    """Write the baseline of three openings of the processes."""
    ratios = round_ratios(report.latencies, plan.reference)
    for _ in range(_MEASURED_AGAIN):
        _log.info("measure the baseline again in new processes")
        ratios = _with_another_opening(plan, ratios)
    save_baseline(path, ratios, machine=report.machine, versions=report.versions)


def _say_if_longer(seconds: float, budget_s: float) -> None:
    if seconds > budget_s + 1:
        _log.warning("it took %.0f s; opening and %s rounds need more than %g s", seconds, FEWEST_ROUNDS, budget_s)


def _labelled(artifacts: Sequence[Subject], against: Subject | None) -> dict[str, Subject]:
    """What to open by label, the reference first."""
    if against is not None and against.is_exported:
        artifacts, against = [against, *artifacts], None
    tasks = [task_of_exported(each.path) for each in artifacts]  # refuses at once what is damaged
    if None in tasks:
        open_artifact(artifacts[tasks.index(None)].path)
    found: dict[str, Subject] = {}
    if against is not None:
        device = eager_beside(against.device if against.device != "cpu" else artifacts[0].device)
        found[EAGER] = replace(against, device=device, task=against.task or tasks[0])
    for each in artifacts:
        name = Path(each.path).resolve().name
        label = name if name not in found else str(each.path)
        if label in found:
            raise RunnerError(f"{each.path} is named twice")
        found[label] = each
    return found


def _on_one_device(subjects: dict[str, Subject]) -> dict[str, Subject]:
    """An engine takes the others to its GPU; it is refused at once where it cannot run."""
    engines = [each for each in subjects.values() if is_engine(Path(each.path))]
    for each in engines:
        check_loadable(open_engine(each.path, allow_code=each.allow_engine_code))
    if not engines:
        return subjects
    return {label: replace(each, device="cuda") if each.device == "cpu" else each for label, each in subjects.items()}


def _guarded(plan: _Plan, rows: Sequence[Latency], then: Ratios, max_regression: float) -> list[Regression]:
    """Hold a measurement against the baseline; measure again before it is slower, or where that cannot be told."""
    now = round_ratios(rows, plan.reference)
    found = regressions(now, then, max_regression=max_regression)
    for _ in range(_MEASURED_AGAIN):
        suspects, open_ones = sum(not row.passed for row in found), sum(bool(row.undecided) for row in found)
        if not suspects and not open_ones:
            break
        why = f"{suspects} look slower than the baseline" if suspects else f"of {open_ones} it cannot be told yet"
        _log.info("%s; measure again in new processes", why)
        now = _with_another_opening(plan, now)
        found = regressions(now, then, max_regression=max_regression)
    for row in found:
        if row.undecided:
            _log.warning("%s at %s is undecided: %s", row.side, row.shape, row.undecided)
    return found


def _with_another_opening(plan: _Plan, ratios: Ratios) -> Ratios:
    """Ratios with those of new processes: openings differ from one another by more than the rounds of one show."""
    shapes = tuple(dict.fromkeys(timed_shape(shape) for _, shape in ratios))
    more = round_ratios(
        _measured(replace(plan, shapes=shapes, scenarios=(), new_tokens=None)).latencies, plan.reference
    )
    return {key: [*values, *more[key]] for key, values in ratios.items()}


def _default_shapes(plan: _Plan, processes: Collection[RunnerProcess]) -> tuple[tuple[int, ...], ...]:
    """`SHAPES`, as far as all sides take them, with what is written after them."""
    more = plan.new_tokens or 0
    taken = [reduce(_nearest, processes, (texts, tokens + more)) for texts, tokens in SHAPES]
    return tuple(dict.fromkeys((texts, max(1, tokens - more)) for texts, tokens in taken))


def _with_writing(plan: _Plan, shapes: tuple[tuple[int, ...], ...]) -> tuple[tuple[int, ...], ...]:
    """Each shape, and behind it the same with tokens that are written."""
    if plan.new_tokens is None:
        return shapes
    return tuple(each for shape in shapes for each in (shape, (*shape, plan.new_tokens)))


def _nearest(shape: tuple[int, int], process: RunnerProcess) -> tuple[int, int]:
    return process.nearest(shape)


def _measured(plan: _Plan, check: Callable[[Sequence[tuple[str, str]]], None] = lambda _: None) -> _Measured:
    """Open all sides and time them; ``check`` is told of sides and shapes before it begins."""
    reference, end = plan.reference, time.perf_counter() + plan.budget_s
    with contextlib.ExitStack() as stack:
        processes = {}
        for label, each in plan.subjects.items():
            _log.info("open %s", label)
            processes[label] = stack.enter_context(RunnerProcess(each))
        shapes = _with_writing(plan, plan.shapes or _default_shapes(plan, processes.values()))
        check([(label, timed_text(shape)) for shape in shapes for label in processes if label != reference])
        parts = len(shapes) * (1 + len(plan.scenarios))

        def share() -> float:
            """The seconds of the next part."""
            nonlocal parts
            parts -= 1
            return max(0.0, end - time.perf_counter()) / (parts + 1)

        rows: list[Latency] = []
        loads: list[LoadLatency] = []
        for shape in shapes:
            rows += measure(processes, shape, budget_s=share(), reference=reference, seed=plan.seed)
            for scenario in plan.scenarios:
                loads += measure_load(processes, (shape[0], shape[1]), scenario, budget_s=share(), seed=plan.seed)
        sides = [
            SideInfo(label, str(each.subject.path), each.name, each.load_s, each.peak_mb())
            for label, each in processes.items()
        ]
    return _Measured(tuple(sides), tuple(rows), tuple(loads))

"""Measures latencies, and guards them against a baseline."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import reduce
from pathlib import Path
from typing import Any

from adakron_export.artifact import open_artifact
from adakron_export.device import Device
from adakron_export.engines.folder import is_engine, open_engine
from adakron_export.engines.loading import check_loadable
from adakron_export.errors import RunnerError
from adakron_export.extras import package_versions
from adakron_export.machine import describe_machine
from adakron_export.quantities import parse_shape
from adakron_export.sides import task_of_exported
from adakron_export.staging import check_writable
from adakron_export.validation.baseline import (
    Ratios,
    Regression,
    check_covered,
    read_baseline,
    regressions,
    round_ratios,
    save_baseline,
)
from adakron_export.validation.latency import FEWEST_ROUNDS, Latency, measure
from adakron_export.validation.load import LoadLatency, Scenario, measure_load
from adakron_export.worker import RunnerProcess, RunnerSettings

Progress = Callable[[str], None]
SHAPES = ((1, 16), (1, 128), (8, 128), (32, 128))
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
        versions: Of the packages.
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
    """What is measured, and for how long; the first of the settings is the reference. No shapes are `SHAPES`."""

    settings: dict[str, RunnerSettings]
    shapes: tuple[tuple[int, int], ...]
    scenarios: tuple[Scenario, ...]
    budget_s: float  # of one go, from opening the sides on
    seed: int
    progress: Progress

    @property
    def reference(self) -> str:
        return next(iter(self.settings))


@dataclass(frozen=True, slots=True)
class _Measured:
    """What one go through a plan showed."""

    sides: tuple[SideInfo, ...]
    latencies: tuple[Latency, ...]
    loads: tuple[LoadLatency, ...]


def bench(
    artifacts: Sequence[str | Path],
    *,
    against: str | Path | None = None,
    backbone: str | Path | None = None,
    shapes: Sequence[tuple[int, int]] | None = None,
    device: str = "cpu",
    threads: int | None = None,
    budget_s: float = 60.0,
    seed: int = 0,
    clients: Sequence[int] = (),
    rates: Sequence[float] = (),
    baseline: str | Path | None = None,
    baseline_to_save: str | Path | None = None,
    max_regression: float = 0.05,
    other_machine: bool = False,
    strict: bool = False,
    allow_engine_code: bool = False,
    progress: Progress = lambda _: None,
) -> BenchReport:
    """Time artifacts and engines against eager PyTorch, each in a process of its own, in interleaved rounds.

    Args:
        artifacts: At least one; engines too.
        against: The checkpoint to run in eager PyTorch, or another artifact; without it the first artifact is the
            reference.
        backbone: The checkpoint's backbone, where it names none.
        shapes: Texts and tokens; those of the baseline, or else `SHAPES` as far as the model takes them.
        device: ``cpu``, ``cuda``, ``tensorrt`` or ``tensorrt-rtx``; ``openvino`` is on the CPU.
            Beside an engine everything runs on the GPU.
        threads: Of one operator; each runtime's choice by default.
        budget_s: What all of it may take, in seconds: opening, warming up, rounds, loads, and measuring again. Where
            that is too little for `FEWEST_ROUNDS` rounds they are made all the same, and it is said.
        seed: Of the batches.
        clients: Also measure with so many clients, each waiting for its answer.
        rates: Also measure at so many requests a second, arriving whether or not one is answered.
        baseline: An earlier measurement to hold the ratios against.
        baseline_to_save: Where to write this one, which is then measured in three openings of the processes.
        max_regression: How much slower a side may have become, such as 0.05.
        other_machine: Take a baseline of another machine too.
        strict: Let a comparison fail that had too few rounds to tell; else that is a warning.
        allow_engine_code: Let host code run that an engine may bring along.
        progress: Told of each stage and round.

    Raises:
        RunnerError: A side cannot be opened or run, or the baseline does not fit.
        ArtifactError: An artifact is damaged.
    """
    if not artifacts or (against is None and len(artifacts) < 2 and (baseline or baseline_to_save)):
        raise RunnerError("there is nothing to compare with; pass --against with the checkpoint, or more artifacts")
    _check_settings(budget_s, max_regression, baseline_to_save)
    device = _device_of(device, [*artifacts, *([against] if against else [])], allow_code=allow_engine_code)
    settings = {label: replace(each, allow_engine_code=allow_engine_code)
                for label, each in _settings(artifacts, against, backbone, device, threads).items()}  # fmt: skip
    scenarios = (*(Scenario(clients=number) for number in clients), *(Scenario(rate=rate) for rate in rates))
    machine = describe_machine(device=device, threads=threads)
    then = read_baseline(Path(baseline), machine=machine, other_machine=other_machine) if baseline else None
    if then is not None and shapes is None:
        shapes = [parse_shape(shape) for _, shape in then]
    start, goes = time.perf_counter(), 1 + (_MEASURED_AGAIN if baseline or baseline_to_save else 0)
    plan = _Plan(settings, tuple(dict.fromkeys(shapes or ())), scenarios, budget_s / goes, seed, progress)

    def check(keys: Sequence[tuple[str, str]]) -> None:
        if then is not None:
            check_covered(keys, then, Path(str(baseline)))

    first = _measured(plan, check)
    found = _guarded(plan, first.latencies, then, max_regression) if then is not None else []
    report = BenchReport(plan.reference, first.sides, first.latencies, machine, package_versions(), first.loads,
                         tuple(found), strict)  # fmt: skip
    if baseline_to_save is not None:
        _save(Path(baseline_to_save), plan, report)
    _say_if_longer(time.perf_counter() - start, budget_s, progress)
    return report


def _check_settings(budget_s: float, max_regression: float, baseline_to_save: str | Path | None) -> None:
    if not budget_s > 0 or not max_regression >= 0:
        raise RunnerError("budget must be above 0 seconds, and max_regression at least 0")
    if baseline_to_save is not None:
        check_writable(Path(baseline_to_save))


def _save(path: Path, plan: _Plan, report: BenchReport) -> None:
    """Write the baseline of three openings of the processes."""
    ratios = round_ratios(report.latencies, plan.reference)
    for _ in range(_MEASURED_AGAIN):
        plan.progress("measure the baseline again in new processes")
        ratios = _with_another_opening(plan, ratios)
    save_baseline(path, ratios, machine=report.machine, versions=report.versions)


def _say_if_longer(seconds: float, budget_s: float, progress: Progress) -> None:
    if seconds > budget_s + 1:
        progress(f"warning: it took {seconds:.0f} s; opening and {FEWEST_ROUNDS} rounds need more than {budget_s:g} s")


def _device_of(device: str, paths: Sequence[str | Path], *, allow_code: bool) -> str:
    """An engine takes the others to its GPU; it is refused at once where it cannot run."""
    engines = [path for path in paths if is_engine(Path(path))]
    for path in engines:
        check_loadable(open_engine(path, allow_code=allow_code))
    return "cuda" if engines and device == "cpu" else device


def _settings(
    artifacts: Sequence[str | Path], against: str | Path | None, backbone: str | Path | None, device: str,
    threads: int | None,
) -> dict[str, RunnerSettings]:  # fmt: skip
    """What to open by label, the reference first."""
    if against is not None and task_of_exported(against) is not None:
        artifacts, against = [against, *artifacts], None
    tasks = [task_of_exported(path) for path in artifacts]  # refuses at once what is damaged
    if None in tasks:
        open_artifact(artifacts[tasks.index(None)])
    found: dict[str, RunnerSettings] = {}
    if against is not None:
        folder = str(backbone) if backbone else None
        found[EAGER] = RunnerSettings(str(against), Device.named(device).of_eager, threads, folder, tasks[0])
    for path in artifacts:
        name = Path(path).resolve().name
        label = name if name not in found else str(path)
        if label in found:
            raise RunnerError(f"{path} is named twice")
        found[label] = RunnerSettings(str(path), device, threads)
    return found


def _guarded(plan: _Plan, rows: Sequence[Latency], then: Ratios, max_regression: float) -> list[Regression]:
    """Hold a measurement against the baseline; measure again before it is slower, or where that cannot be told."""
    now = round_ratios(rows, plan.reference)
    found = regressions(now, then, max_regression=max_regression)
    for _ in range(_MEASURED_AGAIN):
        suspects, open_ones = sum(not row.passed for row in found), sum(bool(row.undecided) for row in found)
        if not suspects and not open_ones:
            break
        why = f"{suspects} look slower than the baseline" if suspects else f"of {open_ones} it cannot be told yet"
        plan.progress(f"{why}; measure again in new processes")
        now = _with_another_opening(plan, now)
        found = regressions(now, then, max_regression=max_regression)
    for row in found:
        if row.undecided:
            plan.progress(f"warning: {row.side} at {row.shape} is undecided: {row.undecided}")
    return found


def _with_another_opening(plan: _Plan, ratios: Ratios) -> Ratios:
    """Ratios with those of new processes: openings differ from one another by more than the rounds of one show."""
    shapes = tuple(dict.fromkeys(parse_shape(shape) for _, shape in ratios))
    more = round_ratios(_measured(replace(plan, shapes=shapes, scenarios=())).latencies, plan.reference)
    return {key: [*values, *more[key]] for key, values in ratios.items()}


def _nearest(shape: tuple[int, int], process: RunnerProcess) -> tuple[int, int]:
    return process.nearest(shape)


def _measured(plan: _Plan, check: Callable[[Sequence[tuple[str, str]]], None] = lambda _: None) -> _Measured:
    """Open all sides and time them; ``check`` is told of sides and shapes before it begins."""
    reference, progress, end = plan.reference, plan.progress, time.perf_counter() + plan.budget_s
    with contextlib.ExitStack() as stack:
        processes = {}
        for label, each in plan.settings.items():
            progress(f"open {label}")
            processes[label] = stack.enter_context(RunnerProcess(each))
        shapes = plan.shapes or tuple(dict.fromkeys(reduce(_nearest, processes.values(), shape) for shape in SHAPES))
        check([(label, f"{n}x{tokens}") for n, tokens in shapes for label in processes if label != reference])
        parts = len(shapes) * (1 + len(plan.scenarios))

        def share() -> float:
            """The seconds of the next part."""
            nonlocal parts
            parts -= 1
            return max(0.0, end - time.perf_counter()) / (parts + 1)

        rows: list[Latency] = []
        loads: list[LoadLatency] = []
        for shape in shapes:
            rows += measure(processes, shape, budget_s=share(), reference=reference, seed=plan.seed, progress=progress)
            for scenario in plan.scenarios:
                loads += measure_load(processes, shape, scenario, budget_s=share(), seed=plan.seed, progress=progress)
        sides = [
            SideInfo(label, each.settings.path, each.name, each.load_s, each.peak_mb())
            for label, each in processes.items()
        ]
    return _Measured(tuple(sides), tuple(rows), tuple(loads))

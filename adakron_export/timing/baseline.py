"""Holds a measurement against an earlier one: ratios to the reference of the same run, never bare milliseconds."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Annotated, Any, Literal

import msgspec
import numpy as np

from adakron_export.errors import RunnerError
from adakron_export.files.records import read_object, record_of
from adakron_export.files.staging import write_text
from adakron_export.quantities import timed_text
from adakron_export.runtimes.base import Array
from adakron_export.timing.latency import FEWEST_ROUNDS, Interval, Latency, interval_of, resampled_medians

FORMAT_VERSION = 2
NEEDED_POWER = 0.8
_LEAST, _MOST = 0.002, 500.0  # of a row's median: beyond it the two do not do the same work
_OUTDATED = 0.5
_INTERVAL = 1.96  # standard errors on each side
_Key = tuple[str, str]  # side and shape
Ratios = dict[_Key, list[float]]  # the candidate's latency over the reference's, per round


@dataclass(frozen=True, slots=True)
class Regression:
    """A side at a shape, now and then.

    Attributes:
        side: Label of the side.
        shape: The shape as a text.
        slowdown: Its ratio to the reference now, over what that was; 1.1 is 10 % slower.
        limit: What the estimate may be.
        seen: The slowdown that `power` is for: twice as far off as the limit.
        power: Share of runs like this one that would find such a slowdown.
    """

    side: str
    shape: str
    slowdown: Interval
    limit: float
    seen: float
    power: float

    @property
    def passed(self) -> bool:
        """Whether it is not slower than allowed, or so little that it may be chance."""
        return not (self.slowdown.estimate > self.limit and self.slowdown.low > 1.0)

    @property
    def undecided(self) -> str | None:
        """Why it cannot be told whether it became slower; ``None`` where it can."""
        if not self.passed:
            return None
        if self.slowdown.high < _OUTDATED:
            return "it became more than twice as fast, so that the baseline is out of date; save a new one"
        if self.power < NEEDED_POWER:
            chance = f"{100 * self.power:.0f} % of runs"
            return f"{100 * (self.seen - 1):.0f} % more time would be seen in {chance}; give it more (--budget)"
        return None

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return {**asdict(self), "passed": self.passed, "undecided": self.undecided}


@dataclass(frozen=True, slots=True)
class _Row:
    side: str
    shape: str
    ratios: Annotated[list[Annotated[float, msgspec.Meta(gt=0, le=1e9)]], msgspec.Meta(min_length=FEWEST_ROUNDS)]


@dataclass(frozen=True, slots=True)
class _Baseline:
    """What a file holds."""

    format_version: Literal[2]
    machine: dict[str, Any]
    versions: dict[str, str]
    rows: Annotated[list[_Row], msgspec.Meta(min_length=1)]
    sha256: str


def round_ratios(latencies: Sequence[Latency], reference: str) -> Ratios:
    """The ratio of each round, of every side but the reference."""
    by_key = {(row.side, _shape(row)): row.round_ms for row in latencies}
    return {
        (side, shape): [mine / theirs for mine, theirs in zip(times, by_key[reference, shape], strict=True)]
        for (side, shape), times in by_key.items()
        if side != reference
    }


def _shape(row: Latency) -> str:
    return timed_text(row.shape)


def regressions(now: Ratios, then: Ratios, *, max_regression: float) -> list[Regression]:
    """Hold every side and shape against the baseline.

    Args:
        now: Ratios of this run.
        then: Ratios of the baseline, which has them all.
        max_regression: Largest slowdown, such as 0.05.
    """
    rows = []
    for (side, shape), ratios in now.items():
        logs, earlier = np.log(ratios), np.log(then[side, shape])
        resamples = resampled_medians(logs, seed=1) - resampled_medians(earlier, seed=2)
        slowdown = interval_of(np.median(logs) - np.median(earlier), resamples)
        seen = 1 + 2 * max_regression
        power = _power(logs, earlier, seen=np.log(seen), limit=np.log(1 + max_regression))
        rows.append(Regression(side, shape, slowdown, 1 + max_regression, seen, power))
    return rows


def _power(now: Array, then: Array, *, seen: float, limit: float) -> float:
    """The chance that a slowdown is found, by the normal approximation of the medians' errors.

    It is found where the estimate is above the limit and its 95 % interval above nothing. Of a median, the standard
    error is sqrt(pi / 2) of that of the mean.
    """
    variance = sum(float(np.var(each, ddof=1)) / len(each) for each in (now, then))
    error = float(np.sqrt(np.pi / 2 * variance))
    return NormalDist().cdf((seen - max(limit, _INTERVAL * error)) / error) if error > 0 else 1.0


def save_baseline(path: Path, ratios: Ratios, *, machine: Mapping[str, Any], versions: Mapping[str, str]) -> None:
    """Write a baseline."""
    rows = [{"side": side, "shape": shape, "ratios": values} for (side, shape), values in ratios.items()]
    content = {"format_version": FORMAT_VERSION, "machine": machine, "versions": versions, "rows": rows}
    write_text(path, json.dumps({**content, "sha256": _digest(content)}, indent=2) + "\n")


def _digest(content: Mapping[str, Any]) -> str:
    """Of all that a baseline says, so that a figure which was edited shows."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read_baseline(path: Path, *, machine: Mapping[str, Any], other_machine: bool = False) -> Ratios:
    """Read a baseline for this machine.

    Args:
        path: A file that `save_baseline` wrote.
        machine: What this run is measured on.
        other_machine: Take one of another machine too.

    Raises:
        RunnerError: The baseline cannot be read, or was measured elsewhere.
    """
    try:
        content = read_object(path)
        found = record_of(content, _Baseline)
    except OSError as error:
        raise RunnerError(f"{path}: {error.strerror}; write one with --save-baseline") from error
    except ValueError as error:
        raise RunnerError(
            f"{path}: not a baseline that this release reads ({error}); write one with --save-baseline"
        ) from error
    if found.sha256 != _digest({name: value for name, value in content.items() if name != "sha256"}):
        raise RunnerError(f"{path}: was edited since it was measured; write a new baseline with --save-baseline")
    ratios = {(row.side, row.shape): row.ratios for row in found.rows}
    if len(ratios) < len(found.rows):
        raise RunnerError(f"{path}: has a side twice at one shape; write a new baseline with --save-baseline")
    odd = [row for row in found.rows if not _LEAST <= np.median(row.ratios) <= _MOST]
    if odd:  # one round alone may be far off, on a machine that stood still
        raise RunnerError(
            f"{path}: not a baseline, {odd[0].side} at {odd[0].shape} takes {np.median(odd[0].ratios):.3g} of the "
            "reference's time; write a new one with --save-baseline"
        )
    measured_on = found.machine
    different = [name for name in machine if machine[name] != measured_on.get(name)]
    if different and not other_machine:
        name = different[0]
        raise RunnerError(
            f"{path} was measured with {name} {measured_on.get(name)!r}, this is {machine[name]!r}; write a baseline "
            "here with --save-baseline, or pass --other-machine"
        )
    return ratios


def check_covered(now: Sequence[_Key], then: Ratios, path: Path) -> None:
    """Raise unless the baseline has every side and shape.

    Raises:
        RunnerError: The baseline lacks one.
    """
    missing = [f"{side} at {shape}" for side, shape in now if (side, shape) not in then]
    if missing:
        there = ", ".join(f"{side} at {shape}" for side, shape in then)
        raise RunnerError(f"{path} has no {missing[0]}; it has {there}. Measure these, or write a new baseline")

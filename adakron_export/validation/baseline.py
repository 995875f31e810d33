"""Holds a measurement against an earlier one: ratios to the reference of the same run, never bare milliseconds."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from adakron_export.errors import RunnerError
from adakron_export.json_files import read_object
from adakron_export.staging import write_text
from adakron_export.validation.latency import Interval, Latency, interval_of, resampled_medians

FORMAT_VERSION = 1
_Key = tuple[str, str]  # side and shape
Ratios = dict[_Key, list[float]]  # the candidate's latency over the reference's, per round


@dataclass(frozen=True, slots=True)
class Regression:
    """A side at a shape, now and then.

    Attributes:
        side: Its label.
        shape: As text.
        slowdown: Its ratio to the reference now, over what that was; 1.1 is 10 % slower.
        limit: What the estimate may be.
    """

    side: str
    shape: str
    slowdown: Interval
    limit: float

    @property
    def passed(self) -> bool:
        """Whether it is not slower than allowed, or so little that it may be chance."""
        return not (self.slowdown.estimate > self.limit and self.slowdown.low > 1.0)

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return {**asdict(self), "passed": self.passed}


def round_ratios(latencies: Sequence[Latency], reference: str) -> Ratios:
    """The ratio of each round, of every side but the reference."""
    by_key = {(row.side, _shape(row)): row.round_ms for row in latencies}
    return {
        (side, shape): [mine / theirs for mine, theirs in zip(times, by_key[reference, shape], strict=True)]
        for (side, shape), times in by_key.items()
        if side != reference
    }


def _shape(row: Latency) -> str:
    return "x".join(map(str, row.shape))


def regressions(now: Ratios, then: Ratios, *, max_regression: float) -> list[Regression]:
    """Hold every side and shape against the baseline.

    Args:
        now: Of this run.
        then: Of the baseline, which has them all.
        max_regression: Such as 0.05.
    """
    rows = []
    for (side, shape), ratios in now.items():
        logs, earlier = np.log(ratios), np.log(then[side, shape])
        resamples = resampled_medians(logs, seed=1) - resampled_medians(earlier, seed=2)
        slowdown = interval_of(np.median(logs) - np.median(earlier), resamples)
        rows.append(Regression(side, shape, slowdown, 1 + max_regression))
    return rows


def save_baseline(path: Path, ratios: Ratios, *, machine: Mapping[str, Any], versions: Mapping[str, str]) -> None:
    """Write a baseline."""
    rows = [{"side": side, "shape": shape, "ratios": values} for (side, shape), values in ratios.items()]
    content = {"format_version": FORMAT_VERSION, "machine": machine, "versions": versions, "rows": rows}
    write_text(path, json.dumps(content, indent=2) + "\n")


def read_baseline(path: Path, *, machine: Mapping[str, Any], other_machine: bool = False) -> Ratios:
    """Read a baseline for this machine.

    Args:
        path: As of `save_baseline`.
        machine: What this run is measured on.
        other_machine: Take one of another machine too.

    Raises:
        RunnerError: It cannot be read, or was measured elsewhere.
    """
    try:
        content = read_object(path)
        version, measured_on = content["format_version"], dict(content["machine"])
        ratios = {(str(row["side"]), str(row["shape"])): [float(v) for v in row["ratios"]] for row in content["rows"]}
    except OSError as error:
        raise RunnerError(f"{path}: {error.strerror}; write one with --save-baseline") from error
    except (ValueError, KeyError, TypeError) as error:
        raise RunnerError(f"{path}: not a baseline ({type(error).__name__}: {error})") from error
    usable = all(values and all(np.isfinite(value) and value > 0 for value in values) for values in ratios.values())
    if version != FORMAT_VERSION or not ratios or not usable:
        raise RunnerError(f"{path}: not a baseline that this release reads; write one with --save-baseline")
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
        RunnerError: It lacks one.
    """
    missing = [f"{side} at {shape}" for side, shape in now if (side, shape) not in then]
    if missing:
        there = ", ".join(f"{side} at {shape}" for side, shape in then)
        raise RunnerError(f"{path} has no {missing[0]}; it has {there}. Measure these, or write a new baseline")

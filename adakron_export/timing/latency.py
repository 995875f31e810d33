"""Latencies of several sides, measured in interleaved rounds, and their ratios with an interval."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from adakron_export.quantities import timed_text

_log = logging.getLogger(__name__)

_ROUND_S = 0.1  # of one side in one round
_FEWEST_RUNS, _MOST_RUNS = 3, 200  # in a round
FEWEST_ROUNDS = 5
LONGEST_WARM_UP_S = 3.0  # of a side at a shape
_WARM_UP_SHARE = 0.4  # of the budget, for all sides together
_RESAMPLES = 2000


class Timed(Protocol):
    """Something whose runs can be timed; see `RunnerProcess`."""

    def prepare(  # noqa: D102
        self, shape: tuple[int, ...], *, seed: int = 0, longest_s: float = LONGEST_WARM_UP_S
    ) -> tuple[float, float]: ...

    def time(self, runs: int) -> list[float]: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate with its 95 % interval."""

    estimate: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Latency:
    """One side at one shape.

    Attributes:
        side: Its label.
        shape: Texts and tokens; with a third number so many tokens were written after them.
        runs: How many were timed.
        p50_ms: Median of all runs; the others likewise.
        p90_ms: 90th percentile.
        p99_ms: 99th percentile.
        mean_ms: Mean.
        texts_per_second: Texts over the mean.
        tokens_per_second: New tokens of all texts over the mean; ``None`` where none were written.
        first_ms: The first run of this shape.
        quantiles_ms: The 0th, 5th, ... 100th percentile.
        round_ms: The median of each round, in their order.
        speedup: How many times faster than the reference, from the ratios within each round; ``None`` for itself.
    """

    side: str
    shape: tuple[int, ...]
    runs: int
    p50_ms: float
    p90_ms: float
    p99_ms: float
    mean_ms: float
    texts_per_second: float
    tokens_per_second: float | None
    first_ms: float
    quantiles_ms: tuple[float, ...]
    round_ms: tuple[float, ...]
    speedup: Interval | None

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return {**asdict(self), "shape": timed_text(self.shape)}


def measure(
    sides: Mapping[str, Timed], shape: tuple[int, ...], *, budget_s: float, reference: str | None, seed: int = 0,
) -> list[Latency]:  # fmt: skip
    """Time all sides at one shape, in rounds: each side in turn, the first one another each time.

    Args:
        sides: The sides, by their labels.
        shape: Texts and tokens, and how many to write after them, if any.
        budget_s: When to stop, in seconds, warming up included; there are at least `FEWEST_ROUNDS` rounds.
        reference: The side that the others are compared with.
        seed: Seed of the batch.
    """
    end = time.perf_counter() + budget_s
    longest_s = min(LONGEST_WARM_UP_S, _WARM_UP_SHARE * budget_s / len(sides))
    first: dict[str, float] = {}
    runs: dict[str, int] = {}
    for label, side in sides.items():
        _log.info("%s: warm up %s", timed_text(shape), label)
        first[label], steady = side.prepare(shape, seed=seed, longest_s=longest_s)
        runs[label] = min(_MOST_RUNS, max(_FEWEST_RUNS, math.ceil(_ROUND_S / max(steady, 1e-6))))
    rounds: dict[str, list[list[float]]] = {label: [] for label in sides}
    labels = list(sides)
    count, longest_round = 0, 0.0
    while count < FEWEST_ROUNDS or time.perf_counter() + longest_round < end:
        start = time.perf_counter()
        for label in labels[count % len(labels) :] + labels[: count % len(labels)]:
            rounds[label].append(sides[label].time(runs[label]))
        count += 1
        longest_round = max(longest_round, time.perf_counter() - start)
        _log.info("%s: round %s", timed_text(shape), count)
    medians = {label: [float(np.median(each)) * 1000 for each in rounds[label]] for label in sides}
    return [
        _latency(label, shape, rounds[label], first[label],
                 speedup(medians[reference], medians[label]) if reference not in (None, label) else None)
        for label in sides
    ]  # fmt: skip


def _latency(
    label: str, shape: tuple[int, ...], rounds: Sequence[Sequence[float]], first_s: float, ratio: Interval | None
) -> Latency:
    every = np.concatenate([np.asarray(each) for each in rounds]) * 1000
    mean = float(every.mean())
    return Latency(
        side=label,
        shape=shape,
        runs=len(every),
        p50_ms=float(np.percentile(every, 50)),
        p90_ms=float(np.percentile(every, 90)),
        p99_ms=float(np.percentile(every, 99)),
        mean_ms=mean,
        texts_per_second=shape[0] * 1000 / mean,
        tokens_per_second=shape[0] * shape[2] * 1000 / mean if len(shape) > 2 else None,
        first_ms=first_s * 1000,
        quantiles_ms=tuple(np.percentile(every, range(0, 101, 5)).tolist()),
        round_ms=tuple(float(np.median(each)) * 1000 for each in rounds),
        speedup=ratio,
    )


def speedup(reference: Sequence[float], candidate: Sequence[float], *, seed: int = 0) -> Interval:
    """How many times faster the candidate is: the median ratio of the rounds, with its paired bootstrap interval.

    Args:
        reference: A latency per round.
        candidate: Medians of the same rounds.
        seed: Seed of the resampling.
    """
    logs = np.log(np.asarray(reference)) - np.log(np.asarray(candidate))
    return interval_of(np.median(logs), resampled_medians(logs, seed=seed))


def overall_speedup(pairs: Sequence[tuple[Sequence[float], Sequence[float]]]) -> Interval:
    """The geometric mean of `speedup` over several shapes; a pair has the latencies of reference and candidate."""
    logs = [np.log(np.asarray(reference)) - np.log(np.asarray(candidate)) for reference, candidate in pairs]
    resampled = [resampled_medians(each, seed=index) for index, each in enumerate(logs)]
    return interval_of(np.mean([np.median(each) for each in logs]), np.mean(resampled, axis=0))


def resampled_medians(values: NDArray[Any], *, seed: int = 0) -> NDArray[Any]:
    """Medians of resamples of the values (Efron, 1979)."""
    rng = np.random.default_rng(seed)
    drawn = rng.integers(0, len(values), size=(_RESAMPLES, len(values)))
    return np.asarray(np.median(values[drawn], axis=1))


def interval_of(log_estimate: Any, log_resamples: NDArray[Any]) -> Interval:
    """The interval of logarithms, as the ratios that they stand for."""
    low, high = np.percentile(log_resamples, [2.5, 97.5])
    return Interval(float(np.exp(log_estimate)), float(np.exp(low)), float(np.exp(high)))

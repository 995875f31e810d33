"""Latency under load: clients that wait for their answers, and requests that arrive whether or not one is ready.

The two are MLPerf Inference's single-stream and server scenarios (Reddi et al., 2020, section IV): a closed loop shows
what N callers get, an open loop what a service at a given rate gets. A request of the open loop is timed from when it
was due, so that a run that falls behind is not flattered.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np

from adakron_export.errors import AdaKronError, RunnerError
from adakron_export.timing.latency import LONGEST_WARM_UP_S

_log = logging.getLogger(__name__)

_SLICES = 3  # of one side's time, so that the machine's drift meets all sides
_WARM_UP_SHARE = 0.2  # of the budget, for all sides together
_SHORTEST_S = 0.1  # of a slice
_PATIENCE = 2.0  # times the planned seconds, after which an open loop that has fallen behind is stopped


@dataclass(frozen=True, slots=True)
class Scenario:
    """What the load is: so many ``clients``, or a ``rate`` of requests a second with Poisson arrivals."""

    clients: int | None = None
    rate: float | None = None

    def __post_init__(self) -> None:
        if self.clients is not None and self.clients < 1:
            raise RunnerError(f"clients is {self.clients}; there must be at least 1")
        if self.rate is not None and not 0 < self.rate <= 1e6:
            raise RunnerError(f"rate is {self.rate:g}; it must be above 0 requests a second, and at most a million")

    @property
    def name(self) -> str:
        """As people read it."""
        if self.rate is not None:
            return f"{self.rate:g} requests/s"
        return f"{self.clients} client{'s' if self.clients != 1 else ''}"


@dataclass(frozen=True, slots=True)
class Observed:
    """What one slice showed: the seconds of each request, of the whole, and how many were never answered."""

    latencies_s: list[float]
    duration_s: float
    unanswered: int = 0


@dataclass(frozen=True, slots=True)
class LoadLatency:
    """One side under one load.

    Attributes:
        side: Its label.
        shape: Texts and tokens of one request.
        scenario: The load, by name.
        requests: How many were answered.
        unanswered: How many an open loop had due and did not get to; they count as infinitely slow.
        p50_ms: Median; the others likewise.
        p90_ms: 90th percentile.
        p99_ms: 99th percentile.
        requests_per_second: Requests that were answered, per second.
    """

    side: str
    shape: tuple[int, int]
    scenario: str
    requests: int
    unanswered: int
    p50_ms: float
    p90_ms: float
    p99_ms: float
    requests_per_second: float

    def to_json(self) -> dict[str, Any]:
        """As plain data; an infinite latency is ``inf`` as text, which JSON can hold."""
        values = {key: "inf" if value == np.inf else value for key, value in asdict(self).items()}
        return {**values, "shape": f"{self.shape[0]}x{self.shape[1]}"}


class Loaded(Protocol):
    """Something that can be put under load; see `RunnerProcess`."""

    def prepare(  # noqa: D102
        self, shape: tuple[int, int], *, seed: int = 0, longest_s: float = LONGEST_WARM_UP_S
    ) -> tuple[float, float]: ...

    def load(self, scenario: Scenario, seconds: float, *, seed: int, start: float) -> Observed: ...  # noqa: D102


def measure_load(
    sides: Mapping[str, Loaded], shape: tuple[int, int], scenario: Scenario, *, budget_s: float, seed: int = 0,
) -> list[LoadLatency]:  # fmt: skip
    """Put all sides under the same load, in turns; requests arrive at the same times for each.

    Args:
        sides: The sides, by their labels.
        shape: Texts and tokens of one request.
        scenario: The load.
        budget_s: For all sides together, in seconds, warming up included.
        seed: Seed of the batch and of the arrivals.
    """
    end, labels = time.perf_counter() + budget_s, list(sides)
    longest_s = min(LONGEST_WARM_UP_S, _WARM_UP_SHARE * budget_s / len(sides))
    found: dict[str, list[Observed]] = {label: [] for label in labels}
    for label, side in sides.items():
        _log.info("%sx%s: warm up %s for %s", shape[0], shape[1], label, scenario.name)
        side.prepare(shape, seed=seed, longest_s=longest_s)
    left_s = max((1 - _WARM_UP_SHARE) * budget_s, end - time.perf_counter())
    seconds = max(_SHORTEST_S, left_s / (_SLICES * len(sides)) / (_PATIENCE if scenario.rate is not None else 1))
    for turn in range(_SLICES):
        for label in labels[turn % len(labels) :] + labels[: turn % len(labels)]:
            _log.info("%sx%s: %s, %s", shape[0], shape[1], scenario.name, label)
            found[label].append(sides[label].load(scenario, seconds, seed=seed, start=turn * seconds))
    if not any(each.latencies_s or each.unanswered for each in found[labels[0]]):
        raise RunnerError(
            f"no request came within {_SLICES * seconds:.1f} s at {scenario.name}; give it more --budget"
        )
    return [summarize(label, shape, scenario, found[label]) for label in labels]


def summarize(side: str, shape: tuple[int, int], scenario: Scenario, slices: Sequence[Observed]) -> LoadLatency:
    """Percentiles over all slices."""
    answered = [seconds * 1000 for each in slices for seconds in each.latencies_s]
    unanswered = sum(each.unanswered for each in slices)
    every = np.asarray([*answered, *[np.inf] * unanswered] or [np.inf])
    p50, p90, p99 = (float(np.percentile(every, q, method="higher")) for q in (50, 90, 99))
    rate = len(answered) / sum(each.duration_s for each in slices)
    return LoadLatency(side, shape, scenario.name, len(answered), unanswered, p50, p90, p99, rate)


def closed_loop(
    clients: Sequence[Callable[[], Any]], seconds: float, *, clock: Callable[[], float] = time.perf_counter
) -> Observed:
    """Let each client send its next request when it has its answer.

    Args:
        clients: What each runs.
        seconds: For so long.
        clock: Tells the time in seconds.

    Raises:
        RunnerError: A client's run failed.
    """
    latencies: list[float] = []
    failures: list[AdaKronError | MemoryError] = []
    start = clock()

    def serve(run: Callable[[], Any]) -> None:
        sent = clock()
        while sent < start + seconds and not failures:
            try:
                run()
            except (AdaKronError, MemoryError) as error:
                failures.append(error)
                return
            now = clock()
            latencies.append(now - sent)
            sent = now

    threads = [threading.Thread(target=serve, args=(run,)) for run in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return Observed(latencies, clock() - start)


def arrivals(rate: float, seconds: float, *, seed: int, start: float = 0.0) -> list[float]:
    """When requests of a Poisson process are due, in seconds from a moment on.

    Args:
        rate: Requests a second.
        seconds: How long they come.
        seed: Seed of the process.
        start: The moment, in seconds from the beginning of the process.
    """
    rng = np.random.default_rng(seed)
    due: list[float] = []
    at = float(rng.exponential(1 / rate))
    while at < start + seconds:
        if at >= start:
            due.append(at - start)
        at += float(rng.exponential(1 / rate))
    return due


def open_loop(
    run: Callable[[], Any], due: Sequence[float], seconds: float, *,
    clock: Callable[[], float] = time.perf_counter, sleep: Callable[[float], None] = time.sleep,
) -> Observed:  # fmt: skip
    """Serve requests in their order, one at a time, as they are due; what is late waits in a queue.

    Args:
        run: What one request runs.
        due: When each arrives, in seconds from the start.
        seconds: How long the requests come; after twice that the rest is left unanswered.
        clock: Tells the time in seconds.
        sleep: Waits for so many seconds.
    """
    latencies: list[float] = []
    start = clock()
    for at in due:
        now = clock() - start
        if now > _PATIENCE * seconds:
            break
        if now < at:
            sleep(at - now)
        run()
        latencies.append(clock() - start - at)
    left = seconds - (clock() - start)
    if left > 0:  # the rate is that of the whole slice
        sleep(left)
    return Observed(latencies, clock() - start, len(due) - len(latencies))

"""Clients that wait, and requests that do not."""

import json

import numpy as np
import pytest

from adakron_export.errors import RunnerError
from adakron_export.timing.load import (
    Observed,
    Scenario,
    arrivals,
    closed_loop,
    measure_load,
    open_loop,
    summarize,
)
from conftest import DEMO


class Clock:
    """A clock that only runs when told."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now

    def pass_by(self, seconds):
        self.now += seconds


def test_a_client_sends_again_when_it_has_its_answer():
    clock = Clock()
    found = closed_loop([lambda: clock.pass_by(0.25)], 1.0, clock=clock)
    assert found == Observed([0.25] * 4, 1.0)


@pytest.mark.parametrize("error", [RunnerError, MemoryError])
def test_clients_run_at_the_same_time_and_a_failure_of_one_ends_all(error):
    def fail():
        raise error("no more")

    with pytest.raises(error, match="no more"):
        closed_loop([lambda: None, fail], 60.0)


def test_a_late_request_is_timed_from_when_it_was_due():
    clock = Clock()
    due = [0.0, 0.0625, 1.0]
    found = open_loop(lambda: clock.pass_by(0.25), due, 2.0, clock=clock, sleep=clock.pass_by)
    assert found.latencies_s == [0.25, 0.4375, 0.25]
    assert (found.duration_s, found.unanswered) == (2.0, 0)


def test_an_open_loop_that_falls_behind_is_stopped_and_counts_what_it_owes():
    clock = Clock()
    due = arrivals(50.0, 1.0, seed=0)
    found = open_loop(lambda: clock.pass_by(0.25), due, 1.0, clock=clock, sleep=clock.pass_by)
    assert len(found.latencies_s) == 8  # the next would begin after 2.0 s
    assert found.unanswered == len(due) - 8
    row = summarize("slow", (1, 8), Scenario(rate=50.0), [found])
    assert row.p50_ms == np.inf
    assert row.requests_per_second == pytest.approx(4.0, rel=0.01)
    assert json.loads(json.dumps(row.to_json(), allow_nan=False))["p99_ms"] == "inf"


def test_arrivals_are_a_poisson_process():
    due = arrivals(200.0, 50.0, seed=3)
    gaps = np.diff(due)
    assert len(due) == pytest.approx(10_000, rel=0.05)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.05)
    assert due == arrivals(200.0, 50.0, seed=3) != arrivals(200.0, 50.0, seed=4)


def test_short_slices_have_the_rate_that_was_asked_for():
    slices = [arrivals(5.0, 0.1, seed=7, start=0.1 * number) for number in range(4000)]
    assert sum(map(len, slices)) / 400 == pytest.approx(5.0, rel=0.05)
    whole = arrivals(5.0, 400.0, seed=7)
    assert [0.1 * number + at for number, due in enumerate(slices) for at in due] == pytest.approx(whole)
    clock = Clock()
    found = open_loop(lambda: clock.pass_by(0.01), [0.02], 0.5, clock=clock, sleep=clock.pass_by)
    assert found.duration_s == pytest.approx(0.5)


def test_no_request_at_all_is_no_measurement():
    class Side:
        def prepare(self, shape, *, seed=0, longest_s=3.0):
            return 0.1, 0.1

        def load(self, scenario, seconds, *, seed, start):
            return Observed([], seconds)

    with pytest.raises(RunnerError, match="no request came"):
        measure_load({"a": Side()}, (2, 8), Scenario(rate=0.01), budget_s=1.0)


def test_sides_take_turns_and_meet_the_same_arrivals():
    asked = []

    class Side:
        def __init__(self, name):
            self.name = name

        def prepare(self, shape, *, seed=0, longest_s=3.0):
            return 0.1, 0.1

        def load(self, scenario, seconds, *, seed, start):
            asked.append((self.name, seconds, round(start / seconds)))
            assert seed == 1
            return Observed([0.1], seconds)

    rows = measure_load({"a": Side("a"), "b": Side("b")}, (2, 8), Scenario(clients=2), budget_s=6.0, seed=1)
    assert [(name, part) for name, _, part in asked] == [("a", 0), ("b", 0), ("b", 1), ("a", 1), ("a", 2), ("b", 2)]
    assert all(seconds == pytest.approx(1, abs=0.01) for _, seconds, _ in asked)
    assert [(row.side, row.scenario, row.requests, row.p99_ms) for row in rows] == [
        ("a", "2 clients", 3, 100.0),
        ("b", "2 clients", 3, 100.0),
    ]


def test_bench_under_load(cli, demo_artifact):
    arguments = ("--shapes", "1x4", "--budget", "0.3s", "--clients", 2, "--rate", 20, "--rate", 200000)
    content = json.loads(cli("bench", demo_artifact, *arguments, "--json").stdout)
    closed, steady, flooded = content["loads"]
    assert (closed["scenario"], closed["unanswered"]) == ("2 clients", 0)
    assert closed["requests"] > 2
    assert (steady["scenario"], steady["unanswered"]) == ("20 requests/s", 0)
    assert (flooded["scenario"], flooded["p99_ms"]) == ("200000 requests/s", "inf")
    assert flooded["unanswered"] > 0

    table = cli("bench", demo_artifact, "--against", DEMO, *arguments).stdout
    assert max(map(len, table.splitlines()[1:])) <= 80
    assert "% lost" in table
    assert "eager PyTorch fp32, opened in" in table


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--clients", 0], "clients is 0"), (["--rate", 0], "rate is 0"), (["--rate", "nan"], "rate is nan")],
)
def test_bad_loads(cli, demo_artifact, arguments, message):
    assert message in cli("bench", demo_artifact, *arguments, code=2).stderr

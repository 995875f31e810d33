"""Latencies, their ratios, and the guard: what is decided is tested, never how fast this machine is."""

import hashlib
import json
import shutil
from itertools import count
from time import perf_counter

import numpy as np
import pytest

from adakron_export import ExportSettings, Subject, Timing, bench, export_onnx
from adakron_export.errors import ArtifactError, RunnerError
from adakron_export.quantities import parse_shapes
from adakron_export.timing.baseline import read_baseline, regressions, save_baseline
from adakron_export.timing.latency import measure, speedup
from adakron_export.timing.process import RunnerProcess
from adakron_export.verbs.bench import BenchReport
from conftest import DEMO

MACHINE = {"processor": "one", "cores": 2, "threads": None, "device": "cpu"}


class Fake:
    """A side that takes a known time, and notes when it was asked."""

    clock = count()

    def __init__(self, seconds):
        self.seconds = seconds
        self.asked = []

    def prepare(self, shape, *, seed=0, longest_s=3.0):
        return 10 * self.seconds, self.seconds

    def time(self, runs):
        self.asked.append(next(self.clock))
        return [self.seconds] * runs


def test_rounds_are_interleaved_and_each_side_goes_first_in_turn():
    sides = {"slow": Fake(0.02), "fast": Fake(0.01)}
    slow, fast = measure(sides, (2, 8), budget_s=0.0, reference="slow")
    order = [first < second for first, second in zip(sides["slow"].asked, sides["fast"].asked, strict=True)]
    assert order == [True, False, True, False, True]
    assert slow.speedup is None
    assert (fast.speedup.estimate, fast.speedup.low, fast.speedup.high) == pytest.approx((2.0, 2.0, 2.0))
    assert (fast.p50_ms, fast.first_ms, fast.texts_per_second) == pytest.approx((10.0, 100.0, 200.0))
    assert fast.runs == 50  # 0.1 s in each of 5 rounds


def test_interval_holds_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(200):
        drift = rng.lognormal(0, 0.3, size=25)  # the machine's, shared by both sides of a round
        reference, candidate = (drift * rng.lognormal(np.log(scale), 0.05, size=25) for scale in (3.0, 2.0))
        found = speedup(list(reference), list(candidate))
        hits += found.low <= 1.5 <= found.high
    assert 180 <= hits <= 200


def ratios(scale, *, noise=0.03, seed=0):
    return {("out", "1x16"): list(scale * np.random.default_rng(seed).lognormal(0, noise, size=30))}


@pytest.mark.parametrize(("scale", "passed"), [(1.0, True), (0.7, True), (1.03, True), (1.1, False), (2.0, False)])
def test_only_what_is_slower_than_allowed_is_a_regression(scale, passed):
    (found,) = regressions(ratios(0.4 * scale, seed=1), ratios(0.4), max_regression=0.05)
    assert found.passed is passed
    assert found.slowdown.estimate == pytest.approx(scale, rel=0.03)


def test_what_may_be_chance_is_no_regression():
    noisy = {("out", "1x16"): [0.2, 0.4, 0.6, 0.3, 0.55, 0.7, 0.45]}
    (found,) = regressions(noisy, {("out", "1x16"): [0.3, 0.4, 0.5, 0.2, 0.6, 0.35, 0.38]}, max_regression=0.05)
    assert found.slowdown.estimate > 1.05
    assert found.passed


def test_baselines_are_kept_and_those_of_other_machines_refused(tmp_path):
    path = tmp_path / "deep" / "baseline.json"
    save_baseline(path, ratios(0.4), machine=MACHINE, versions={})
    assert read_baseline(path, machine=MACHINE) == ratios(0.4)
    elsewhere = {**MACHINE, "processor": "another"}
    with pytest.raises(RunnerError, match="was measured with processor 'one', this is 'another'.*--other-machine"):
        read_baseline(path, machine=elsewhere)
    assert read_baseline(path, machine=elsewhere, other_machine=True) == ratios(0.4)


def edited_baseline(path, **changes):
    save_baseline(path, ratios(0.4), machine=MACHINE, versions={})
    content = json.loads(path.read_text())
    rows = content["rows"]
    rows[0] |= {name: value for name, value in changes.items() if name in rows[0]}
    content |= {name: value for name, value in changes.items() if name not in rows[0]}
    del content["sha256"]
    content["sha256"] = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    path.write_text(json.dumps(content))


ROW = {"side": "out", "shape": "1x16", "ratios": [0.4] * 9}


@pytest.mark.parametrize(
    "changes",
    [
        {"ratios": [-1.0] * 9},
        {"ratios": ["x"] * 9},
        {"ratios": [0.4] * 4},
        {"ratios": [1e-3] * 9},
        {"ratios": [1e3] * 9},
        {"ratios": [float("nan")] * 9},
        {"rows": []},
        {"rows": [ROW, ROW]},
        {"rows": [{**ROW, "shape": 3}]},
        {"machine": 3},
        {"format_version": 1},
        {"format_version": 3},
        {"colour": 3},
    ],
)
def test_impossible_baselines_are_refused(tmp_path, changes):
    edited_baseline(tmp_path / "baseline.json", **changes)
    with pytest.raises(RunnerError, match=r"not a baseline|has a side twice"):
        read_baseline(tmp_path / "baseline.json", machine=MACHINE)


@pytest.mark.parametrize("content", ["", "[]", "{}", "[" * 5000, '{"format_version": ' + "9" * 5000 + "}"])
def test_files_that_are_no_baseline(tmp_path, content):
    (tmp_path / "baseline.json").write_text(content)
    with pytest.raises(RunnerError, match="not a baseline"):
        read_baseline(tmp_path / "baseline.json", machine=MACHINE)


def found_in(rounds, *, slower=1.3, noise=0.2, runs=300):
    """How often a slowdown is found with so many rounds, and what power is said."""
    rng = np.random.default_rng(5)
    flagged, powers = 0, []
    for _ in range(runs):
        then = {("out", "1x16"): list(0.4 * rng.lognormal(0, noise, size=3 * rounds))}
        now = {("out", "1x16"): list(0.4 * slower * rng.lognormal(0, noise, size=rounds))}
        (row,) = regressions(now, then, max_regression=0.15)
        flagged += not row.passed
        powers.append(row.power)
    return flagged / runs, float(np.median(powers))


def test_the_power_is_about_what_it_is_said_to_be():
    few, said_of_few = found_in(5)
    many, said_of_many = found_in(25)
    assert said_of_few < 0.8 < said_of_many
    assert said_of_many == pytest.approx(many, abs=0.1)
    assert few < many


def test_too_few_rounds_are_undecided_and_strict_fails_them():
    few = {("out", "1x16"): [0.3, 0.5, 0.41, 0.35, 0.45]}
    (row,) = regressions(few, ratios(0.4), max_regression=0.05)
    assert row.passed
    assert "10 % more time would be seen in" in row.undecided
    (sure,) = regressions(ratios(0.4, seed=2), ratios(0.4), max_regression=0.05)
    assert sure.undecided is None
    for strict in (False, True):
        assert BenchReport("eager", (), (), {}, {}, regressions=(row,), strict=strict).passed is not strict
        assert BenchReport("eager", (), (), {}, {}, regressions=(sure,), strict=strict).passed


def test_a_baseline_that_is_far_too_slow_decides_nothing():
    (row,) = regressions(ratios(0.4), ratios(4.0), max_regression=0.05)
    assert "out of date" in row.undecided


def test_bench_measures_saves_and_guards(cli, demo_artifact, tmp_path):
    reference = shutil.copytree(demo_artifact, tmp_path / "reference")  # opens in a tenth of a checkpoint's time
    common = ("--against", reference, "--shapes", "1x4,2x8", "--budget", "0.2s")
    result = cli("bench", demo_artifact, *common, "--save-baseline", tmp_path / "base.json")
    assert max(map(len, result.stdout.splitlines()[1:])) <= 80
    assert result.stderr.count("open artifact") == 3  # one opening of the processes is not like another
    saved = json.loads((tmp_path / "base.json").read_text())
    assert [(row["side"], row["shape"]) for row in saved["rows"]] == [("artifact", "1x4"), ("artifact", "2x8")]
    assert all(ratio > 0 for row in saved["rows"] for ratio in row["ratios"])
    content = json.loads(cli("bench", demo_artifact, *common, "--baseline", tmp_path / "base.json",
                             "--max-regression", "400%", "--json").stdout)  # fmt: skip
    assert content["passed"] is True
    assert len(content["latencies"]) == 4
    assert content["latencies"][0]["speedup"] is None

    for row in saved["rows"]:  # faster than any machine's noise hides
        row["ratios"] = [0.003] * len(row["ratios"])
    (tmp_path / "fast.json").write_text(json.dumps(saved))
    refused = cli("bench", demo_artifact, *common, "--baseline", tmp_path / "fast.json", code=2)
    assert "was edited since it was measured" in refused.stderr
    ratios_then = {(row["side"], row["shape"]): row["ratios"] for row in saved["rows"]}
    save_baseline(tmp_path / "fast.json", ratios_then, machine=saved["machine"], versions={})
    failed = cli("bench", demo_artifact, *common, "--baseline", tmp_path / "fast.json", code=1)
    assert "latency FAILED" in failed.stdout
    assert failed.stderr.count("measure again in new processes") == 2

    other = cli(
        "bench", demo_artifact, "--against", reference, "--shapes", "1x5", "--baseline", tmp_path / "base.json", code=2
    )
    assert "has no artifact at 1x5; it has artifact at 1x4, artifact at 2x8" in other.stderr


def test_without_a_checkpoint_the_first_artifact_is_the_reference(demo_artifact, tmp_path):
    export_onnx(DEMO, tmp_path / "cpu", target="ort-cpu", settings=ExportSettings(validate=False))
    report = bench([demo_artifact, tmp_path / "cpu"], timing=Timing(shapes=[(1, 4)], budget_s=0.1))
    assert report.reference == "artifact"
    assert [row.side for row in report.latencies] == ["artifact", "cpu"]
    assert report.latencies[1].speedup is not None


def test_default_shapes_are_cut_to_what_the_model_takes(demo_artifact):
    report = bench([demo_artifact], timing=Timing(budget_s=0.1))
    assert [row.shape for row in report.latencies] == [(1, 16), (1, 64), (8, 64), (32, 64)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shapes", "1x"], "write TEXTSxTOKENS"),
        (["--shapes", "0x4"], "write TEXTSxTOKENS"),
        (["--shapes", "1x65", "--budget", "1s"], "shape 1x65: the model takes at most 64 tokens"),
        (["--device", "tpu"], "'tpu' is not one of 'cpu', 'openvino', 'cuda'"),
        (["--device", "cuda"], "CUDA"),
        (["--threads", "0"], "threads is 0"),
        (["--budget", "soon"], "is no duration"),
        (["--budget", "0s"], "budget must be above 0"),
        (["--max-regression", "much"], "is no number of points"),
        (["--baseline", "nowhere.json", "--against", DEMO], "nowhere.json: No such file or directory; write one"),
        (["--against", "/nowhere/at/all"], "/nowhere/at/all: no such file or folder"),
        (["--save-baseline", "base.json"], "nothing to compare with"),
    ],
)
def test_bad_input(cli, demo_artifact, arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = cli("bench", demo_artifact, *arguments, code=2)
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_damaged_artifact_is_refused_before_anything_runs(tmp_path):
    with pytest.raises(ArtifactError, match="no such folder"):
        bench([tmp_path / "nowhere"])


def test_a_process_that_dies_says_so(demo_artifact):
    with RunnerProcess(Subject(demo_artifact)) as process:
        process._process.kill()
        with pytest.raises(RunnerError, match="killed, perhaps for want of memory"):
            process.prepare((1, 4))


def test_a_side_is_timed_once_the_threads_of_the_one_before_sleep(demo_artifact):
    with RunnerProcess(Subject(demo_artifact)) as process:
        process.prepare((1, 4))
        start = perf_counter()
        seconds = process.time(1)
        assert perf_counter() - start - sum(seconds) >= 0.05


def test_parse_shapes():
    assert parse_shapes("1x16, 8x128,1x16") == ((1, 16), (8, 128), (1, 16))

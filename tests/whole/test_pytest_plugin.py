"""The artifact's tests, in a pytest of their own as a user runs it."""

import shutil
import subprocess
import sys
from xml.etree import ElementTree

import onnx_ir as ir
import pytest

from adakron_export.machine.description import describe_machine
from adakron_export.reporting.report import read_report
from adakron_export.timing.baseline import save_baseline
from conftest import DEMO
from tampered import changed

MINE = """
def test_mine(adakron_artifact, adakron_runner, adakron_parity):
    assert adakron_artifact.manifest.task == "text-classification"
    assert adakron_runner.input_names == tuple(info.name for info in adakron_artifact.manifest.inputs)
    assert adakron_parity.max_abs_error < 1e-4
"""


def run_pytest(folder, *arguments, code=0):
    command = [sys.executable, "-m", "pytest", "-c", "pytest.ini", *map(str, arguments)]
    (folder / "pytest.ini").write_text("[pytest]\nfilterwarnings = ignore\n")
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert result.returncode == code, result.stdout + result.stderr
    return result.stdout + result.stderr


@pytest.fixture(scope="module")
def baseline(tmp_path_factory):
    """Of artifacts so far from this one that no machine's noise reaches them: a hundredfold off on either side."""
    folder = tmp_path_factory.mktemp("baselines")
    machine = describe_machine(device="cpu", threads=None)
    for name, ratio in (("slow", 100.0), ("like", 1.0), ("fast", 0.003)):
        save_baseline(folder / f"{name}.json", {("artifact", "1x4"): [ratio] * 9}, machine=machine, versions={})
    return folder


def figures_of(folder):
    cases = {case.get("name"): case for case in ElementTree.parse(folder / "junit.xml").iter("testcase")}
    return cases, {
        row.get("name"): float(row.get("value")) for case in cases.values() for row in case.iter("property")
    }


def test_a_good_artifact_passes_and_leaves_figures(demo_artifact, tmp_path):
    (tmp_path / "test_mine.py").write_text(MINE)
    text = run_pytest(
        tmp_path, "--adakron-artifact", demo_artifact, "--adakron-checkpoint", DEMO,
        "--adakron-data", DEMO / "train.tsv", "--adakron-report", "report", "--junitxml", "junit.xml",
    )  # fmt: skip
    assert "3 passed" in text
    assert "adakron: largest absolute error" in text
    cases, figures = figures_of(tmp_path)
    assert set(cases) == {"test_mine", "parity", "accuracy"}
    assert cases["parity"].get("classname") == "adakron"
    assert 0 < figures["max_abs_error"] < 1e-4
    assert figures["accuracy of the candidate"] == figures["accuracy of the reference"] > 0.9
    report = read_report(tmp_path / "report")
    assert report["passed"] is True
    assert report["repeat"].startswith("pytest ")
    assert "--adakron-artifact" in report["repeat"]


@pytest.fixture(scope="module")
def reference(demo_artifact, tmp_path_factory):
    """The same artifact under another name, which is opened in a tenth of a checkpoint's time."""
    return shutil.copytree(demo_artifact, tmp_path_factory.mktemp("copy") / "reference")


def latency_test(folder, artifact, reference, *arguments, code=0):
    return run_pytest(folder, "--adakron-artifact", artifact, "--adakron-checkpoint", reference, "-k", "latency",
                      "--adakron-budget", "0.2s", *arguments, code=code)  # fmt: skip


def test_a_latency_that_held_passes(demo_artifact, reference, baseline, tmp_path):
    text = latency_test(
        tmp_path, demo_artifact, reference, "--adakron-baseline", baseline / "like.json",
        "--adakron-max-regression", "900%", "--adakron-report", "report", "--junitxml", "junit.xml",
    )  # fmt: skip
    assert "1 passed" in text
    assert 0 < figures_of(tmp_path)[1]["slowdown of artifact at 1x4"] < 10
    shapes = [row["shape"] for row in read_report(tmp_path / "report")["latency"]["latencies"]]
    assert shapes == ["1x4", "1x4"]  # the baseline's


def test_a_slow_artifact_fails(demo_artifact, reference, baseline, tmp_path):
    arguments = ("--adakron-baseline", baseline / "fast.json", "--adakron-max-regression", "100%")
    text = latency_test(tmp_path, demo_artifact, reference, *arguments, code=1)
    assert "1 failed" in text
    assert "% slower than the baseline" in text


def test_what_cannot_be_told_fails_where_that_is_asked_for(demo_artifact, reference, baseline, tmp_path):
    arguments = ("--adakron-baseline", baseline / "slow.json", "--adakron-strict")
    text = latency_test(tmp_path, demo_artifact, reference, *arguments, code=1)
    assert "adakron: artifact at 1x4 is undecided: it became more than twice as fast" in text
    assert "1 failed" in text


def test_a_wrong_artifact_fails_with_what_is_wrong(demo_artifact, tmp_path):
    def shift(nodes, model):
        weight = next(value for value in model.graph.initializers.values() if value.name == "classifier.bias")
        weight.const_value = ir.tensor(weight.const_value.numpy() + 4.0, name=weight.name)

    wrong = changed(demo_artifact, tmp_path / "artifact", shift)
    text = run_pytest(
        tmp_path, "--adakron-artifact", wrong, "--adakron-checkpoint", DEMO, "--adakron-report", "report", code=1
    )
    assert "1 failed" in text
    assert "logits on batch one-token: max_abs_error" in text
    assert "classifier (head) is the first layer that is wrong" in text
    assert "repeat: adakron-export validate" in text
    assert "Traceback" not in text
    assert "pytest_plugin.py" not in text
    assert read_report(tmp_path / "report")["passed"] is False


def test_a_damaged_artifact_is_one_message(tmp_path):
    (tmp_path / "test_mine.py").write_text(MINE)
    text = run_pytest(tmp_path, "--adakron-artifact", "nowhere", "--adakron-checkpoint", DEMO, "-k", "adakron", code=1)
    assert "1 failed, 1 deselected" in text
    assert "error: nowhere: no such folder" in text
    assert "Traceback" not in text


def test_without_the_options_nothing_is_added_and_tests_that_ask_are_skipped(tmp_path):
    (tmp_path / "test_mine.py").write_text(MINE)
    text = run_pytest(tmp_path, "-rs")
    assert "1 skipped" in text
    assert "needs --adakron-artifact and --adakron-checkpoint" in text


def test_the_plugin_imports_nothing_heavy():
    code = "import sys, adakron_export.pytest_plugin; print(*{'torch', 'numpy', 'jinja2'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--adakron-artifact", "a"], "go together"),
        (["--adakron-checkpoint", "a"], "go together"),
        (["--adakron-max-regression", "much"], "'much' is no number of points"),
        (["--adakron-budget", "soon"], "'soon' is no duration"),
        (["--adakron-shapes", "1x"], "write TEXTSxTOKENS"),
        (["--adakron-report", "pytest.ini"], "pytest.ini is a file"),
    ],
)
def test_bad_options(arguments, message, tmp_path):
    both = [] if "go together" in message else ["--adakron-artifact", "a", "--adakron-checkpoint", "b"]
    text = run_pytest(tmp_path, *both, *arguments, code=4)
    assert message in text
    assert "Traceback" not in text

"""The artifact's tests, in a pytest of their own as a user runs it."""

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
    for name, ratio in (("slow", 100.0), ("fast", 0.003)):
        save_baseline(folder / f"{name}.json", {("artifact", "1x4"): [ratio] * 9}, machine=machine, versions={})
    return folder


def test_a_good_artifact_passes_and_leaves_figures(demo_artifact, baseline, tmp_path):
    (tmp_path / "test_mine.py").write_text(MINE)
    text = run_pytest(
        tmp_path, "--adakron-artifact", demo_artifact, "--adakron-checkpoint", DEMO,
        "--adakron-data", DEMO / "train.tsv", "--adakron-baseline", baseline / "slow.json", "--adakron-budget", "0.2s",
        "--adakron-report", "report", "--junitxml", "junit.xml",
    )  # fmt: skip
    assert "4 passed" in text
    assert "adakron: largest absolute error" in text
    cases = {case.get("name"): case for case in ElementTree.parse(tmp_path / "junit.xml").iter("testcase")}
    assert set(cases) == {"test_mine", "parity", "accuracy", "latency"}
    assert cases["parity"].get("classname") == "adakron"
    figures = {row.get("name"): float(row.get("value")) for case in cases.values() for row in case.iter("property")}
    assert 0 < figures["max_abs_error"] < 1e-4
    assert figures["accuracy of the candidate"] == figures["accuracy of the reference"] > 0.9
    assert figures["slowdown of artifact at 1x4"] < 1
    report = read_report(tmp_path / "report")
    assert report["passed"] is True
    assert [row["shape"] for row in report["latency"]["latencies"]] == ["1x4", "1x4"]  # the baseline's
    assert report["repeat"].startswith("pytest ")
    assert "--adakron-artifact" in report["repeat"]


def test_what_cannot_be_told_fails_where_that_is_asked_for(demo_artifact, baseline, tmp_path):
    text = run_pytest(
        tmp_path, "--adakron-artifact", demo_artifact, "--adakron-checkpoint", DEMO, "-k", "latency",
        "--adakron-budget", "0.2s", "--adakron-baseline", baseline / "slow.json", "--adakron-strict", code=1,
    )  # fmt: skip
    assert "adakron: artifact at 1x4 is undecided: it became more than twice as fast" in text
    assert "1 failed" in text


def test_a_wrong_and_slow_artifact_fails_with_what_is_wrong(demo_artifact, baseline, tmp_path):
    def shift(nodes, model):
        weight = next(value for value in model.graph.initializers.values() if value.name == "classifier.bias")
        weight.const_value = ir.tensor(weight.const_value.numpy() + 4.0, name=weight.name)

    wrong = changed(demo_artifact, tmp_path / "artifact", shift)
    text = run_pytest(
        tmp_path, "--adakron-artifact", wrong, "--adakron-checkpoint", DEMO, "--adakron-report", "report",
        "--adakron-baseline", baseline / "fast.json", "--adakron-budget", "0.2s", "--adakron-max-regression", "100%",
        code=1,
    )  # fmt: skip
    assert "2 failed" in text
    assert "logits on batch one-token: max_abs_error" in text
    assert "classifier (head) is the first layer that is wrong" in text
    assert "repeat: adakron-export validate" in text
    assert "% slower than the baseline" in text
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

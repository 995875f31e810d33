"""Benchmarks that CI's machine cannot run whole."""

import json
import subprocess
import sys

import pytest

from conftest import ROOT

BENCHMARKS = ROOT / "benchmarks"


@pytest.mark.slow
def test_the_gpu_benchmark_runs_as_far_as_it_goes_without_a_gpu(tmp_path):
    command = [sys.executable, BENCHMARKS / "gpu.py", "--device", "cpu", "--model", "demo"]
    command += ["--shapes", "1x8", "--budget", "0.2s", "-o", tmp_path]
    subprocess.run(command, check=True, capture_output=True)
    found = json.loads((tmp_path / "gpu-cpu.json").read_text())
    assert {row["side"] for row in found["latencies"]} >= {"eager fp32", "torch.compile fp32", "ONNX Runtime fp32"}
    assert all(row["passed"] for row in found["parity"])
    assert any(row["ratio"] == "adapters" for row in found["ratios"])
    assert "no NVIDIA GPU" in found["not_measured"]["rtx fp16"]
    assert (tmp_path / "gpu-cpu.svg").read_text().startswith("<?xml")


def test_the_gpu_benchmark_says_that_there_is_no_gpu(tmp_path):
    from adakron_export.machine.gpu import has_gpu

    if has_gpu():
        pytest.skip("there is a GPU")
    done = subprocess.run([sys.executable, BENCHMARKS / "gpu.py", "-o", tmp_path], capture_output=True, text=True)
    assert done.returncode == 1
    assert "this machine has no NVIDIA GPU" in done.stderr

"""ONNX Runtime's CUDA provider on the exported files; `make gpu` runs this."""

import pytest

from adakron_export import export_onnx, validate
from conftest import DEMO

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("target", ["portable", "ort-cuda"])
@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
def test_cuda_agrees_with_eager(target, dtype, tmp_path):
    assert export_onnx(DEMO, tmp_path / "out", target=target, dtype=dtype).written
    report = validate(tmp_path / "out", against=DEMO, device="cuda")
    assert report.candidate == "onnxruntime CUDAExecutionProvider"
    assert report.passed

"""What needs a GPU: ONNX Runtime's providers on the exported files, and engines; `make gpu` runs this."""

import numpy as np
import pytest
import torch

from adakron_export import (
    EngineShapes,
    ExportSettings,
    OnnxModel,
    Subject,
    export_onnx,
    load_model,
    open_artifact,
    validate,
)
from adakron_export.artifacts.engine import open_engine
from adakron_export.checkpoints.kinds import base_of
from adakron_export.engines.loading import load_engine
from adakron_export.errors import MissingPackageError, RunnerError
from adakron_export.machine.flavors import FLAVORS
from adakron_export.machine.gpu import first_gpu
from adakron_export.runtimes.ort import OrtRunner
from adakron_export.runtimes.tensorrt import TensorRTRunner
from adakron_export.subjects.space import exported_space
from adakron_export.validation.batches import batch_of
from adakron_export.verbs.tensorrt import export_engine
from conftest import DEMO
from tiny import save_checkpoint

pytestmark = pytest.mark.gpu
SMALL = {"shapes": EngineShapes(min_shape=(1, 1), opt_shape=(2, 16), max_shape=(8, 64))}
KERNELS_PER_ADAPTER = 3  # two products, and what lies between them


@pytest.fixture(params=FLAVORS)
def flavor(request):
    if not FLAVORS[request.param].installed:
        pytest.skip(f"needs the extra {FLAVORS[request.param].extra}")
    if not FLAVORS[request.param].runs_on(first_gpu().compute_capability):
        pytest.skip(f"{request.param} does not run on {first_gpu().name}")
    return request.param


@pytest.mark.parametrize("target", ["portable", "ort-cuda"])
@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
def test_cuda_agrees_with_eager(target, dtype, tmp_path):
    assert export_onnx(DEMO, tmp_path / "out", target=target, dtype=dtype).written
    report = validate(Subject(tmp_path / "out", device="cuda"), against=DEMO)
    assert report.candidate == "onnxruntime CUDAExecutionProvider"
    assert report.passed


@pytest.mark.parametrize("device", ["tensorrt", "tensorrt-rtx"])
def test_tensorrt_providers_agree_with_eager(device, tmp_path):
    assert export_onnx(DEMO, tmp_path / "out", target="tensorrt").written
    try:
        report = validate(Subject(tmp_path / "out", device=device), against=DEMO)
    except (MissingPackageError, RunnerError) as error:
        pytest.skip(str(error))
    assert report.passed


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
def test_engines_agree_with_eager(flavor, dtype, tmp_path):
    export_engine(DEMO, tmp_path / "engine", flavor=flavor, dtype=dtype, **SMALL)
    report = validate(tmp_path / "engine", against=DEMO)
    assert report.passed
    assert FLAVORS[flavor].module in report.candidate


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_decoders_write_on_cuda_what_eager_pytorch_writes(dtype, tmp_path):
    checkpoint = save_checkpoint(tmp_path / "made", "llama")
    assert export_onnx(checkpoint, tmp_path / "out", target="ort-cuda", dtype=dtype).written
    assert validate(Subject(tmp_path / "out", device="cuda"), against=checkpoint).passed
    if dtype == "fp32":
        eager = base_of(load_model(checkpoint)).eval()
        exported = OnnxModel.from_pretrained(tmp_path / "out", device="cuda")
        ids = torch.tensor([[5, 6, 7, 8], [1, 1, 9, 10]])
        for way in ({}, {"num_beams": 3}):
            way = {"attention_mask": (ids != 1).long(), "max_new_tokens": 12, "pad_token_id": 1, **way}
            assert torch.equal(*(model.generate(ids, **way) for model in (eager, exported)))


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_engines_of_decoders_agree_with_eager(flavor, dtype, tmp_path):
    checkpoint = save_checkpoint(tmp_path / "made", "llama")
    export_engine(checkpoint, tmp_path / "engine", flavor=flavor, dtype=dtype, **SMALL)
    assert validate(tmp_path / "engine", against=checkpoint).passed


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_recorded_launches_of_cuda_leave_other_runs_alone(dtype, tmp_path):
    assert export_onnx(
        DEMO, tmp_path / "out", target="ort-cuda", dtype=dtype, settings=ExportSettings(validate=False)
    ).written
    artifact = open_artifact(tmp_path / "out")
    plain, recorded = (
        OrtRunner(artifact, device="cuda"),
        OrtRunner(artifact, device="cuda", record_launches=True),
    )
    space = exported_space(artifact)
    for shape in ((1, 8), (4, 16), (1, 8), (8, 64)):
        batch = batch_of(space, *shape).inputs
        assert recorded.prepare(batch)() > 0.0
        np.testing.assert_allclose(recorded.run(batch)["logits"], plain.run(batch)["logits"], atol=1e-3)


def test_recorded_launches_agree_with_others(flavor, tmp_path):
    export_engine(DEMO, tmp_path / "engine", flavor=flavor, dtype="fp32", **SMALL)
    folder = open_engine(tmp_path / "engine")
    plain, recorded = TensorRTRunner(folder), TensorRTRunner(folder, record_launches=True)
    space = exported_space(folder)
    for shape in ((1, 8), (4, 16), (1, 8), (8, 64)):
        batch = batch_of(space, *shape).inputs
        np.testing.assert_allclose(recorded.run(batch)["logits"], plain.run(batch)["logits"], atol=1e-4)
        assert recorded.prepare(batch)() > 0.0


def test_the_kronecker_product_has_no_kernel_of_its_own(tmp_path):
    if not FLAVORS["tensorrt"].installed:
        pytest.skip("needs the extra tensorrt")
    layers = []
    for adapted in ([0], [0, 1]):
        checkpoint = save_checkpoint(tmp_path / str(len(adapted)), "bert", layers_to_transform=adapted)
        export_engine(checkpoint, tmp_path / f"engine-{len(adapted)}", flavor="tensorrt", dtype="fp16", **SMALL)
        layers.append(load_engine(open_engine(tmp_path / f"engine-{len(adapted)}")).engine.num_layers)
    assert layers[1] - layers[0] <= KERNELS_PER_ADAPTER

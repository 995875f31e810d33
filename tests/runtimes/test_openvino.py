"""Artifacts in OpenVINO."""

import shutil
import threading

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from adakron_export import Batches, Subject, Timing, bench, export_onnx, open_runner, predict, validate
from adakron_export.artifacts.artifact import open_artifact, write_manifest
from adakron_export.errors import ArtifactError, ExportError, RunnerError
from adakron_export.subjects.space import exported_space
from adakron_export.validation.batches import batch_of, make_batches
from conftest import DEMO
from tampered import changed
from tiny import save_checkpoint

openvino = pytest.importorskip("openvino", reason="needs the extra openvino")
TEXT = str(DEMO / "train.tsv")


@pytest.fixture(scope="module")
def fp32(tmp_path_factory):
    folder = tmp_path_factory.mktemp("openvino") / "fp32"
    assert export_onnx(DEMO, folder, target="openvino").written
    return folder


@pytest.fixture(scope="module")
def int8(tmp_path_factory):
    folder = tmp_path_factory.mktemp("openvino") / "int8"
    assert export_onnx(DEMO, folder, target="openvino", dtype="int8", data=TEXT).written
    return folder


@pytest.mark.parametrize("model_type", ["bert", "deberta-v2", "modernbert", "gpt2", "llama", "vit"])
def test_backbones_agree_with_eager(model_type, tmp_path):
    result = export_onnx(save_checkpoint(tmp_path, model_type), tmp_path / "out", target="openvino")
    assert result.written
    assert result.parity.candidate.startswith("openvino ")


def test_it_computes_in_fp32_and_in_several_threads(fp32):
    runner = open_runner(fp32, device="openvino", threads=1)
    batches = [batch.inputs for batch in make_batches(exported_space(open_artifact(fp32)))]
    expected = [open_runner(fp32).run(batch)["logits"] for batch in batches]
    found = [None] * len(batches)

    def run(index):
        for _ in range(5):
            found[index] = runner.run(batches[index])["logits"]

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(batches))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    assert runner.prepare(batches[0])() > 0.0


def test_bench_and_predict_use_it(fp32):
    report = bench([Subject(fp32, device="openvino")], against=DEMO, timing=Timing(shapes=[(1, 8)], budget_s=0.5))
    assert [side.runtime.partition(" ")[0] for side in report.sides] == ["eager", "openvino"]
    assert "gpu" not in report.machine
    text = "I cannot use the new update any more"
    there, here = predict(fp32, [text], device="openvino"), predict(fp32, [text])
    assert there[0]["label"] == here[0]["label"]
    assert there[0]["score"] == pytest.approx(here[0]["score"], abs=1e-5)


def test_int8_has_fixed_scales_and_holds_on_text(int8):
    manifest = open_artifact(int8).manifest
    assert (manifest.spec.dtype, manifest.float_dtype, manifest.calibrated_on) == ("int8", "fp32", "train.tsv")
    graph = onnx.load(int8 / "model.onnx").graph
    kinds = {tensor.name: tensor.data_type for tensor in graph.initializer}
    assert kinds["uint8_zero"] == onnx.TensorProto.UINT8
    assert kinds["bert.embeddings.word_embeddings.weight_int8"] == onnx.TensorProto.INT8
    assert [node.op_type for node in graph.node].count("QuantizeLinear") == 3 * 4 + 1
    report = validate(Subject(int8, device="openvino"), against=DEMO, data=TEXT, batches=Batches(limit=200))
    assert report.passed
    assert report.accuracy.metrics[0].candidate >= report.accuracy.metrics[0].reference - 0.005
    assert report.max_abs_error > 0.01


def test_int8_is_validated_on_words_it_was_calibrated_on(int8, tmp_path):
    space = exported_space(open_artifact(int8))
    assert space.vocabulary
    assert len(space.vocabulary) < space.vocab_size
    for batch in make_batches(space):
        known = {*space.vocabulary, *space.special_ids, space.pad_id}
        assert set(batch.inputs["input_ids"].ravel().tolist()) <= known
    shutil.copytree(int8, tmp_path / "out")
    (tmp_path / "out" / "calibration.json").write_text('{"token_ids": [[]]}')
    write_manifest(tmp_path / "out", open_artifact(int8).manifest)
    with pytest.raises(ArtifactError, match="calibration.json: not readable"):
        exported_space(open_artifact(tmp_path / "out"))


def test_a_wrong_scale_is_caught_and_named(int8, tmp_path):
    layer = "bert.encoder.layer.1.intermediate.dense"

    def shrink(nodes, _):
        scale = nodes[f"{layer}:QuantizeLinear"].inputs[1]
        scale.const_value = ir.tensor(scale.const_value.numpy() / np.float32(50), name=scale.name)

    report = validate(Subject(changed(int8, tmp_path / "wrong", shrink), device="openvino"), against=DEMO)
    assert not report.passed
    assert report.divergence.layer.startswith("bert.encoder.layer.1")


def test_what_it_computes_slowly_is_refused(demo_artifact, tmp_path, fp32):
    assert export_onnx(DEMO, tmp_path / "int8", dtype="int8").written
    with pytest.raises(RunnerError, match="in int8 for portable, which OpenVINO computes slowly or otherwise; export"):
        open_runner(tmp_path / "int8", device="openvino")
    with pytest.raises(RunnerError, match=r"OpenVINO .* refuses .*model.onnx: .*KronAdapter"):
        open_runner(demo_artifact, device="openvino")
    with pytest.raises(ExportError, match="int8 for openvino needs text"):
        export_onnx(DEMO, tmp_path / "out", target="openvino", dtype="int8")
    with pytest.raises(ExportError, match="openvino has no fp8: use tensorrt"):
        export_onnx(DEMO, tmp_path / "out", target="openvino", dtype="fp8", data=TEXT)
    with pytest.raises(RunnerError, match="threads is 0"):
        open_runner(fp32, device="openvino", threads=0)
    long = batch_of(exported_space(open_artifact(fp32)), 1, 64).inputs
    with pytest.raises(RunnerError, match="is 128 tokens long, the model takes 64"):
        open_runner(fp32, device="openvino").run({name: np.tile(array, 2) for name, array in long.items()})


def test_bf16_where_the_processor_has_it(tmp_path):
    if "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        assert export_onnx(DEMO, tmp_path / "out", target="openvino", dtype="bf16").written
    else:
        with pytest.raises(RunnerError, match="this processor has no bf16; export in fp32"):
            export_onnx(DEMO, tmp_path / "out", target="openvino", dtype="bf16")

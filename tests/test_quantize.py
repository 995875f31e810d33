"""int8 weights."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from adakron_export import export_onnx, open_runner, validate
from adakron_export.engine_export import export_engine
from adakron_export.errors import EngineError, ExportError
from adakron_export.graph.passes.quantize import DynamicInt8Pass
from conftest import DEMO
from tampered import changed
from tiny import CONFIGS, save_checkpoint


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("int8")
    assert export_onnx(DEMO, folder / "fp32").written
    assert export_onnx(DEMO, folder / "int8", dtype="int8").written
    return folder


def ops(path):
    return [node.op_type for node in onnx.load(path / "model.onnx").graph.node]


def test_products_and_tables_are_int8_and_adapters_are_not(demo):
    weights = {tensor.name: tensor.data_type for tensor in onnx.load(demo / "int8/model.onnx").graph.initializer}
    assert ops(demo / "int8").count("MatMulInteger") == 3 * 6 + 1  # three layers, and the pooler
    assert ops(demo / "int8").count("DynamicQuantizeLinear") == 3 * 4 + 1  # queries, keys and values share one
    assert weights["bert.embeddings.word_embeddings.weight_int8"] == onnx.TensorProto.INT8
    assert {kind for name, kind in weights.items() if ".a1_" in name or ".a2_" in name} == {onnx.TensorProto.FLOAT}
    assert ops(demo / "int8").count("KronAdapter") == 3
    assert (demo / "int8/model.onnx").stat().st_size < 0.32 * (demo / "fp32/model.onnx").stat().st_size


def test_it_agrees_with_eager_and_is_not_the_fp32_artifact(demo):
    report = validate(demo / "int8", against=DEMO, data=str(DEMO / "train.tsv"), limit=200)
    assert report.passed
    assert report.accuracy.metrics[0].candidate >= report.accuracy.metrics[0].reference - 0.005
    assert not validate(demo / "int8", against=DEMO, atol=1e-4).passed


def test_a_wrong_weight_is_caught_and_named(demo, tmp_path):
    layer = "bert.encoder.layer.1.intermediate.dense"

    def drop_weight(nodes, _):
        weight = nodes[f"{layer}:MatMulInteger"].inputs[1]
        weight.const_value = ir.tensor(np.zeros_like(weight.const_value.numpy()), name=weight.name)

    report = validate(changed(demo / "int8", tmp_path / "wrong", drop_weight), against=DEMO)
    assert not report.passed
    assert report.divergence.layer.startswith(layer.removesuffix(".dense"))


@pytest.mark.parametrize("model_type", CONFIGS)
@pytest.mark.parametrize("target", ["portable", "ort-cpu"])
def test_every_backbone(model_type, target, tmp_path):
    result = export_onnx(save_checkpoint(tmp_path, model_type), tmp_path / "out", dtype="int8", target=target)
    assert result.written
    assert "MatMulInteger" in ops(tmp_path / "out")


def test_weights_are_within_half_a_step():
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((64, 48)).astype(np.float32)
    weight[:, 3] = 0
    weight[:, 4] *= 1000
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["n", 64]))
    w = ir.Value(name="w", const_value=ir.tensor(weight, name="w"))
    product = ir.node("MatMul", [x, w])
    product.outputs[0].name = "y"
    graph = ir.Graph([x], [product.outputs[0]], nodes=[product], initializers=[w], opset_imports={"": 20}, name="g")
    model = ir.Model(graph, ir_version=10)
    assert DynamicInt8Pass()(model).modified
    held = {name: value.const_value.numpy() for name, value in model.graph.initializers.items()}
    levels, scales = held["y_weight_int8"], held["y_weight_scale"]
    assert (np.abs(levels).max(axis=0)[weight.any(axis=0)] == 127).all()
    assert (np.abs(levels * scales - weight) <= scales / 2 * 1.001).all()


@pytest.mark.parametrize("target", ["tensorrt", "ort-cuda"])
def test_targets_of_gpus_refuse(target, tmp_path):
    with pytest.raises(ExportError, match="int8 is for CPUs: use target portable or ort-cpu"):
        export_onnx(DEMO, tmp_path / "out", dtype="int8", target=target)
    assert not (tmp_path / "out").exists()


def test_no_engine_from_it(demo, tmp_path):
    with pytest.raises(EngineError, match="int8, which is for CPUs; TensorRT takes artifacts in fp32, fp16, bf16"):
        export_engine(demo / "int8", tmp_path / "engine", flavor="rtx")


def test_runs_without_torch_as_any_artifact(demo):
    runner = open_runner(demo / "int8")
    outputs = runner.run({name: np.ones((2, 5), dtype=np.int64) for name in runner.input_names})
    assert np.isfinite(outputs["logits"]).all()

"""int8 and int4 weights."""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from adakron_export import Batches, EngineShapes, ExportSettings, Limits, export_onnx, inspect, open_runner, validate
from adakron_export.errors import EngineError, ExportError
from adakron_export.graph.passes.quantize import DynamicInt8Pass
from adakron_export.graph.passes.unsigned_weights import UnsignedWeightsPass
from adakron_export.graph.passes.weight_only import round_in_blocks
from adakron_export.probing.calibration import ChannelStatistics, MagnitudeHistogram, best_smoothing
from adakron_export.tasks import Task
from adakron_export.verbs.tensorrt import export_engine
from conftest import DEMO
from tampered import changed
from tiny import CONFIGS, NATURAL_TASK, first, save_checkpoint


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("int8")
    assert export_onnx(DEMO, folder / "fp32").written
    assert export_onnx(DEMO, folder / "int8", dtype="int8").written
    assert export_onnx(DEMO, folder / "int4", dtype="int4").written
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
    assert inspect(demo / "int8").rewrites == "DynamicInt8, UnsignedWeights, Int8Tables"
    assert (demo / "int8/model.onnx").stat().st_size < 0.32 * (demo / "fp32/model.onnx").stat().st_size


def test_it_agrees_with_eager_and_is_not_the_fp32_artifact(demo):
    report = validate(demo / "int8", against=DEMO, data=DEMO / "train.tsv", batches=Batches(limit=200))
    assert report.passed
    assert report.accuracy.metrics[0].candidate >= report.accuracy.metrics[0].reference - 0.005
    assert not validate(demo / "int8", against=DEMO, limits=Limits(atol=1e-4)).passed


@pytest.mark.parametrize(("dtype", "operator"), [("int8", "MatMulInteger"), ("int4", "DequantizeLinear")])
def test_a_wrong_weight_or_scale_is_caught_and_named(demo, dtype, operator, tmp_path):
    layer = "bert.encoder.layer.1.intermediate.dense"

    def drop_weight(nodes, _):
        weight = nodes[f"{layer}:{operator}"].inputs[1]
        weight.const_value = ir.tensor(np.zeros_like(weight.const_value.numpy()), name=weight.name)

    report = validate(changed(demo / dtype, tmp_path / "wrong", drop_weight), against=DEMO)
    assert not report.passed
    assert report.divergence.layer.startswith(layer.removesuffix(".dense"))


@pytest.mark.parametrize(
    ("model_type", "target"),
    first(
        4,
        [
            ("gpt2", "ort-cpu"),
            ("deberta-v2", "ort-cpu"),
            ("bert", "portable"),
            ("llama", "portable"),
            ("bert", "ort-cpu"),
            *((name, "portable") for name in CONFIGS if name not in ("bert", "llama")),
        ],
    ),
)
def test_every_backbone(model_type, target, tmp_path):
    settings = ExportSettings(opset=21 if target == "portable" else None)  # traced for int4 too
    result = export_onnx(
        save_checkpoint(tmp_path, model_type), tmp_path / "out", dtype="int8", target=target, settings=settings
    )
    assert result.written
    assert "MatMulInteger" in ops(tmp_path / "out")


@pytest.mark.parametrize(
    "model_type", first(2, sorted(CONFIGS, key=("llama", "deberta-v2").__contains__, reverse=True))
)
def test_every_backbone_with_4_bit_weights(model_type, tmp_path):
    decoder = NATURAL_TASK[model_type] is Task.TEXT_GENERATION
    changes = {"initializer_range": 0.05} if decoder else None  # as trained ones have: wide ones saturate
    checkpoint = save_checkpoint(tmp_path, model_type, changes=changes)
    result = export_onnx(checkpoint, tmp_path / "out", dtype="int4")
    assert result.written
    assert (result.artifact.manifest.spec.opset, "DequantizeLinear" in ops(tmp_path / "out")) == (21, True)


def test_shared_weights_stay_shared(tmp_path):
    checkpoint = save_checkpoint(tmp_path, "albert")
    layers = 2
    for dtype, kind, each in (("int8", onnx.TensorProto.UINT8, 6), ("int4", onnx.TensorProto.INT4, 4)):
        assert export_onnx(checkpoint, tmp_path / dtype, dtype=dtype).written
        model = onnx.load(tmp_path / dtype / "model.onnx")
        held = [
            tensor.name for tensor in model.graph.initializer if tensor.data_type == kind and "_product" in tensor.name
        ]
        assert len(held) == each + 1, held  # of a layer, and the projection of the embeddings
        products = [node for node in model.graph.node if node.op_type in ("MatMulInteger", "DequantizeLinear")]
        assert len(products) == each * layers + 2  # and the pooler


def test_4_bit_weights_are_smaller_and_run_as_such(demo, tmp_path):
    sizes = [(demo / dtype / "model.onnx").stat().st_size for dtype in ("int4", "int8")]
    assert sizes[0] < 0.9 * sizes[1]
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    ort.InferenceSession(demo / "int4/model.onnx", options, providers=["CPUExecutionProvider"])
    kinds = [node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node]
    assert kinds.count("MatMulNBits") == 3 * 4 + 1  # queries, keys and values are one
    assert "DequantizeLinear" not in kinds


@pytest.mark.parametrize("rows", [64, 72, 5])
def test_blocks_are_rounded_no_worse_than_by_their_largest_magnitude(rows):
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((rows, 6)).astype(np.float32)
    weight[:, 3] = 0
    weight[: rows // 2, 4] *= 100
    levels, scales = round_in_blocks(weight, 32)
    assert levels.shape == weight.shape
    assert scales.shape == (-(-rows // 32), 6)
    found = levels.astype(np.float32) * np.repeat(scales, 32, axis=0)[:rows]
    assert not found[:, 3].any()
    for start in range(0, rows, 32):
        block, rounded = weight[start : start + 32], found[start : start + 32]
        step = np.maximum(np.abs(block).max(axis=0) / 7, 1e-9)
        plain = np.round(block / step) * step
        assert (np.square(rounded - block).sum(axis=0) <= np.square(plain - block).sum(axis=0) * 1.0001).all()


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
    levels, scales = held["w_product_int8"], held["w_product_int8_scale"]
    assert (np.abs(levels).max(axis=0)[weight.any(axis=0)] == 127).all()
    assert (np.abs(levels * scales - weight) <= scales / 2 * 1.001).all()


TEXT = str(DEMO / "train.tsv")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dtype": "int8", "target": "ort-cuda"}, "ort-cuda has no int8: use portable, ort-cpu, openvino or"),
        ({"dtype": "int8", "target": "tensorrt"}, "needs text to find its scales on; pass --data"),
        (
            {"dtype": "int8", "target": "tensorrt", "data": TEXT, "settings": ExportSettings(opset=18)},
            "needs opset 19",
        ),
        ({"dtype": "int8", "data": TEXT}, "--data has no use.*it is for int8 for openvino or tensorrt, and fp8"),
        ({"dtype": "fp16", "target": "tensorrt", "data": TEXT}, "--data has no use: fp16 for tensorrt"),
        ({"dtype": "fp8", "data": TEXT}, "portable has no fp8: use tensorrt, or fp16 for portable"),
        ({"dtype": "fp8", "target": "tensorrt"}, "fp8 for tensorrt needs text"),
        ({"settings": ExportSettings(per_token=True)}, "scales per token are for int8"),
        ({"dtype": "int4", "target": "tensorrt"}, "target tensorrt has no int4: use portable or ort-cpu"),
        ({"dtype": "int4", "settings": ExportSettings(opset=20)}, "int4 needs opset 21"),
    ],
)
def test_refusals(settings, message, tmp_path):
    with pytest.raises(ExportError, match=message):
        export_onnx(DEMO, tmp_path / "out", **settings)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_no_engine_from_what_is_for_cpus(demo, dtype, tmp_path):
    with pytest.raises(EngineError, match=f"is in {dtype} for CPUs; export the checkpoint with --target tensorrt"):
        export_engine(demo / dtype, tmp_path / "engine", flavor="rtx")


@pytest.fixture(scope="module")
def static(tmp_path_factory):
    folder = tmp_path_factory.mktemp("static") / "out"
    result = export_onnx(DEMO, folder, target="tensorrt", dtype="int8", data=TEXT)
    assert result.written
    return result


def test_products_have_fixed_scales_and_all_else_is_fp16(static):
    graph = onnx.load(static.folder / "model.onnx").graph
    kinds = {tensor.name: tensor.data_type for tensor in graph.initializer}
    assert ops(static.folder).count("QuantizeLinear") == 3 * 4 + 1  # queries, keys and values share one
    assert sum(kind == onnx.TensorProto.INT8 for kind in kinds.values()) == 3 * 6 + 1 + 1  # the zero point
    assert onnx.TensorProto.FLOAT not in kinds.values()
    assert static.parity.candidate == "onnxruntime CPUExecutionProvider, emulated int8"
    assert static.artifact.manifest.calibrated_on == "train.tsv"
    types = {value.name: value.type.tensor_type.elem_type for value in graph.value_info}
    assert types["layer_norm"] == types["linear"] == onnx.TensorProto.FLOAT16


def test_fixed_scales_hold_on_text_and_are_not_fp16(static):
    report = validate(static.folder, against=DEMO, data=TEXT, batches=Batches(limit=200))
    assert report.passed
    assert report.accuracy.metrics[0].candidate >= report.accuracy.metrics[0].reference - 0.005
    assert static.parity.max_abs_error > 0.01


def test_a_wrong_scale_is_caught_and_named(static, tmp_path):
    layer = "bert.encoder.layer.1.intermediate.dense"

    def shrink(nodes, _):
        scale = nodes[f"{layer}:QuantizeLinear"].inputs[1]
        scale.const_value = ir.tensor(scale.const_value.numpy() / np.float16(50), name=scale.name)

    report = validate(changed(static.folder, tmp_path / "wrong", shrink), against=DEMO)
    assert not report.passed
    assert report.divergence.layer.startswith("bert.encoder.layer.1")


@pytest.mark.parametrize("dtype", ["int8", "fp8"])
def test_an_engine_from_a_checkpoint(dtype, tmp_path):
    pytest.importorskip("tensorrt_rtx", reason="needs the extra tensorrt-rtx")
    built = export_engine(
        DEMO, tmp_path / "out", flavor="rtx", dtype=dtype, data=TEXT, shapes=EngineShapes(max_shape=(4, 32))
    )
    assert built.folder.manifest.dtype == dtype
    assert " ERROR" not in (tmp_path / "out" / "build.log").read_text()


def test_fp8_holds_on_text_and_names_a_wrong_scale(tmp_path):
    result = export_onnx(DEMO, tmp_path / "fp8", target="tensorrt", dtype="fp8", data=TEXT)
    assert result.written
    graph = onnx.load(tmp_path / "fp8/model.onnx").graph
    kinds = [tensor.data_type for tensor in graph.initializer]
    assert kinds.count(onnx.TensorProto.FLOAT8E4M3FN) == 3 * 6 + 1 + 1  # the zero point
    assert onnx.TensorProto.INT8 not in kinds
    report = validate(tmp_path / "fp8", against=DEMO, data=TEXT, batches=Batches(limit=200))
    assert report.passed
    assert report.accuracy.metrics[0].candidate >= report.accuracy.metrics[0].reference - 0.005
    assert result.parity.max_abs_error > 0.01
    layer = "bert.encoder.layer.1.intermediate.dense"

    def shrink(nodes, _):
        scale = nodes[f"{layer}:QuantizeLinear"].inputs[1]
        scale.const_value = ir.tensor(scale.const_value.numpy() / np.float16(50), name=scale.name)

    report = validate(changed(tmp_path / "fp8", tmp_path / "wrong", shrink), against=DEMO)
    assert not report.passed
    assert report.divergence.layer.startswith("bert.encoder.layer.1")


def test_ranges_cut_off_what_is_rare_and_far():
    rng = np.random.default_rng(0)
    usual = MagnitudeHistogram()
    for _ in range(4):
        usual.add(rng.standard_normal((64, 100)))
    assert usual.counts.sum() == 4 * 6400
    assert 2.5 < usual.best_range() < 5  # of a standard normal
    outlier = MagnitudeHistogram()
    outlier.add(rng.standard_normal(100_000))
    outlier.add(np.array([40.0]))
    # n (c / 127)^2 / 12 + (40 - c)^2 is smallest where c (1 + n / (12 * 127^2)) is 40.
    assert outlier.best_range() == pytest.approx(40 / (1 + 100_000 / (12 * 127**2)), rel=0.02)
    flat = MagnitudeHistogram()
    flat.add(rng.uniform(-1, 1, 10_000))
    assert flat.best_range() == pytest.approx(1, abs=0.02)
    zero = MagnitudeHistogram()
    zero.add(np.zeros(3))
    assert zero.best_range() == 0


def test_smoothing_takes_outliers_out_of_channels():
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((32, 16)).astype(np.float32)
    rows = rng.standard_normal((500, 32)).astype(np.float32)
    rows[:, 5] *= 60
    rows[:, 6] = 0
    found = ChannelStatistics(*np.zeros((2, 32)))
    for part in np.split(rows, 5):
        found.add(part)
    smoothing = best_smoothing(found, weight)
    assert smoothing.argmax() == 5
    assert np.isclose(np.log(smoothing).mean(), 0)

    def product(divisor):
        step = np.abs(rows / divisor).max() / 127
        steps = np.abs(divisor[:, None] * weight).max(axis=0) / 127
        return (np.round(rows / divisor / step) * step) @ (np.round(divisor[:, None] * weight / steps) * steps)

    error = [np.square(product(divisor) - rows @ weight).mean() for divisor in (smoothing, np.ones(32))]
    assert error[0] < error[1] / 10


def test_no_smoothing_where_it_would_not_help():
    alike = ChannelStatistics(np.ones(4), np.ones(4), 1)
    assert best_smoothing(alike, np.ones((4, 3))) is None
    assert best_smoothing(ChannelStatistics(*np.zeros((2, 4))), np.ones((4, 3))) is None


def test_runs_without_torch_as_any_artifact(demo):
    runner = open_runner(demo / "int8")
    outputs = runner.run({name: np.ones((2, 5), dtype=np.int64) for name in runner.input_names})
    assert np.isfinite(outputs["logits"]).all()


@pytest.mark.parametrize("behind", ["Gelu", "Identity"])
@pytest.mark.parametrize(("columns", "per_token", "exact"), [(16, False, True), (48, False, False), (48, True, True)])
def test_scales_per_token_keep_small_rows_apart_from_large_ones(behind, columns, per_token, exact, tmp_path):
    rng = np.random.default_rng(0)
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["n", 32]))
    w = ir.Value(name="w", const_value=ir.tensor(rng.standard_normal((32, columns)).astype(np.float32), name="w"))
    before = ir.node(behind, [x])
    product = ir.node("MatMul", [before.outputs[0], w])
    product.outputs[0].name, product.outputs[0].dtype = "y", ir.DataType.FLOAT
    graph = ir.Graph([x], [product.outputs[0]], nodes=[before, product], initializers=[w], opset_imports={"": 20},
                     name="g")  # fmt: skip
    model = ir.Model(graph, ir_version=10)
    ir.save(model, tmp_path / "fp32.onnx")
    DynamicInt8Pass(per_token=per_token)(model)
    UnsignedWeightsPass()(model)  # a session of ours would be right without
    ir.save(model, tmp_path / "int8.onnx")
    rows = rng.standard_normal((8, 32)).astype(np.float32) * np.array(
        [[1000.0], *[[1.0]] * 6, [0.0]], dtype=np.float32
    )
    expected, found = (ort.InferenceSession(tmp_path / name).run(None, {"x": rows})[0]
                       for name in ("fp32.onnx", "int8.onnx"))  # fmt: skip
    error = np.abs(found - expected)[1:7].max() / np.abs(expected)[1:7].max()
    assert (error < 0.03) == exact
    np.testing.assert_array_equal(found[7], 0.0)

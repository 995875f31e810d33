"""Integer products on CPUs with and without VNNI; valgrind shows programs a CPU without."""

import shutil
import subprocess
import sys

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from adakron_export import Subject, export_onnx, inspect, validate
from adakron_export.graph.keys import EXACT_SUMS
from adakron_export.graph.passes.unsigned_weights import UnsignedWeightsPass, signed_products
from adakron_export.graph.saturation import saturating
from adakron_export.runtimes.integer_sums import saturates
from adakron_export.verbs.doctor import examine
from conftest import DEMO
from tiny import save_checkpoint

ROWS, INNER, COLUMNS = 5, 46, 24


@pytest.fixture(scope="module")
def int8(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saturation")
    for target in ("portable", "ort-cpu"):
        assert export_onnx(DEMO, folder / target, dtype="int8", target=target).written
    return folder


def product_of(weights):
    """A graph of one product of uint8, whose zero is 3, by int8."""
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.UINT8), shape=ir.Shape([1, "n", len(weights)]))
    w = ir.Value(name="w_int8", const_value=ir.tensor(weights, name="w_int8"))
    w.dtype, w.shape = ir.DataType.INT8, ir.Shape(weights.shape)
    zero = ir.Value(name="zero", const_value=ir.tensor(np.array(3, dtype=np.uint8), name="zero"))
    node = ir.node("MatMulInteger", [x, w, zero])
    node.outputs[0].name, node.outputs[0].dtype = "y", ir.DataType.INT32
    graph = ir.Graph([x], node.outputs, nodes=[node], initializers=[w, zero], opset_imports={"": 20}, name="g")
    return ir.Model(graph, ir_version=10)


def run(model, x):
    proto = ir.serde.serialize_model(model).SerializeToString()
    return ort.InferenceSession(proto, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]


@pytest.mark.parametrize("inner", [INNER, INNER + 1])
def test_emulation_clips_sums_of_two_and_the_rewrite_does_not(inner):
    rng = np.random.default_rng(0)
    weights = rng.integers(-127, 128, (inner, COLUMNS)).astype(np.int8)
    x = rng.integers(0, 256, (1, ROWS, inner)).astype(np.uint8)
    exact = (x.astype(int) - 3) @ weights.astype(int)
    pairs = x[..., :INNER].astype(int).reshape(1, ROWS, -1, 2, 1) * weights[:INNER].astype(int).reshape(-1, 2, COLUMNS)
    clipped = np.clip(pairs.sum(-2), -32768, 32767).sum(-2) - 3 * weights.astype(int).sum(0)
    clipped = clipped + x[..., INNER:].astype(int) @ weights[INNER:].astype(int)
    assert np.abs(clipped - exact).max() > 0.05 * np.abs(exact).max()
    model = product_of(weights)
    np.testing.assert_array_equal(run(saturating(model), x), clipped)
    assert UnsignedWeightsPass()(model).modified
    assert not UnsignedWeightsPass()(model).modified
    np.testing.assert_array_equal(run(model, x), exact)


def test_a_weight_that_another_one_is_the_transpose_of(tmp_path):
    checkpoint = save_checkpoint(tmp_path, "gpt2")
    subject = Subject(checkpoint, task="text-generation")
    assert export_onnx(subject, tmp_path / "out", dtype="int8", target="ort-cpu").written
    model = ir.load(tmp_path / "out/model.onnx")
    heads = [node for node in model.graph if node.op_type == "Transpose" and node.inputs[0].const_value is not None]
    (head,) = heads
    assert {use.node for use in head.outputs[0].uses()} <= {*signed_products(model)}
    ids = np.arange(6).reshape(1, 6)
    feed = {"input_ids": ids, "attention_mask": np.ones_like(ids), "position_ids": ids}
    results = [ort.InferenceSession(ir.serde.serialize_model(each).SerializeToString()).run(["logits"], feed)[0]
               for each in (model, saturating(model))]  # fmt: skip
    assert (np.abs(results[0] - results[1]).max() > 1e-3) != saturates()
    UnsignedWeightsPass()(model)
    exact = ort.InferenceSession(ir.serde.serialize_model(model).SerializeToString()).run(["logits"], feed)[0]
    assert signed_products(model) == []
    if not saturates():
        np.testing.assert_allclose(exact, results[0], atol=1e-5)


def test_weights_of_7_bits_need_no_rewrite():
    model = product_of(np.full((8, 4), -64, dtype=np.int8))
    assert signed_products(model) == []
    assert signed_products(product_of(np.full((8, 4), 65, dtype=np.int8)))


def test_who_is_told(int8):
    assert inspect(int8 / "portable").integer_products == "exact on every CPU"
    assert EXACT_SUMS in inspect(int8 / "ort-cpu").integer_products
    assert "exact on every CPU" in (int8 / "portable/README.md").read_text()
    assert EXACT_SUMS in (int8 / "ort-cpu/README.md").read_text()
    assert examine().machine["integer_products"].startswith("saturate" if saturates() else "exact")


def test_validation_says_what_other_cpus_would_give(int8):
    notes = validate(int8 / "ort-cpu", against=DEMO).notes
    assert any("without VNNI" in note for note in notes)
    assert not any("without VNNI" in note for note in validate(int8 / "portable", against=DEMO).notes)


RUN = """
import sys, numpy as np, onnxruntime as ort
from adakron_export import open_runner
from adakron_export.runtimes.integer_sums import saturates
ids = np.arange(5, 45).reshape(2, 20)
batch = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
folder = sys.argv[1]
plain = lambda path: ort.InferenceSession(path, providers=["CPUExecutionProvider"]).run(["logits"], batch)[0]
found = {target: plain(f"{folder}/{target}/model.onnx") for target in ("portable", "ort-cpu")}
found["runner"] = open_runner(f"{folder}/ort-cpu").run(batch)["logits"]
found["emulated"] = plain(f"{folder}/saturating.onnx")
np.savez(sys.argv[2], saturates=saturates(), **found)
"""


def test_a_cpu_without_vnni_answers_the_same(int8, tmp_path):
    if shutil.which("valgrind") is None:
        pytest.skip("needs valgrind, which shows programs a CPU without VNNI")
    ir.save(saturating(ir.load(int8 / "ort-cpu/model.onnx")), int8 / "saturating.onnx")
    command = [sys.executable, "-c", RUN, str(int8)]
    subprocess.run([*command, str(tmp_path / "here.npz")], check=True)
    subprocess.run(["valgrind", "--tool=none", "-q", *command, str(tmp_path / "there.npz")], check=True)
    here, there = np.load(tmp_path / "here.npz"), np.load(tmp_path / "there.npz")
    assert there["saturates"]
    for name in ("portable", "runner", "emulated"):
        np.testing.assert_allclose(there[name], here[name], atol=1e-4)
    np.testing.assert_allclose(there["ort-cpu"], there["emulated"], atol=1e-4)
    assert np.abs(there["ort-cpu"] - there["runner"]).max() > 0.05  # so that it is no accident


def test_openvino_weights_have_7_bits(tmp_path):
    pytest.importorskip("openvino", reason="needs the extra openvino")
    folder = tmp_path / "int8"
    assert export_onnx(DEMO, folder, target="openvino", dtype="int8", data=DEMO / "train.tsv").written
    weights = [onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(folder / "model.onnx").graph.initializer
               if tensor.name.endswith("_weight_int8")]  # fmt: skip
    assert {int(np.abs(weight.astype(int)).max()) for weight in weights} == {64}
    assert inspect(folder).integer_products == "exact on every CPU"

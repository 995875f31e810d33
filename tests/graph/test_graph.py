"""The operator, capture, lowering and emulation."""

from collections import Counter

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch

from adakron_export.adapter.folding import KronAdapter, fold
from adakron_export.adapter.layer import ACTIVATIONS, AdaKronLayer
from adakron_export.adapter.op import kron_adapter
from adakron_export.artifacts.onnx_file import write_model
from adakron_export.checkpoints.pooling import Normalize, Pooling, SentenceEmbedding
from adakron_export.checkpoints.task_model import TaskModel
from adakron_export.errors import ExportError
from adakron_export.graph import kron_op
from adakron_export.graph.capture import capture, kron_nodes
from adakron_export.graph.emulation import emulate
from adakron_export.graph.keys import MODULE_KEY, REWRITES_KEY
from adakron_export.graph.lowering import lower
from adakron_export.graph.passes.attention_forms import AttentionFormPass
from adakron_export.graph.passes.fold_biases import FoldBiasesPass
from adakron_export.graph.passes.fuse_attention import FuseAttentionPass
from adakron_export.graph.passes.rms_norm import RmsNormPass
from adakron_export.graph.passes.rotary import RotaryPass
from adakron_export.graph.sample import sample_batch
from adakron_export.graph.targets import TARGETS, target_named
from tiny import NATURAL_TASK, adapted, backbone_of, first, inputs_of


def session_of(model, tmp_path):
    ir.save(model, tmp_path / "m.onnx")
    onnx.checker.check_model(str(tmp_path / "m.onnx"), full_check=True)
    return ort.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])


def folded_model(model_type="bert", dtype=torch.float32, **settings):
    model = adapted(backbone_of(model_type), **settings)
    task = NATURAL_TASK[model_type]
    eager = TaskModel(model.get_base_model(), task)
    return eager, TaskModel(fold(model).to(dtype), task)


def captured(folded, opset=20):
    return capture(folded, sample_batch(folded.model.config, folded.signature), opset=opset)


@pytest.fixture(scope="module")
def bert():
    eager, folded = folded_model()
    return eager, captured(folded)


def batch_of(eager, tokens=6):
    inputs = inputs_of(eager.model, tokens=tokens)
    inputs["token_type_ids"] = torch.zeros_like(inputs["input_ids"])
    return {name: inputs[name] for name in eager.signature.inputs}


def difference(eager, session, batch):
    with torch.no_grad():
        expected = eager(*batch.values())[0].numpy()
    return np.abs(session.run(None, {name: t.numpy() for name, t in batch.items()})[0] - expected).max()


@pytest.mark.parametrize("order", ["a2_a1", "a1_a2"])
@pytest.mark.parametrize("activation", [activation.value for activation in ACTIVATIONS])
@pytest.mark.parametrize("opset", [18, 20, 23])
def test_function_body_is_the_torch_operator(tmp_path, order, activation, opset):
    hidden, r, k = 10, 12, 3
    rng = np.random.default_rng(0)
    shapes = [(2, 5, hidden), (hidden, r // k), (r // k,), (hidden, k), (k,), (r, hidden)]
    arrays = [rng.standard_normal(shape).astype(np.float32) for shape in shapes]
    kron_op.register_schema()
    inputs = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
        for name, shape in zip(kron_op.INPUTS, shapes, strict=True)
    ]
    node = onnx.helper.make_node(
        "KronAdapter", kron_op.INPUTS, ["Y"], domain="adakron", order=order, activation=activation
    )
    graph = onnx.helper.make_graph([node], "g", inputs, [onnx.helper.make_tensor_value_info("Y", 1, shapes[0])])
    function = onnx.parser.parse_function(kron_op.body_text(order, activation, opset=opset))
    assert all(not inner.name for inner in function.node)  # TensorRT warns of each repeated name
    opsets = [onnx.helper.make_opsetid("", opset), onnx.helper.make_opsetid("adakron", 1)]
    model = onnx.helper.make_model(graph, functions=[function], opset_imports=opsets, ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found = session.run(None, dict(zip(kron_op.INPUTS, arrays, strict=True)))[0]
    expected = kron_adapter(*map(torch.from_numpy, arrays), order, activation).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-4)


def test_kron_op_matches_numpy_kron():
    """Against numpy's own product, so that torch and ONNX are not merely wrong together."""
    rng = np.random.default_rng(0)
    x, a1, b1, a2, b2, u = (rng.standard_normal(s) for s in [(1, 2, 4), (4, 3), (3,), (4, 2), (2,), (6, 4)])
    found = kron_adapter(*map(torch.from_numpy, (x, a1, b1, a2, b2, u)), "a2_a1", "relu").numpy()
    for token in range(2):
        product = np.kron(x[0, token] @ a2 + b2, x[0, token] @ a1 + b1)
        np.testing.assert_allclose(found[0, token], x[0, token] + np.maximum(product, 0) @ u, rtol=1e-12)


@pytest.mark.parametrize("model_type", ["bert", "gpt2", "llama", "albert"])
@pytest.mark.parametrize("experts", [1, 3])
def test_fold_keeps_outputs_and_leaves_the_model_alone(model_type, experts):
    model = adapted(backbone_of(model_type), num_experts=experts)
    for _name, layer in model.named_modules():
        if isinstance(layer, AdaKronLayer):
            torch.nn.init.normal_(layer.adakron_up["default"].bias)
    inputs = inputs_of(model)
    with torch.no_grad():
        before = model(**inputs).logits
        folded = fold(model)
        torch.testing.assert_close(folded(**inputs).logits, before, rtol=0, atol=1e-5)
        assert torch.equal(model(**inputs).logits, before)
    kinds = {type(module).__name__ for module in folded.modules()}
    assert "KronAdapter" in kinds
    assert kinds.isdisjoint({"AdaKronLayer", "SmallNetwork", "ModulesToSaveWrapper", "Dropout"})


def test_fold_shares_the_backbones_memory_until_it_is_cast():
    model = adapted(backbone_of("bert"))
    own = {tensor.data_ptr() for tensor in model.get_base_model().parameters()}
    folded = fold(model)
    shared = [tensor.data_ptr() in own for name, tensor in folded.named_parameters() if "projection.bias" not in name]
    assert all(shared)
    folded.half()
    assert {tensor.dtype for tensor in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_written_file_is_what_protobuf_would_write(tmp_path, dtype, monkeypatch):
    monkeypatch.setattr("adakron_export.artifacts.onnx_file._PIECE", 500)  # weights have more bytes than that
    graph = captured(folded_model(dtype=dtype)[1])
    write_model(graph, tmp_path)
    onnx.checker.check_model(str(tmp_path / "model.onnx"), full_check=True)
    found, expected = onnx.load(tmp_path / "model.onnx"), ir.serde.serialize_model(graph)
    weights = {tensor.name for tensor in expected.graph.initializer}
    infos = [info for info in expected.graph.value_info if info.name not in weights]  # they say their types themselves
    del expected.graph.value_info[:]
    expected.graph.value_info.extend(infos)
    assert found == expected


def test_fold_needs_one_active_adapter():
    from adakron_export import AdaKronConfig

    model = adapted(backbone_of("bert"), task_type=None)
    model.add_adapter("second", AdaKronConfig(r=8))
    model.base_model.set_adapter(["default", "second"])
    with pytest.raises(ExportError, match="2 adapters are active"):
        fold(model)


def test_fold_of_a_model_with_adapters_in_some_layers():
    model = adapted(backbone_of("bert"), layers_to_transform=[1])
    folded = fold(model)
    assert [name for name, module in folded.named_modules() if isinstance(module, KronAdapter)] == [
        "bert.encoder.layer.1.output.dense"
    ]


def test_portable_graph_has_one_node_and_one_function(bert, tmp_path):
    eager, graph = bert
    nodes = kron_nodes(graph)
    assert [node.metadata_props["adakron_export.module"] for node in nodes] == [
        f"bert.encoder.layer.{layer}.output.dense" for layer in range(2)
    ]
    assert [identifier[:2] for identifier in graph.functions] == [("adakron", "KronAdapter")]
    session = session_of(graph, tmp_path)
    for tokens in (1, 6, 40):
        assert difference(eager, session, batch_of(eager, tokens)) < 1e-5


def test_graph_names_no_file_of_the_machine(bert, tmp_path):
    ir.save(bert[1], tmp_path / "m.onnx")
    content = (tmp_path / "m.onnx").read_bytes()
    assert b"site-packages" not in content
    assert b".py" not in content


@pytest.mark.parametrize("target", TARGETS)
def test_lowering_keeps_outputs_and_its_input(bert, tmp_path, target):
    eager, graph = bert
    before = len(graph.graph)
    lowered = lower(graph, target_named(target))
    assert len(graph.graph) == before
    assert len(kron_nodes(lowered)) == (2 if TARGETS[target].keeps_function else 0)
    assert bool(lowered.functions) == TARGETS[target].keeps_function
    assert difference(eager, session_of(lowered, tmp_path), batch_of(eager)) < 1e-5


def test_down_projections_are_merged_once_per_adapter(bert):
    lowered = lower(bert[1], TARGETS["ort-cpu"])
    inlined = lower(bert[1], TARGETS["ort-cuda"].__class__("inlined", keeps_function=False))
    count = {name: sum(node.op_type == "MatMul" for node in model.graph) for name, model in
             (("merged", lowered), ("inlined", inlined))}  # fmt: skip
    assert count["inlined"] - count["merged"] == 2
    assert sum(node.op_type == "Split" for node in lowered.graph) == 2
    assert lowered.metadata_props[REWRITES_KEY].startswith("MergeDownProjections,")


def test_wide_pairs_are_not_merged(bert, monkeypatch):
    from adakron_export.graph.passes.merge_downs import MergeDownProjectionsPass

    monkeypatch.setattr(MergeDownProjectionsPass, "MAX_COLUMNS", 5)
    lowered = lower(bert[1], TARGETS["ort-cpu"])
    assert not any(node.op_type == "Split" for node in lowered.graph)
    assert lowered.metadata_props[REWRITES_KEY].startswith("MergeDownProjections (no match)")


def operators(model):
    return Counter(node.op_type for node in model.graph)


def padded_batch(folded):
    batch = sample_batch(folded.model.config, folded.signature)
    if "attention_mask" in batch:
        batch["attention_mask"][0, batch["attention_mask"].shape[1] // 2 :] = 0
    return batch


@pytest.mark.parametrize(
    "model_type", first(4, ["bert", "albert", "vit", "mpnet", "distilbert", "electra", "roberta"])
)
def test_attention_is_one_operator_per_layer_and_the_outputs_stay(model_type, tmp_path):
    eager, folded = folded_model(model_type)
    batch = padded_batch(folded)
    graph = captured(folded, 23)
    lowered = lower(graph, TARGETS["ort-cpu"])
    before, after = operators(graph), operators(lowered)
    assert (before["Softmax"], after["Attention"], after["Softmax"]) == (2, 2, 0)
    attention = [node for node in lowered.graph if node.op_type == "Attention"]
    assert all(node.attributes["q_num_heads"].as_int() == 4 for node in attention)
    assert len({node.inputs[3] for node in attention if len(node.inputs) > 3}) == ("attention_mask" in batch)
    assert all(node.metadata_props[MODULE_KEY] for node in attention)
    assert difference(eager, session_of(lowered, tmp_path), batch) < 1e-5


def test_biases_of_keys_and_values_are_folded(tmp_path):
    eager, folded = folded_model()
    graph = captured(folded, 23)
    attention = [node for node in lower(graph, TARGETS["ort-cpu"]).graph if node.op_type == "Attention"]
    made_by = [[value.producer().op_type for value in node.inputs[:3]] for node in attention]
    assert made_by == [["Add", "MatMul", "MatMul"]] * 2
    session = session_of(lower(graph, TARGETS["ort-cpu"]), tmp_path)
    assert difference(eager, session, padded_batch(folded)) < 1e-5


@pytest.mark.parametrize("attribute", [ir.AttrFloat32("softcap", 30.0), None])
def test_biases_that_are_seen_stay(attribute):
    """Scores that are capped see the bias of keys, and another reader of the results that of values."""
    graph = FuseAttentionPass()(captured(folded_model()[1], 23).clone()).model
    layers = [node for node in graph.graph if node.op_type == "Attention"]
    for node in layers:
        if attribute is None:
            graph.graph.outputs.append(node.outputs[0])
        else:
            node.attributes.add(attribute)
    FoldBiasesPass()(graph)
    made_by = [[value.producer().op_type for value in node.inputs[1:3]] for node in layers]
    assert made_by == [["MatMul" if attribute is None else "Add", "Add"]] * 2


@pytest.mark.parametrize("model_type", first(2, ["modernbert", "llama", "mistral", "qwen2", "qwen3"]))
def test_attention_over_heads_that_stay_split(model_type, tmp_path):
    eager, folded = folded_model(model_type)
    lowered = lower(captured(folded, 23), TARGETS["ort-cpu"])
    assert (operators(lowered)["Attention"], operators(lowered)["Softmax"]) == (2, 0)
    assert not any("q_num_heads" in node.attributes for node in lowered.graph)
    assert difference(eager, session_of(lowered, tmp_path), padded_batch(folded)) < 1e-5


@pytest.mark.parametrize(("model_type", "norms"), first(1, [("qwen3", 9), ("llama", 5)]))
def test_norms_and_rotations_are_one_operator_each(model_type, norms, tmp_path):
    eager, folded = folded_model(model_type)
    lowered = lower(captured(folded, 23), TARGETS["ort-cpu"])
    found = operators(lowered)
    assert (found["RMSNormalization"], found["RotaryEmbedding"], found["Pow"], found["Neg"]) == (norms, 4, 0, 0)
    assert all(node.attributes["num_heads"].as_int() for node in lowered.graph if node.op_type == "RotaryEmbedding")
    assert difference(eager, session_of(lowered, tmp_path), padded_batch(folded)) < 1e-5
    before = operators(lower(captured(folded, 22), TARGETS["ort-cpu"]))
    assert (before["RMSNormalization"], before["RotaryEmbedding"]) == (0, 0)


def test_what_is_no_norm_and_no_rotation_stays():
    """A mean of something else, and angles that differ between the halves."""
    graph = captured(folded_model("llama")[1], 23).clone()
    square = next(node for node in graph.graph if node.op_type == "Pow")
    square.replace_input_with(0, next(node for node in graph.graph if node.op_type == "Gather").outputs[0])
    other = next(node for node in reversed([*graph.graph]) if node.op_type == "Pow")
    other.replace_input_with(0, square.inputs[0])
    angles = next(node for node in graph.graph if node.op_type == "Cos").inputs[0].producer()
    angles.replace_input_with(1, ir.node("Neg", [angles.inputs[0]]).outputs[0])
    assert RmsNormPass()(graph).modified
    assert (operators(graph)["Pow"], operators(graph)["RMSNormalization"]) == (1, 4)
    assert not RotaryPass()(graph).modified


@pytest.mark.parametrize(("form", "added"), [("plain", "Softmax"), ("MultiHeadAttention", "MultiHeadAttention")])
@pytest.mark.parametrize("model_type", ["bert", "vit"])
def test_other_forms_of_attention_have_the_same_outputs(model_type, form, added, tmp_path):
    eager, folded = folded_model(model_type)
    batch = padded_batch(folded)
    lowered = lower(captured(folded, 23), TARGETS["ort-cpu"])
    AttentionFormPass(form)(lowered)
    assert (operators(lowered)["Attention"], operators(lowered)[added]) == (0, 2)
    write_model(lowered, tmp_path)
    session = ort.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    assert difference(eager, session, batch) < 1e-5


@pytest.mark.parametrize("model_type", first(2, ["deberta-v2", "gpt2", "deberta"]))
def test_attention_of_another_form_stays_as_it_is(model_type):
    folded = folded_model(model_type)[1]
    graph = captured(folded, 23)
    lowered = lower(graph, TARGETS["ort-cpu"])
    assert operators(lowered)["Softmax"] == operators(graph)["Softmax"] == 2
    assert lowered.metadata_props[REWRITES_KEY] == (
        "MergeDownProjections, FuseAttention (no match), FoldBiases (no match)"
        + (", ShareTransposed" if model_type == "gpt2" else "")  # its head is the embedding, transposed
    )


def test_attention_stays_in_plain_operators_before_opset_23(bert):
    assert operators(lower(bert[1], TARGETS["ort-cpu"]))["Attention"] == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_emulation_rounds_as_torch_does(tmp_path, dtype):
    eager, folded = folded_model(dtype=dtype)
    batch = batch_of(eager)
    graph = captured(folded)
    with torch.no_grad():
        half = folded(*batch.values())[0].numpy()
        full = eager(*batch.values())[0].numpy()
    found = session_of(emulate(graph), tmp_path).run(None, {name: t.numpy() for name, t in batch.items()})[0]
    eps = torch.finfo(dtype).eps
    assert 0 < np.abs(found - full).max() < 30 * eps * np.abs(full).max()
    assert np.abs(found - half).max() < 30 * eps * np.abs(full).max()


@pytest.mark.parametrize("opset", [17, 24])
def test_opset_out_of_range(opset):
    with pytest.raises(ExportError, match=f"opset {opset} is not supported; choose 18 to 23"):
        captured(folded_model()[1], opset)


def test_unknown_target():
    with pytest.raises(ExportError, match="target 'ort' is unknown; choose one of portable, ort-cpu"):
        target_named("ort")


MODES = ["cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"]


@pytest.mark.parametrize("mode", MODES)
def test_pooling_ignores_padding(mode):
    hidden = torch.randn(2, 4, 3)
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]])
    embed = SentenceEmbedding(Pooling(mode), Normalize())
    alone = embed(hidden[:1, :2], mask[:1, :2])
    torch.testing.assert_close(embed(hidden, mask)[:1], alone)
    torch.testing.assert_close(alone.norm(dim=-1), torch.ones(1))


def count_decompositions(monkeypatch):
    from torch.onnx._internal.exporter import _fx_passes

    calls, decompose = [], _fx_passes.decompose_with_registry

    def counted(program, registry):
        calls.append(program)
        return decompose(program, registry)

    monkeypatch.setattr(_fx_passes, "decompose_with_registry", counted)
    return calls


@pytest.mark.parametrize(
    ("model_type", "decomposed"),
    first(
        2, [("bert", False), ("mpnet", True), ("llama", False), ("distilbert", False), ("vit", False), ("gpt2", False)]
    ),
)
@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.float16, marks=pytest.mark.slow)])
def test_only_what_needs_it_is_decomposed_and_the_graph_is_the_same(model_type, decomposed, dtype, monkeypatch):
    _, folded = folded_model(model_type, dtype)
    calls = count_decompositions(monkeypatch)
    found = captured(folded)
    assert bool(calls) == decomposed
    monkeypatch.setattr("adakron_export.graph.decomposition._internals", lambda: (None, None))
    expected = captured(folded)
    assert len(calls) == 1 + decomposed
    assert [node.op_type for node in found.graph] == [node.op_type for node in expected.graph]
    assert [value.dtype for value in found.graph.outputs] == [value.dtype for value in expected.graph.outputs]

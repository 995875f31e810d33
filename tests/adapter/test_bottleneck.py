"""Bottleneck adapters as a PEFT method: what they compute, how they fold, and what they refuse."""

import threading

import numpy as np
import onnx
import pytest
import torch
from peft import PeftModel, get_peft_model

from adakron_export import BottleneckConfig, Subject, export_engine, export_onnx, fold, open_runner, validate
from adakron_export.adapter.bottleneck.layer import BottleneckLayer
from adakron_export.checkpoints.kinds import base_of
from adakron_export.errors import AdapterConfigError, AdapterUseError
from adakron_export.tasks import peft_task_type
from tiny import CONFIGS, NATURAL_TASK, backbone_of, first, inputs_of

PFEIFFER = {}
HOULSBY = {"position": "both", "original_ln_before": False, "activation": "silu"}
PARALLEL = {"parallel": True, "scaling": 4.0}


def tuned(model_type="bert", **settings):
    """A backbone with random bottlenecks."""
    model = backbone_of(model_type)
    torch.manual_seed(2)
    task = peft_task_type(NATURAL_TASK[model_type])
    config = BottleneckConfig(**{"reduction_factor": 4, "init_weights": False, "task_type": task, **settings})
    model = get_peft_model(model, config)
    for name, parameter in model.named_parameters():
        if "bottleneck_" in name:
            parameter.data.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def save(folder, model_type="bert", **settings):
    model = tuned(model_type, **settings)
    base_of(model).config.architectures = [type(base_of(model)).__name__]
    backbone_of(model_type).save_pretrained(folder / "backbone")
    model.peft_config["default"].base_model_name_or_path = str(folder / "backbone")
    model.save_pretrained(folder / "adapter")
    base_of(model).config.save_pretrained(folder / "adapter")
    return folder / "adapter"


def answers(model, inputs):
    with torch.no_grad():
        return model(**inputs)[0]


@pytest.mark.parametrize("settings", [PFEIFFER, HOULSBY, PARALLEL], ids=["pfeiffer", "houlsby", "parallel"])
@pytest.mark.parametrize("model_type", CONFIGS)
def test_each_backbone_folds_each_form(model_type, settings):
    model = tuned(model_type, **settings)
    base, inputs = base_of(model), inputs_of(base_of(model))
    adapted = answers(base, inputs)
    with model.disable_adapter():
        assert (answers(base, inputs) - adapted).abs().max() > 0.01
    torch.testing.assert_close(answers(fold(model), inputs), adapted, rtol=0, atol=5e-5)


@pytest.mark.parametrize("model_type", ["bert", "gpt2"])
def test_what_the_forms_are(model_type):
    """Written out for one layer, as the papers have it."""
    model = backbone_of(model_type)
    layer = model.bert.encoder.layer[0].output if model_type == "bert" else model.transformer.h[0].mlp
    dense = layer.dense if model_type == "bert" else layer.c_proj
    norm = layer.LayerNorm if model_type == "bert" else torch.nn.Identity()
    names = {"target_modules": None, "layers_to_transform": [0], "reduction_factor": 4, "init_weights": False}
    inner, stream = torch.randn(2, 5, 48), torch.randn(2, 5, 32)
    hidden = dense(inner)
    for settings in (PFEIFFER, HOULSBY, PARALLEL):
        torch.manual_seed(1)
        own = get_peft_model(backbone_of(model_type), BottleneckConfig(**{**names, **settings})).eval()
        layers = {name: module for name, module in own.named_modules() if isinstance(module, BottleneckLayer)}
        found = [module for name, module in layers.items() if "attn" not in name and "attention" not in name]
        adapter = found[0].adapter("default")
        read = {"pfeiffer": norm(hidden + stream), "houlsby": hidden, "parallel": stream}
        kind = "parallel" if settings is PARALLEL else "houlsby" if settings is HOULSBY else "pfeiffer"
        activate = torch.nn.functional.silu if kind == "houlsby" else torch.relu
        delta = adapter.up(activate(adapter.down(read[kind]))) * (4 if kind == "parallel" else 1)
        if found[0].around is not None:
            found[0].around.stream.put(stream)
        torch.testing.assert_close(found[0](inner), hidden + delta)


def test_it_begins_as_the_identity_and_learns():
    model = get_peft_model(backbone_of("bert"), BottleneckConfig(task_type="SEQ_CLS", reduction_factor=4))
    inputs = inputs_of(base_of(model))
    torch.testing.assert_close(answers(model.eval(), inputs), answers(backbone_of("bert"), inputs))
    model.train()
    before = {name: parameter.clone() for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert all("bottleneck_" in name or "modules_to_save" in name for name in before)
    optimizer = torch.optim.SGD([parameter for parameter in model.parameters() if parameter.requires_grad], 0.5)
    for _ in range(2):
        model(**inputs, labels=torch.tensor([0, 1])).loss.backward()
        optimizer.step()
    changed = {
        name for name, parameter in model.named_parameters() if name in before and not parameter.equal(before[name])
    }
    assert {name for name in before if "bottleneck_" in name} <= changed


def test_gradients_are_the_same_with_checkpointing():
    def gradients(model):
        model.train()
        model(**inputs_of(base_of(model)), labels=torch.tensor([0, 1])).loss.backward()
        return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}

    plain, saved = tuned(), tuned()
    for model in (plain, saved):
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
    saved.get_base_model().activation_checkpointing_enable({"use_reentrant": False})
    first, second = gradients(plain), gradients(saved)
    assert {name for name in first if "bottleneck_" in name}
    for name, gradient in first.items():
        torch.testing.assert_close(second[name], gradient)


def test_peft_saves_and_loads_it(tmp_path):
    checkpoint = save(tmp_path, **HOULSBY, scaling="channel", ln_before=True, ln_after=True, use_gating=True)
    model = tuned(**HOULSBY, scaling="channel", ln_before=True, ln_after=True, use_gating=True)
    inputs = inputs_of(base_of(model))
    loaded = PeftModel.from_pretrained(backbone_of("bert"), checkpoint).eval()
    assert answers(loaded, inputs).equal(answers(model, inputs))
    assert "import adakron_export" in (checkpoint / "README.md").read_text()


def test_adapters_stay_in_fp32_on_a_backbone_in_half_precision():
    settings = {**HOULSBY, "init_weights": False, "r": 8, "ln_before": True, "ln_after": True, "invertible": "nice"}
    model = get_peft_model(backbone_of("bert").to(torch.bfloat16), BottleneckConfig(**settings)).eval()
    assert {each.dtype for name, each in model.named_parameters() if "bottleneck_" in name} == {torch.float32}
    assert answers(model, inputs_of(base_of(model))).dtype is torch.bfloat16


def test_unload_gives_the_backbone_back():
    model = tuned(original_ln_after=False)
    inputs = inputs_of(base_of(model))
    plain = model.unload()
    assert not [module for module in plain.modules() if module._forward_hooks or module._forward_pre_hooks]
    assert answers(plain, inputs).equal(answers(backbone_of("bert"), inputs))


def test_threads_do_not_mix_what_a_layer_holds():
    model, inputs = base_of(tuned(**PARALLEL)), [inputs_of(backbone_of("bert"), batch=size) for size in range(1, 9)]
    alone = [answers(model, each) for each in inputs]
    found = [None] * len(inputs)

    def run(index):
        for _ in range(5):
            found[index] = answers(model, inputs[index])

    threads = [threading.Thread(target=run, args=[index]) for index in range(len(inputs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one, other in zip(found, alone, strict=True):
        torch.testing.assert_close(one, other)


def test_several_active_adapters_follow_one_another():
    model = get_peft_model(backbone_of("bert"), BottleneckConfig(r=8, init_weights=False, **HOULSBY)).eval()
    model.add_adapter("second", BottleneckConfig(r=4, init_weights=False, **HOULSBY))
    layer = next(module for module in model.modules() if isinstance(module, BottleneckLayer))
    inner = torch.randn(2, 3, layer.base_layer.in_features)
    model.base_model.set_adapter(["default", "second"])
    hidden = layer.base_layer(inner)
    for name in ("default", "second"):
        hidden = layer.adapter(name)(hidden, hidden)
    torch.testing.assert_close(layer(inner), hidden)


def test_it_cannot_be_merged_and_answers_whole_batches():
    model = tuned()
    with pytest.raises(AdapterUseError, match="non-linear and cannot be merged"):
        model.merge_and_unload()
    with pytest.raises(AdapterUseError, match="one bottleneck answers for a whole batch"):
        model(**inputs_of(base_of(model)), adapter_names=["default", "default"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"r": 0}, "r is 0; it must be a whole number"),
        ({"reduction_factor": -1}, "reduction_factor is -1"),
        ({"reduction_factor": {"0": 4}}, "has none for layer 1, and no 'default'"),
        ({"position": "head"}, "position is 'head'; it must be ffn or attention or both"),
        ({"scaling": "rows"}, "scaling is 'rows'"),
        ({"activation": "unheard"}, "activation is 'unheard'"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"residual_before_ln": "post_add", "parallel": True}, "post_add', which is for original_ln_before"),
    ],
)
def test_impossible_settings_are_named(settings, message):
    with pytest.raises(AdapterConfigError, match=message):
        get_peft_model(backbone_of("bert"), BottleneckConfig(**settings))


def test_what_needs_a_norm_that_is_not_there_is_refused():
    with pytest.raises(AdapterConfigError, match="needs a LayerNorm behind transformer.h.0.mlp.c_proj"):
        get_peft_model(backbone_of("gpt2"), BottleneckConfig(residual_before_ln="post_add"))


def test_a_projection_that_is_not_known_takes_what_reads_it_alone():
    with pytest.raises(AdapterConfigError, match="is no output of attention or FFN that is known of a bert"):
        get_peft_model(backbone_of("bert"), BottleneckConfig(target_modules=["intermediate.dense"]))
    alone = BottleneckConfig(target_modules=["intermediate.dense"], original_ln_before=False, r=4)
    assert get_peft_model(backbone_of("bert"), alone)


@pytest.mark.parametrize(
    ("model_type", "target", "dtype", "settings"),
    first(
        4,
        [
            ("bert", "portable", "fp32", {**HOULSBY, "activation": "leaky_relu"}),
            ("roberta", "ort-cpu", "fp16", PARALLEL),
            ("gpt2", "ort-cpu", "fp32", {"position": "both", "activation": "gelu_tanh"}),
            ("bert", "ort-cpu", "int8", HOULSBY),
            ("bert", "ort-cpu", "fp32", PFEIFFER),
            ("distilbert", "openvino", "fp32", HOULSBY),
            ("deberta-v2", "ort-cpu", "int4", {"position": "both"}),
            ("vit", "portable", "fp32", {"position": "both", "original_ln_after": False, "residual_before_ln": False}),
            ("albert", "portable", "fp32", PARALLEL),
        ],
    ),
)
def test_it_travels(model_type, target, dtype, settings, tmp_path):
    result = export_onnx(save(tmp_path, model_type, **settings), tmp_path / "out", target=target, dtype=dtype)
    assert result.parity.passed
    assert result.artifact.manifest.adapter["kind"] == "bottleneck"
    assert validate(tmp_path / "out", against=tmp_path / "adapter").passed


def test_the_operator_is_carried_with_its_body(tmp_path):
    export_onnx(save(tmp_path, **HOULSBY), tmp_path / "out")
    model = onnx.load(tmp_path / "out" / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    nodes = [node for node in model.graph.node if node.op_type == "BottleneckAdapter"]
    assert len(nodes) == 4
    assert all(len(node.input) == 5 for node in nodes)  # the bias went into the projection
    assert [function.name for function in model.functions] == ["BottleneckAdapter"]


def test_opset_18_writes_gelu_out(tmp_path):
    from adakron_export import ExportSettings

    checkpoint = save(tmp_path, activation="gelu", position="both")
    result = export_onnx(checkpoint, tmp_path / "out", settings=ExportSettings(opset=18))
    assert result.parity.passed
    assert all(len(node.input) == 6 for node in onnx.load(tmp_path / "out" / "model.onnx").graph.node
               if node.op_type == "BottleneckAdapter")  # fmt: skip


def test_a_scaled_adapter_is_noticed(tmp_path):
    """The gate sees a bottleneck that is off by a hundredth."""
    from adakron_export.artifacts.artifact import open_artifact, write_manifest

    checkpoint = save(tmp_path, **HOULSBY)
    export_onnx(checkpoint, tmp_path / "out")
    model = onnx.load(tmp_path / "out" / "model.onnx")
    weight = next(tensor for tensor in model.graph.initializer if tensor.name.endswith("up_weight"))
    weight.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight) * np.float32(1.01), weight.name))
    artifact = open_artifact(tmp_path / "out")
    onnx.save(model, tmp_path / "out" / "model.onnx")
    write_manifest(artifact.folder, artifact.manifest)
    assert not validate(tmp_path / "out", against=checkpoint).passed


def test_tensorrt_builds_it(tmp_path):
    pytest.importorskip("tensorrt_rtx")
    export_onnx(save(tmp_path, **{**HOULSBY, "activation": "gelu"}), tmp_path / "out", target="tensorrt", dtype="fp16")
    result = export_engine(Subject(tmp_path / "out"), tmp_path / "engine", flavor="rtx")
    assert result.engine_bytes > 0


def test_plain_onnx_runtime_runs_it(tmp_path):
    import onnxruntime as ort

    export_onnx(save(tmp_path), tmp_path / "out")
    runner = open_runner(tmp_path / "out")
    batch = {name: np.full((2, 5), 1 if name == "attention_mask" else 0, np.int64) for name in runner.input_names}
    session = ort.InferenceSession(tmp_path / "out" / "model.onnx", providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(None, batch)[0], runner.run(batch)["logits"], rtol=0, atol=1e-6)


def test_an_invertible_adapter_couples_halves_of_the_embeddings():
    model = tuned("electra", invertible="nice", r=8)  # whose embeddings are narrower than its layers
    inputs = inputs_of(base_of(model))
    layer = next(module for module in model.modules() if type(module).__name__ == "InvertibleLayer")
    embedded = layer.base_layer(inputs["input_ids"])
    first, second = embedded.split([12, 12], dim=-1)
    parts = layer.parts("default")
    first = first + parts["f_out"](torch.relu(parts["f_in"](second)))
    second = second + parts["g_out"](torch.relu(parts["g_in"](first)))
    torch.testing.assert_close(layer(inputs["input_ids"]), torch.cat((first, second), dim=-1))
    torch.testing.assert_close(answers(fold(model), inputs), answers(base_of(model), inputs), rtol=0, atol=1e-5)


def test_an_invertible_adapter_is_refused_where_its_inverse_would_be_needed():
    with pytest.raises(AdapterConfigError, match="GPT2LMHeadModel writes with its embeddings.*the inverse"):
        get_peft_model(backbone_of("gpt2"), BottleneckConfig(invertible="nice"))

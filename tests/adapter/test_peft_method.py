import subprocess
import sys

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch.nn import functional
from transformers import BertConfig, BertForSequenceClassification, RobertaConfig, RobertaForSequenceClassification

from adakron_export import AdaKronConfig
from adakron_export.adapter.layer import SmallNetwork, kron_rows
from tiny import CONFIGS, adapted, backbone_of, first, inputs_of

FFN_OUTPUTS = {
    "albert": ["encoder.albert_layer_groups.0.albert_layers.0.ffn_output"],
    "distilbert": ["transformer.layer.0.ffn.lin2", "transformer.layer.1.ffn.lin2"],
    "modernbert": ["layers.0.mlp.Wo", "layers.1.mlp.Wo"],
    "gpt2": ["h.0.mlp.c_proj", "h.1.mlp.c_proj"],
    "vit": ["layers.0.mlp.fc2", "layers.1.mlp.fc2"],
    **{name: ["layers.0.mlp.down_proj", "layers.1.mlp.down_proj"] for name in ("llama", "mistral", "qwen2", "qwen3")},
}
BERT_LIKE = ["encoder.layer.0.output.dense", "encoder.layer.1.output.dense"]


def logits(model, inputs):
    with torch.no_grad():
        return model(**inputs).logits


@pytest.mark.parametrize("model_type", CONFIGS)
def test_backbone_row(model_type, tmp_path):
    """Adapters are where they should be, train, and come back from disk with difference 0."""
    model = adapted(backbone_of(model_type))
    inputs = inputs_of(model)
    base = f"{model.get_base_model().base_model_prefix}."
    found = [name.removeprefix(base) for name in model.base_model.targeted_module_names]
    assert found == FFN_OUTPUTS.get(model_type, BERT_LIKE)

    model.train()
    model(**inputs).logits.square().sum().backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if "adakron" in name}
    assert len(gradients) == 6 * len(found)
    assert all(gradient is not None and gradient.abs().max() > 0 for gradient in gradients.values())
    frozen = [name for name, p in model.named_parameters() if p.grad is not None and not p.requires_grad]
    assert frozen == []

    expected = logits(model.eval(), inputs)
    model.save_pretrained(str(tmp_path))
    again = PeftModel.from_pretrained(backbone_of(model_type), str(tmp_path)).eval()
    assert torch.equal(logits(again, inputs), expected)
    with model.disable_adapter():
        assert not torch.equal(logits(model, inputs), expected)


@pytest.mark.parametrize(
    ("backbone", "config", "expected"),
    [
        (BertForSequenceClassification, BertConfig(), 599_232),
        (
            RobertaForSequenceClassification,
            RobertaConfig(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096),
            614_592,
        ),
    ],
)
def test_parameter_counts_of_the_paper(backbone, config, expected):
    r = 48 if expected == 599_232 else 16
    with torch.device("meta"):
        model = get_peft_model(backbone(config), AdaKronConfig(r=r, k=4))
    assert model.get_nb_trainable_parameters()[0] == expected


def test_starts_as_the_identity_and_still_learns():
    backbone = backbone_of("bert")
    inputs = inputs_of(backbone)
    before = logits(backbone, inputs)
    model = adapted(backbone, init_weights=True)
    assert torch.equal(logits(model, inputs), before)
    model(**inputs).logits.sum().backward()
    up = [p for name, p in model.named_parameters() if "adakron_up.default.weight" in name]
    assert all(parameter.grad.abs().max() > 0 for parameter in up)


@pytest.mark.parametrize("num_experts", [1, 3])
def test_training_begins_with_the_sign_of_what_it_reads(num_experts):
    model = adapted(backbone_of("bert"), init_weights=True, num_experts=num_experts)
    layer = model.base_model.model.bert.encoder.layer[0].output.dense
    first, second, up = layer.networks("default")
    assert not up.weight.any()
    hidden = torch.randn(3, 32)
    product = kron_rows(second(hidden), first(hidden)).detach()
    mirrored = kron_rows(second(-hidden), first(-hidden)).detach()
    even, odd = (product + mirrored) / 2, (product - mirrored) / 2
    signs = torch.tensor([1.0, -1.0, 1.0, -1.0])
    torch.testing.assert_close(odd, kron_rows(signs.expand(3, 4), first(hidden)), rtol=0, atol=1e-6)
    assert odd.abs().mean() > even.abs().mean() > 0


def test_layer_is_the_equation():
    model = adapted(backbone_of("bert"), r=12, k=3, kron_order="a2_a1")
    layer = model.base_model.model.bert.encoder.layer[0].output.dense
    u = torch.randn(2, 5, 48)
    h = layer.base_layer(u)
    parts = {name: getattr(layer, f"adakron_{name}")["default"] for name in ("a1", "a2", "up")}
    a1 = h @ parts["a1"].weight.T + parts["a1"].bias
    a2 = h @ parts["a2"].weight.T + parts["a2"].bias
    product = torch.stack(
        [torch.kron(left, right) for left, right in zip(a2.view(-1, 3), a1.view(-1, 4), strict=True)]
    )
    expected = h + (functional.gelu(product) @ parts["up"].weight.T + parts["up"].bias).view_as(h)
    torch.testing.assert_close(layer(u), expected, rtol=0, atol=1e-6)


def test_kron_rows_is_kron():
    left, right = torch.randn(4, 3), torch.randn(4, 5)
    rows = kron_rows(left, right)
    for index in range(4):
        assert torch.equal(rows[index], torch.kron(left[index], right[index]))


def test_orders_differ_and_mean_what_they_say():
    first = adapted(backbone_of("bert"), r=16, kron_order="a2_a1")
    second = adapted(backbone_of("bert"), r=16, kron_order="a1_a2")
    inputs = inputs_of(first)
    assert not torch.allclose(logits(first, inputs), logits(second, inputs), atol=1e-3)


def test_layers_to_transform_picks_layers():
    model = adapted(backbone_of("gpt2"), layers_to_transform=[1])
    assert model.base_model.targeted_module_names == ["transformer.h.1.mlp.c_proj"]


def test_several_adapters_in_one_model(tmp_path):
    model = adapted(backbone_of("bert"))
    inputs = inputs_of(model)
    first = logits(model, inputs)
    model.save_pretrained(str(tmp_path))
    model.add_adapter("second", AdaKronConfig(r=12, k=2, activation="relu", init_weights=False))
    model.set_adapter("second")
    second = logits(model.eval(), inputs)
    assert not torch.equal(first, second)
    model.load_adapter(str(tmp_path), "third")
    model.set_adapter("third")
    assert torch.equal(logits(model.eval(), inputs), first)
    model.delete_adapter("second")
    assert torch.equal(logits(model, inputs), first)


def test_modules_to_save_come_back(tmp_path):
    model = adapted(backbone_of("bert"), task_type=None, modules_to_save=["classifier"])
    with torch.no_grad():
        model.base_model.model.classifier.modules_to_save["default"].weight.add_(1)
    inputs = inputs_of(model)
    model.save_pretrained(str(tmp_path))
    again = PeftModel.from_pretrained(backbone_of("bert"), str(tmp_path)).eval()
    assert torch.equal(logits(again, inputs), logits(model, inputs))
    assert (tmp_path / "README.md").is_file()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_backbones(dtype):
    model = adapted(backbone_of("bert").to(dtype))
    assert {p.dtype for name, p in model.named_parameters() if "adakron" in name} == {torch.float32}
    out = logits(model, inputs_of(model))
    assert out.dtype is dtype
    assert torch.isfinite(out).all()


def test_mixture_draws_one_expert_in_training_and_averages_at_inference():
    network = SmallNetwork(6, 4, num_experts=3)
    network.reset_parameters()
    torch.nn.init.normal_(network.bias)
    network.expert_scores.copy_(torch.tensor([0.0, 1.0, -2.0]))
    x = torch.randn(5, 6)
    each = [functional.linear(x, network.weight[i], network.bias[i]) for i in range(3)]
    network.train()
    drawn = [network(x) for _ in range(40)]
    hits = [[i for i in range(3) if torch.equal(out, each[i])] for out in drawn]
    assert all(len(hit) == 1 for hit in hits)
    assert {hit[0] for hit in hits} == {0, 1, 2}
    shares = torch.softmax(network.expert_scores, 0)
    soup = sum(share * out for share, out in zip(shares, each, strict=True))
    torch.testing.assert_close(network.eval()(x), soup, rtol=0, atol=1e-6)


def test_mixture_checkpoint_keeps_its_scores(tmp_path):
    model = adapted(backbone_of("gpt2"), num_experts=3)
    for name, buffer in model.named_buffers():
        if name.endswith("expert_scores"):
            buffer.copy_(torch.tensor([1.0, 0.0, -1.0]))
    inputs = inputs_of(model)
    expected = logits(model, inputs)
    model.save_pretrained(str(tmp_path))
    again = PeftModel.from_pretrained(backbone_of("gpt2"), str(tmp_path)).eval()
    assert torch.equal(logits(again, inputs), expected)


@pytest.mark.parametrize("order", first(1, ["import peft, adakron_export", "import adakron_export, peft"]))
def test_importing_registers_in_either_order(order):
    code = f"{order}; from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING as t; assert 'ADAKRON' in t"
    subprocess.run([sys.executable, "-c", code], check=True)

"""What PEFT and transformers ask of a tuner, as they ask it of LoRA."""

import numpy as np
import pytest
import torch
from peft import AutoPeftModelForCausalLM, AutoPeftModelForSequenceClassification, PeftModel, get_peft_model
from peft.helpers import disable_input_dtype_casting
from peft.utils.hotswap import hotswap_adapter
from torch import nn
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from adakron_export import AdaKronConfig, fold, rescale_adapter_scale
from adakron_export.adapter.layer import AdaKronLayer
from adakron_export.errors import AdaKronError
from tiny import adapted, backbone_of, inputs_of

BACKBONES = ["bert", "distilbert", "modernbert", "gpt2", "llama"]
NAMES = ["default", "second", "__base__", "second"]


def logits(model, inputs, **options):
    with torch.no_grad():
        return model(**inputs, **options).logits


def with_two(model_type, **settings):
    model = adapted(backbone_of(model_type), **settings)
    torch.manual_seed(5)
    task_type = model.active_peft_config.task_type
    config = AdaKronConfig(r=12, k=2, activation="relu", init_weights=False, task_type=task_type)
    model.add_adapter("second", config)
    for name, parameter in model.named_parameters():
        if "modules_to_save" in name:  # heads start alike
            nn.init.normal_(parameter)
    return model.eval()


def each_alone(model, inputs, names):
    rows = []
    for index, name in enumerate(names):
        row = {key: value[index : index + 1] for key, value in inputs.items()}
        if name == "__base__":
            with model.disable_adapter():
                rows.append(logits(model, row))
        else:
            model.set_adapter(name)
            rows.append(logits(model, row))
    model.set_adapter("default")
    return torch.cat(rows)


@pytest.mark.parametrize("num_experts", [1, 3])
@pytest.mark.parametrize("model_type", BACKBONES)
def test_each_row_of_a_mixed_batch_has_its_own_adapter(model_type, num_experts):
    model = with_two(model_type, num_experts=num_experts)
    inputs = inputs_of(model, batch=len(NAMES))
    expected = each_alone(model, inputs, NAMES)
    found = logits(model, inputs, adapter_names=NAMES)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(found, logits(model, inputs), atol=1e-2)
    assert torch.equal(logits(model, inputs), logits(model, inputs, adapter_names=["default"] * len(NAMES)))


def test_heads_of_a_mixed_batch_are_each_adapters_own():
    model = with_two("bert")
    heads = model.base_model.model.classifier.modules_to_save
    assert not torch.equal(heads["default"].weight, heads["second"].weight)
    inputs = inputs_of(model, batch=len(NAMES))
    expected = each_alone(model, inputs, NAMES)
    torch.testing.assert_close(logits(model, inputs, adapter_names=NAMES), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("num_beams", [1, 2])
def test_generate_takes_an_adapter_per_text(num_beams):
    model = with_two("llama")
    ids = torch.randint(4, 99, (3, 6), generator=torch.Generator().manual_seed(3))
    options = {"max_new_tokens": 5, "do_sample": False, "num_beams": num_beams, "eos_token_id": None}
    names = ["second", "__base__", "default"]
    found = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), adapter_names=names, **options)
    for row, name in enumerate(names):
        one = {"input_ids": ids[row : row + 1], "attention_mask": torch.ones(1, 6, dtype=torch.long)}
        if name == "__base__":
            with model.disable_adapter():
                alone = model.generate(**one, **options)
        else:
            model.set_adapter(name)
            alone = model.generate(**one, **options)
        assert torch.equal(found[row], alone[0]), name


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["default", "scond"], "has 'scond'; the model has 'default', 'second'"),
        (["default"], "1 adapter_names for a batch of 2"),
        ("default", "must be a list"),
    ],
)
def test_names_that_cannot_be_meant_are_refused(names, message):
    model = with_two("bert")
    with pytest.raises(AdaKronError, match=message):
        model(**inputs_of(model), adapter_names=names)
    assert torch.isfinite(logits(model, inputs_of(model))).all()  # no hook is left behind


def test_names_in_training_and_offsets_of_others_are_refused():
    model = with_two("bert")
    with pytest.raises(AdaKronError, match="aLoRA"):
        model(**inputs_of(model), alora_offsets=[1, 1])
    model.train()
    with pytest.raises(AdaKronError, match="training mode"):
        model(**inputs_of(model), adapter_names=["default", "second"])


@pytest.mark.parametrize("verb", ["merge_and_unload", "merge_adapter", "unmerge_adapter"])
@pytest.mark.parametrize("saved", [None, ["classifier", "word_embeddings"]])
def test_merging_is_refused_before_anything_changes(verb, saved):
    model = adapted(backbone_of("bert"), modules_to_save=saved)
    inputs, before = inputs_of(model), list(dict(model.named_modules()))
    expected = logits(model, inputs)
    with pytest.raises(AdaKronError, match=r"cannot be merged.*unload\(\).*adakron-export onnx"):
        getattr(model, verb)()
    assert list(dict(model.named_modules())) == before
    assert torch.equal(logits(model, inputs), expected)
    with pytest.raises(AdaKronError, match="weighted sum"):
        model.add_weighted_adapter(["default"], [1.0], "sum")
    bare = model.unload()
    assert not any(isinstance(module, AdaKronLayer) for module in bare.modules())


@pytest.mark.parametrize(("model_type", "auto"), [("bert", AutoModelForSequenceClassification),
                                                  ("gpt2", AutoModelForCausalLM)])  # fmt: skip
def test_transformers_loads_a_saved_folder(model_type, auto, tmp_path):
    backbone = backbone_of(model_type)
    backbone.save_pretrained(tmp_path / "backbone")
    backbone.name_or_path = str(tmp_path / "backbone")
    model = adapted(backbone)
    inputs, expected = inputs_of(model), logits(model, inputs_of(model))
    model.save_pretrained(str(tmp_path / "adapter"))
    card = (tmp_path / "adapter/README.md").read_text()
    assert "import adakron_export" in card
    model.save_pretrained(str(tmp_path / "adapter"))
    assert (tmp_path / "adapter/README.md").read_text().count("import adakron_export") == 1
    found = auto.from_pretrained(str(tmp_path / "adapter")).eval()
    if model_type == "gpt2":  # a head of PEFT's modules_to_save is beyond transformers
        torch.testing.assert_close(logits(found, inputs), expected, rtol=0, atol=1e-6)
    found.delete_adapter("default")
    found.load_adapter(str(tmp_path / "adapter"), adapter_name="again")
    assert sum(isinstance(module, AdaKronLayer) for module in found.modules()) == 2
    assert torch.isfinite(logits(found.eval(), inputs)).all()
    by_peft = {"bert": AutoPeftModelForSequenceClassification, "gpt2": AutoPeftModelForCausalLM}[model_type]
    assert torch.equal(logits(by_peft.from_pretrained(str(tmp_path / "adapter")).eval(), inputs), expected)


def test_what_peft_says_of_it_and_will_not_do(tmp_path):
    model = with_two("bert")
    status = model.get_model_status()
    assert status.peft_types == {"default": "ADAKRON", "second": "ADAKRON"}
    assert (status.num_adapter_layers, status.merged_adapters) == (3, [])  # the head's wrapper counts
    assert "AdaKronLayer" in {layer.module_type for layer in model.get_layer_status()}
    with pytest.raises(ValueError, match="'ADAKRON' is not compatible with the `PeftMixedModel`"):
        get_peft_model(backbone_of("bert"), AdaKronConfig(r=8), mixed=True)
    model.save_pretrained(str(tmp_path))
    with pytest.raises(ValueError, match="ADAKRON"):
        hotswap_adapter(model, str(tmp_path), "default")


class Experts(nn.Module):
    """A mixture of experts as transformers names its parts."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(
            nn.ModuleDict({"experts": nn.ModuleList(nn.ModuleDict({"down": nn.Linear(4, 8)}) for _ in range(3))})
            for _ in range(2)
        )


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"target_modules": ["down"], "layers_to_transform": [1]}, [f"1.experts.{expert}" for expert in range(3)]),
        ({"target_modules": r".*\.down", "layers_to_transform": [1]}, [f"1.experts.{expert}" for expert in range(3)]),
        ({"target_modules": r".*\.down", "layers_to_transform": 1, "layers_pattern": "experts"},
         ["0.experts.1", "1.experts.1"]),
        ({"target_modules": ["down"], "layers_to_transform": []}, [f"{layer}.experts.{expert}" for layer in range(2)
                                                                   for expert in range(3)]),
    ],
)  # fmt: skip
def test_layers_are_chosen_by_pefts_rule(settings, names):
    model = get_peft_model(Experts(), AdaKronConfig(r=8, **settings))
    assert model.base_model.targeted_module_names == [f"base.layers.{name}.down"[5:] for name in names]


@pytest.mark.parametrize("layers", [None, []])
def test_a_pattern_of_layers_without_layers_is_refused(layers):
    with pytest.raises(AdaKronError, match="layers_pattern is 'nonsense'"):
        AdaKronConfig(layers_pattern="nonsense", layers_to_transform=layers)
    with pytest.raises(ValueError, match="No modules were targeted"):
        adapted(backbone_of("bert"), layers_pattern="nonsense", layers_to_transform=[0])


def test_layers_have_what_pefts_tools_read():
    model = adapted(backbone_of("gpt2"))
    layer = next(module for module in model.modules() if isinstance(module, AdaKronLayer))
    assert (layer.in_features, layer.out_features) == (48, 32)
    assert model.base_model.target_module_mapping["gpt2"] in model.peft_config["default"].target_modules
    assert AdaKronConfig(r=np.int64(8), k=np.int32(4)).r == 8
    half = layer.to(torch.bfloat16)
    with disable_input_dtype_casting(model), pytest.raises(RuntimeError, match="dtype"):
        half.adakron_a1.to(torch.float32)
        half(torch.randn(1, 3, 48, dtype=torch.bfloat16))


def test_a_mixture_compiles_to_one_graph_in_training():
    model = adapted(backbone_of("bert"), num_experts=3).train()
    layer = next(module for module in model.modules() if isinstance(module, AdaKronLayer))
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    drawn = {compiled(torch.ones(1, 1, 48)).sum().item() for _ in range(40)}
    assert len(drawn) == 3


def test_dropout_hides_what_the_small_networks_read():
    model = adapted(backbone_of("bert"), dropout=0.5)
    layer = next(module for module in model.modules() if isinstance(module, AdaKronLayer))
    x = torch.randn(2, 5, 48)
    assert torch.equal(layer(x), layer(x))
    layer.train()
    first, second = layer(x), layer(x)
    assert not torch.equal(first, second)
    torch.manual_seed(0)
    hidden = layer.base_layer(x)
    read = functional.dropout(hidden, 0.5)
    a1, a2, up = layer.networks("default")
    product = (a2(read).unsqueeze(-1) * a1(read).unsqueeze(-2)).flatten(-2)
    torch.manual_seed(0)
    torch.testing.assert_close(layer(x), hidden + up(functional.gelu(product)), rtol=0, atol=1e-5)


def test_scale_and_ranks_by_module_reach_the_folded_model(tmp_path):
    model = adapted(backbone_of("bert"), scale=0.5, rank_pattern={r"layer\.1\.output\.dense": 16}, dropout=0.1)
    layers = [module for module in model.modules() if isinstance(module, AdaKronLayer)]
    assert [layer.networks("default")[2].weight.shape[1] for layer in layers] == [8, 16]
    inputs, plain = inputs_of(model), adapted(backbone_of("bert"), rank_pattern={r"layer\.1\.output\.dense": 16})
    plain.load_state_dict(model.state_dict())
    with rescale_adapter_scale(plain, 0.5):
        expected = logits(plain, inputs)
    torch.testing.assert_close(logits(model, inputs), expected, rtol=0, atol=1e-6)
    assert not torch.allclose(logits(plain, inputs), expected, atol=1e-3)
    with torch.no_grad():
        torch.testing.assert_close(fold(model)(**inputs).logits, expected, rtol=0, atol=1e-5)
    model.save_pretrained(str(tmp_path))
    again = PeftModel.from_pretrained(backbone_of("bert"), str(tmp_path)).eval()
    assert torch.equal(logits(again, inputs), logits(model, inputs))
    layers[0].scale_layer(3.0)
    layers[0].unscale_layer()
    layers[0].set_scale("default", 2.0)
    assert layers[0].scaling == {"default": 1.0}
    with pytest.raises(AdaKronError, match="no scale"), rescale_adapter_scale(nn.Linear(2, 2), 2.0):
        pass


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"scale": 0.0}, "scale is 0.0"),
        ({"rank_pattern": {"dense": 10}}, "r=10 is not divisible"),
        ({"rank_pattern": {"dense": True}}, "rank_pattern"),
    ],
)
def test_impossible_values_are_refused(settings, message):
    with pytest.raises(AdaKronError, match=message):
        AdaKronConfig(**settings)

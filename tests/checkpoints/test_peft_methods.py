"""Every method of PEFT's own enum: merged, or refused by name."""

import json
import warnings

import pytest
import torch
from peft import LoraConfig, PeftType, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

from adakron_export import export_onnx, fold, inspect, load_model
from adakron_export.checkpoints.finding import find_checkpoint
from adakron_export.checkpoints.loading import load_checkpoint
from adakron_export.errors import CheckpointError, ExportError
from adakron_export.tasks import peft_task_type
from conftest import ROOT
from tiny import NATURAL_TASK, backbone_of, first, inputs_of

_ATTENTION = {"target_modules": ["query", "value"]}
MERGED = {  # what each method needs beside these targets, so that it does something
    "LORA": {"r": 4, "lora_alpha": 16},
    "ADALORA": {"total_step": 10, "init_r": 6, "target_r": 4, "lora_alpha": 64},
    "ADAMSS": {},
    "BOFT": {"boft_block_size": 8},
    "IA3": {"target_modules": ["key", "value", "output.dense"], "feedforward_modules": ["output.dense"]},
    "BEFT": {},
    "LOHA": {"r": 4, "alpha": 32},
    "LOKR": {"r": 4, "alpha": 32},
    "OFT": {"oft_block_size": 8},
    "LN_TUNING": {"target_modules": ["LayerNorm"]},
    "VERA": {"r": 16},
    "FROD": {},
    "PVERA": {"r": 16},
    "FOURIERFT": {"n_frequency": 50},
    "GLORA": {"r": 4},
    "HRA": {"r": 4},
    "VBLORA": {"r": 4, "vector_length": 8, "num_vectors": 16},
    "UNILORA": {},
    "MISS": {"r": 8},
    "RANDLORA": {"r": 4},
    "ROAD": {"group_size": 8},
    "TRAINABLE_TOKENS": {"token_indices": [*range(4, 99)], "target_modules": ["word_embeddings"]},
    "HIRA": {"r": 4},
    "SHIRA": {"r": 4},
    "C3A": {"block_size": 8},
    "WAVEFT": {"n_frequency": 50},
    "OSF": {},
    "DELORA": {"r": 4},
    "GRALORA": {"r": 8, "gralora_k": 2},
    "TINYLORA": {},
    "PSOFT": {"r": 8},
    "PEANUT": {"r": 8},
    "SUPERTUNING": {},
    "DEFT": {"r": 4},
}
REFUSED = {
    "PROMPT_TUNING": "in front of each text",
    "MULTITASK_PROMPT_TUNING": "in front of each text",
    "P_TUNING": "in front of each text",
    "CPT": "in front of each text",
    "PREFIX_TUNING": "trained keys and values",
    "CARTRIDGE": "trained keys and values",
    "ADAPTION_PROMPT": "trained keys and values",
    "XLORA": "for each token",
    "LILY": "for each token",
    "POLY": "task id",
    "SHADOW": "second network",
}


def save(folder, model_type="bert", *, noise=0.5, backbone=None, **settings):
    """A checkpoint of a method whose trained numbers are random."""
    model = backbone or backbone_of(model_type)
    model.save_pretrained(folder / "backbone")
    model.name_or_path = str(folder / "backbone")
    task = peft_task_type(NATURAL_TASK[model_type])
    method = settings.pop("peft_type", "LORA")
    config = PEFT_TYPE_TO_CONFIG_MAPPING[method](task_type=task, **{**_ATTENTION, **settings})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's own: of deprecations, and of what a method is not made for
        tuned = get_peft_model(model, config)
    torch.manual_seed(3)
    for name, parameter in tuned.named_parameters():
        if parameter.requires_grad and "modules_to_save" not in name:
            parameter.data.add_(torch.randn_like(parameter) * noise)
    tuned.save_pretrained(folder / "adapter")
    tuned.get_base_model().config.save_pretrained(folder / "adapter")
    return folder / "adapter"


def logits(model, inputs):
    with torch.no_grad():
        return model(**inputs).logits


def check_merged(checkpoint, *, atol=1e-5):
    """The folded model answers as the unmerged one does, in which the adapter does something; that one stays."""
    loaded = load_checkpoint(find_checkpoint(checkpoint))
    inputs = inputs_of(loaded.base)
    adapted = logits(loaded.base, inputs)
    with loaded.bare():
        assert (logits(loaded.base, inputs) - adapted).abs().max() > 0.01
    folded = loaded.fold()
    assert not [name for name, module in folded.named_modules() if "peft" in type(module).__module__]
    torch.testing.assert_close(logits(folded, inputs), adapted, rtol=0, atol=atol)
    torch.testing.assert_close(logits(loaded.base, inputs), adapted, rtol=0, atol=0)
    return loaded


def test_every_method_of_peft_is_taken_or_refused():
    """A new release of PEFT with a method that nobody looked at shows up here."""
    assert {method.value for method in PeftType} == {*MERGED, *REFUSED}
    assert f"LoRA and {len(MERGED) - 1} other methods of PEFT" in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("method", MERGED)
@pytest.mark.filterwarnings("ignore")
def test_a_method_merges(method, tmp_path):
    loaded = check_merged(save(tmp_path, peft_type=method, **MERGED[method]))
    assert loaded.describe()["peft_type"] == method


@pytest.mark.parametrize("method", REFUSED)
def test_a_method_that_cannot_merge_is_refused_by_name(method, tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": method, "base_model_name_or_path": "b"}))
    with pytest.raises(CheckpointError, match=f"{method} .*{REFUSED[method]}"):
        find_checkpoint(tmp_path)


LORA = {
    "rank-stabilised": {"use_rslora": True},
    "DoRA": {"use_dora": True},
    "biases": {"bias": "lora_only"},
    "all biases": {"bias": "all"},
    "a bias of its own": {"lora_bias": True},
    "patterns": {"rank_pattern": {"layer.0.*query": 2}, "alpha_pattern": {"value": 64}},
    "PiSSA": {"init_lora_weights": "pissa"},
    "OLoRA": {"init_lora_weights": "olora"},
    "LoRA-FA": {"init_lora_weights": False},
    "one layer": {"layers_to_transform": [1]},
    "all linear layers": {"target_modules": "all-linear"},
    "an expression": {"target_modules": r".*attention\.output\.dense"},
    "embeddings": {"target_modules": ["word_embeddings", "query"]},
    "trainable tokens": {"trainable_token_indices": [5, 9, 11]},
    "norms saved whole": {"modules_to_save": ["LayerNorm", "classifier"]},
    "parameters": {"target_modules": [], "target_parameters": ["query.weight"]},
}


@pytest.mark.parametrize("variant", LORA)
@pytest.mark.filterwarnings("ignore")
def test_a_variant_of_lora_merges(variant, tmp_path):
    check_merged(save(tmp_path, **{"r": 4, "lora_alpha": 32, **LORA[variant]}))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("method", ["IA3", "LN_TUNING", "LORA", "OFT"])
def test_a_head_of_several_layers_comes_along(method, tmp_path):
    """RoBERTa's: PEFT itself cannot put it back with every method."""
    check_merged(save(tmp_path, "roberta", peft_type=method, **MERGED[method]))


ARCHITECTURES = {
    "gpt2": ["c_attn", "c_proj", "c_fc"],
    "deberta": ["in_proj", "dense"],
    "vit": "all-linear",
    "bert": ["query", "value", "dense"],
    "roberta": ["query", "value"],
    "distilbert": ["q_lin", "v_lin", "lin2"],
    "deberta-v2": ["query_proj", "value_proj", "dense"],
    "qwen3": "all-linear",
}


@pytest.mark.parametrize("model_type", first(3, ARCHITECTURES))
@pytest.mark.filterwarnings("ignore")
def test_lora_travels_on_every_architecture(model_type, tmp_path):
    checkpoint = save(tmp_path, model_type, noise=0.05, r=4, lora_alpha=32, target_modules=ARCHITECTURES[model_type])
    result = export_onnx(checkpoint, tmp_path / "out")
    assert result.parity.passed
    assert result.artifact.manifest.adapter["kind"] == "peft"


@pytest.mark.filterwarnings("ignore")
def test_an_adapted_embedding_leaves_the_head_that_shares_it_alone(tmp_path):
    checkpoint = save(tmp_path, "gpt2", r=4, lora_alpha=32, target_modules=["wte"])
    loaded = check_merged(checkpoint)
    assert loaded.base.lm_head.weight is loaded.base.get_input_embeddings().base_layer.weight
    assert export_onnx(checkpoint, tmp_path / "out").parity.passed


def test_an_adapter_that_changes_nothing_is_refused(tmp_path):
    checkpoint = save(tmp_path, noise=0, r=4)
    with pytest.raises(ExportError, match="changes nothing of what its backbone answers"):
        export_onnx(checkpoint, tmp_path / "out")


def test_dora_that_changes_nothing_but_by_rounding_is_refused(tmp_path):
    with pytest.raises(ExportError, match="changes nothing"):
        export_onnx(save(tmp_path, noise=0, r=4, use_dora=True), tmp_path / "out")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "NEWER"}, "peft_type is 'NEWER', which PEFT .* does not know"),
        ({"new_flag": 3}, "new_flag is no setting of LORA in PEFT"),
        ({"alora_invocation_tokens": [5]}, "alora_invocation_tokens is set, so that the adapter starts at tokens"),
        ({"use_qalora": True}, "use_qalora is set.*GPTQ"),
        ({"r": 2**20}, "r is .*at most 65536"),
        ({"r": 6}, "does not fit the backbone"),
        ({"target_modules": ["key"]}, "does not fit the backbone.*unexpected"),
        ({"target_modules": ["nowhere"]}, "does not fit the backbone"),
        ({"base_model_name_or_path": ""}, "names no backbone"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_what_does_not_fit_is_named(changes, message, tmp_path):
    checkpoint = save(tmp_path, r=4)
    file = checkpoint / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    with pytest.raises(CheckpointError, match=message):
        load_model(checkpoint)


def test_settings_that_are_off_are_no_flags_of_a_newer_release(tmp_path):
    checkpoint = save(tmp_path, r=4)
    file = checkpoint / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "use_something_new": False}))
    with pytest.warns(UserWarning, match="use_something_new"):
        load_model(checkpoint)


def test_inspect_says_what_was_trained(tmp_path):
    info = inspect(save(tmp_path, r=4, lora_alpha=32))
    assert (info.kind, info.settings["peft_type"], info.settings["lora_alpha"]) == ("peft", "LORA", 32)
    assert info.adapters[0].shapes == {"lora_A.weight": (4, 32), "lora_B.weight": (32, 4)}
    assert info.adapter_parameters == 2 * 2 * 2 * 4 * 32


def test_several_active_adapters_are_refused():
    model = get_peft_model(backbone_of("bert"), LoraConfig(r=2, target_modules=["query"]))
    model.add_adapter("other", LoraConfig(r=2, target_modules=["query"]))
    model.base_model.set_adapter(["default", "other"])
    with pytest.raises(ExportError, match="2 adapters are active"):
        fold(model)

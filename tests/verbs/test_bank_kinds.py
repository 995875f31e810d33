"""Banks of bottlenecks and of LoRA: what they answer, and what they refuse."""

import numpy as np
import pytest
import torch
from peft import IA3Config, LoraConfig, get_peft_model

from adakron_export import (
    AdaKronConfig,
    BankSettings,
    BottleneckConfig,
    EngineShapes,
    ExportSettings,
    Subject,
    add_to_bank,
    create_bank,
    export_engine,
    export_onnx,
    list_bank,
    open_runner,
    validate_bank,
)
from adakron_export.artifacts.artifact import open_artifact
from adakron_export.errors import ArtifactError, CheckpointError, ExportError
from adakron_export.tasks import Task, auto_class, peft_task_type
from conftest import ADAPTERHUB
from tiny import backbone_of, first, save_backbone

UNPROVEN = BankSettings(validate=False)


def lora(**settings):
    return LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": ["query", "value"], **settings})


def bottleneck(**settings):
    return BottleneckConfig(**{"r": 4, "init_weights": False, **settings})


KINDS = {
    "LoRA": (
        lora(),
        lora(r=8, use_rslora=True, rank_pattern={"layer.1.attention.self.query": 2}, target_modules=["query", "key"]),
        lora(r=3, target_modules=["pooler.dense", "intermediate.dense"]),
    ),
    "Houlsby": (
        bottleneck(original_ln_before=False, position="both"),
        bottleneck(original_ln_before=False, position="attention", activation="silu", r=6),
        bottleneck(original_ln_before=False, scaling=0.5, layers_to_transform=[0]),
    ),
    "Pfeiffer": (
        bottleneck(layers_to_transform=[1]), bottleneck(r=6, activation="gelu", scaling="channel"), bottleneck(r=2),
    ),
    "parallel": (
        bottleneck(parallel=True, scaling=4.0), bottleneck(parallel=True, scaling="learned", r=2),
        bottleneck(parallel=True, layers_to_transform=[0]),
    ),
    "sum": (
        bottleneck(residual_before_ln="post_add", original_ln_after=False),
        bottleneck(residual_before_ln="post_add", original_ln_after=False, r=6),
        bottleneck(residual_before_ln="post_add", original_ln_after=False, activation="tanh"),
    ),
    "AdaKron": (
        AdaKronConfig(r=8, k=4, init_weights=False, layers_to_transform=[1]),
        AdaKronConfig(r=6, k=2, init_weights=False, rank_pattern={"layer.0.output.dense": 4}),
        AdaKronConfig(r=4, k=4, init_weights=False, layers_to_transform=[0]),
    ),
}  # fmt: skip


def save_member(folder, backbone, config, *, labels=2, task=Task.TEXT_CLASSIFICATION, saved="classifier"):
    """A checkpoint with random weights that change its outputs, as PEFT saves it."""
    torch.manual_seed(len(folder.name))
    extra = {} if saved is None else {"num_labels": labels}
    model = auto_class(task).from_pretrained(backbone, **extra)
    model.name_or_path = str(backbone)
    config = type(config)(**{**config.to_dict(), "task_type": peft_task_type(task)})
    config.modules_to_save = None if saved is None else [saved]
    tuned = get_peft_model(model, config)
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name or "bottleneck_scaling" in name:
            torch.nn.init.normal_(parameter, mean=0.2, std=0.2)
    tuned.save_pretrained(folder)
    model.config.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    return save_backbone(tmp_path_factory.mktemp("backbone") / "tiny", task=Task.FEATURE_EXTRACTION)


@pytest.fixture(scope="module")
def batch():
    ids = np.array([[2, 20, 30, 40, 3], [2, 50, 3, 1, 1], [2, 7, 9, 8, 3], [2, 61, 62, 3, 1]])
    return {"input_ids": ids, "attention_mask": (ids != 1).astype(np.int64), "token_type_ids": np.zeros_like(ids)}


def members_of(kind, folder, backbone):
    return {
        name: save_member(folder / name, backbone, config, labels=labels)
        for name, config, labels in zip(("first", "second", "third"), KINDS[kind], (2, 5, 3), strict=True)
    }


@pytest.mark.parametrize("kind", first(2, KINDS))
def test_each_row_is_answered_by_its_own_adapter(kind, backbone, batch, tmp_path):
    members = members_of(kind, tmp_path, backbone)
    assert create_bank(members, tmp_path / "bank", target="ort-cpu").passed
    runner, alone = open_runner(tmp_path / "bank"), {}
    for name, path in members.items():
        export_onnx(path, tmp_path / f"{name}-alone", settings=ExportSettings(validate=False))
        alone[name] = open_runner(tmp_path / f"{name}-alone").run(batch)["logits"]
    names = ["second", "first", "third", "second"]
    for index, (name, row) in enumerate(zip(names, runner.run(batch, names)["logits"], strict=True)):
        np.testing.assert_allclose(row, alone[name][index], rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["LoRA", "Pfeiffer"])
def test_an_adapter_is_added_where_it_fits(kind, backbone, tmp_path, cli):
    first, wide, third = members_of(kind, tmp_path, backbone).values()
    folder = tmp_path / "bank"
    create_bank({"wide": wide}, folder, settings=UNPROVEN)
    if kind == "LoRA":
        with pytest.raises(
            ArtifactError, match=r"has weights of bert.encoder.layer.0.attention.self.value, where the"
        ):
            add_to_bank(folder, {"first": first})
        narrow = save_member(tmp_path / "narrow", backbone, lora(r=1, target_modules=["key"]))
    else:
        narrow = third
        with pytest.raises(ArtifactError, match=r"its activation is relu, and the bank's graph computes gelu"):
            add_to_bank(folder, {"narrow": narrow})
        narrow = save_member(tmp_path / "narrow", backbone, bottleneck(r=1, activation="gelu"))
    assert add_to_bank(folder, {"narrow": narrow}).passed
    wider = lora(r=9, target_modules=["key"]) if kind == "LoRA" else bottleneck(r=9, activation="gelu")
    with pytest.raises(ArtifactError, match=r"is 9 wide, the bank's graph takes [68]; make the bank anew"):
        add_to_bank(folder, {"wider": save_member(tmp_path / "wider", backbone, wider)})
    assert [row.name for row in list_bank(folder)] == ["wide", "narrow"]
    assert "r 1 " in cli("bank", "list", folder).stdout
    assert f"a bank of 2 {'LoRA' if kind == 'LoRA' else 'bottleneck'} adapters" in (folder / "README.md").read_text()
    assert all(report.passed for report in validate_bank(folder, against={"wide": wide, "narrow": narrow}).values())


REFUSED = {
    "DoRA": (lora(use_dora=True), r"its LoRA of .*attention.self.query is a DoraLinear"),
    "bias of B": (lora(lora_bias=True), r"has a bias \(lora_bias\)"),
    "biases": (lora(bias="all"), r"trains biases of the backbone \(bias='all'\)"),
    "PiSSA": (lora(init_lora_weights="pissa"), r"init_lora_weights='pissa'\) changes weights of the backbone"),
    "embedding": (lora(target_modules=["word_embeddings"]), r"its LoRA of .*word_embeddings is of a Embedding"),
    "tokens": (lora(trainable_token_indices=[5, 6]), r"it has trainable_token_indices"),
    "IA3": (IA3Config(target_modules=["key"], feedforward_modules=[]), r"its adapter is IA3; a bank holds AdaKron, "),
    "own LayerNorm": (bottleneck(ln_before=True), r"more than down and up \(ln_before\)"),
    "gate": (bottleneck(use_gating=True), r"more than down and up \(use_gating\)"),
    "coupling": (bottleneck(invertible="nice"), r"a coupling block behind the embeddings"),
    "activation": (bottleneck(activation="mish"), r"its activation is mish; a bank computes gelu, "),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.filterwarnings("ignore:Adapter 'default'")  # PEFT takes a bias of B for a damaged file
def test_what_a_bank_cannot_hold_is_refused_by_name(name, backbone, tmp_path):
    config, message = REFUSED[name]
    folder = save_member(tmp_path / "one", backbone, config)
    with pytest.raises(ExportError, match=rf"one cannot be in a bank: .*{message}.*export it alone"):
        create_bank({"one": folder}, tmp_path / "bank", settings=BankSettings(validate=False, force=True))


@pytest.mark.parametrize(
    ("first", "other", "error", "message"),
    [
        (lora(), bottleneck(), CheckpointError, r"is of kind bottleneck, .* of kind lora; a bank holds one"),
        (
            bottleneck(),
            bottleneck(parallel=True),
            ArtifactError,
            r"compute LN\(h \+ delta\(s\) \+ s\), those of the bank's graph LN\(h \+ delta\(LN\(h \+ s\)\) \+ s\)",
        ),
        (
            bottleneck(residual_before_ln=False),
            bottleneck(residual_before_ln=False, layers_to_transform=[1]),
            ArtifactError,
            r"no adapter of bert.encoder.layer.0.output.dense; the bank's graph computes LN\(LN\(h \+ s\) \+ delta",
        ),
    ],
)
def test_members_are_of_one_kind_and_form(first, other, error, message, backbone, tmp_path):
    members = {"one": save_member(tmp_path / "one", backbone, first)}
    members["two"] = save_member(tmp_path / "two", backbone, other)
    with pytest.raises(error, match=message):
        create_bank(members, tmp_path / "bank", settings=UNPROVEN)
    create_bank({"one": members["one"]}, tmp_path / "bank", settings=UNPROVEN)
    with pytest.raises(ArtifactError, match=r"does not fit the bank: " if error is CheckpointError else message):
        add_to_bank(tmp_path / "bank", {"two": members["two"]})


@pytest.mark.parametrize(
    ("model_type", "task", "config", "saved"),
    first(
        2,
        [
            ("gpt2", Task.TEXT_GENERATION, lora(target_modules=["c_attn", "c_proj"], fan_in_fan_out=True), None),
            ("albert", Task.FEATURE_EXTRACTION, lora(), None),  # whose layers share one adapter
            ("vit", Task.IMAGE_CLASSIFICATION, lora(target_modules=["q_proj", "v_proj"]), "classifier"),
            ("distilbert", Task.TOKEN_CLASSIFICATION, bottleneck(position="both"), "classifier"),
            ("llama", Task.TEXT_GENERATION, bottleneck(), None),  # without a LayerNorm behind the sum
        ],
    ),
)
def test_banks_of_other_backbones(model_type, task, config, saved, tmp_path):
    backbone = tmp_path / "backbone"
    backbone_of(model_type, task).save_pretrained(backbone)
    members = {
        name: Subject(save_member(tmp_path / name, backbone, config, task=task, saved=saved), task=task.value)
        for name in ("one", "three")
    }
    assert create_bank(members, tmp_path / "bank").passed
    names = ("one", "three") if saved else ("__base__", "one", "three")
    assert open_runner(tmp_path / "bank").names == names


def test_an_adapter_that_zeros_do_not_leave_out_needs_no_bare_backbone(backbone, tmp_path):
    task = Task.FEATURE_EXTRACTION
    folder = save_member(tmp_path / "one", backbone, bottleneck(residual_before_ln=False), task=task, saved=None)
    assert create_bank({"one": Subject(folder, task=task.value)}, tmp_path / "bank").passed
    assert open_artifact(tmp_path / "bank").manifest.bank.adapters == {"one": 0}


def test_rows_that_the_graph_does_not_tell_apart_are_refused(tmp_path):
    backbone = tmp_path / "backbone"
    backbone_of("deberta-v2", Task.FEATURE_EXTRACTION).save_pretrained(backbone)
    config, task = lora(target_modules=["query_proj"]), Task.FEATURE_EXTRACTION
    folder = save_member(tmp_path / "one", backbone, config, task=task, saved=None)  # which projects distances too
    with pytest.raises(ExportError, match=r"query_proj reads \[1,\d+,32\], not \[batch, tokens, hidden\]"):
        create_bank({"one": Subject(folder, task=task.value)}, tmp_path / "bank")


def test_adapters_of_adapterhub_share_a_bank(tmp_path):
    def of(name):
        return Subject(ADAPTERHUB / name, backbone=ADAPTERHUB / "backbone-bert")

    folder = tmp_path / "bank"
    assert create_bank({name: of(name) for name in ("pfeiffer", "leaky-relu")}, folder).passed
    with pytest.raises(ArtifactError, match=r"its layers compute"):
        add_to_bank(folder, {"parallel": of("parallel")})
    with pytest.raises(ArtifactError, match=r"its head is classification, 1 layers, tanh, pooled, the bank's class"):
        add_to_bank(folder, {"pooled": of("head-pooled")})
    with pytest.raises(ExportError, match=r"stack cannot be in a bank: 2 adapters are active"):
        add_to_bank(folder, {"stack": of("stack")})


@pytest.mark.parametrize("kind", ["LoRA", pytest.param("Houlsby", marks=pytest.mark.slow)])
def test_openvino_and_tensorrt_take_them(kind, backbone, tmp_path):
    members = members_of(kind, tmp_path, backbone)
    assert create_bank(members, tmp_path / "openvino", target="openvino").passed
    pytest.importorskip("tensorrt_rtx", reason="needs the extra tensorrt-rtx")
    create_bank(members, tmp_path / "bank", target="tensorrt", dtype="fp16", settings=UNPROVEN)
    shapes = EngineShapes(min_shape=(1, 1), opt_shape=(2, 16), max_shape=(4, 32), max_adapters=8)
    manifest = export_engine(tmp_path / "bank", tmp_path / "engine", flavor="rtx", shapes=shapes).folder.manifest
    assert [*manifest.bank.adapters] == [*members]

"""Checkpoints as AdapterHub's library writes them, held to what it answers (tests/adapterhub)."""

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from adakron_export import ExportSettings, Subject, convert, export_onnx, fold, inspect, load_model, open_runner
from adakron_export.checkpoints.finding import find_checkpoint
from adakron_export.checkpoints.kinds import base_of
from adakron_export.errors import AdaKronError, BackboneError, CheckpointError
from conftest import ADAPTERHUB

ROOT = ADAPTERHUB
CASES = sorted(folder.name for folder in ROOT.iterdir() if (folder / "case.json").is_file())
EXPORTED = (  # one of each form of the graph
    "adapter-plus", "compacter", "fuse-houlsby", "gated", "gpt2-pfeiffer", "head-questions", "ia3", "invertible",
    *(pytest.param(name, marks=pytest.mark.slow) for name in (
        "deberta-v2-pfeiffer", "distilbert-parallel", "head-tagging", "houlsby", "lora", "own-norms", "parallel",
        "pfeiffer", "vit-houlsby",
    )),
)  # fmt: skip


def subject(name, folder=ROOT):
    return Subject(folder / name, ROOT / json.loads((folder / name / "case.json").read_text())["backbone"])


def load(name, folder=ROOT):
    where = subject(name, folder)
    return load_model(where.path, backbone=where.backbone)


def expected(name):
    return load_file(ROOT / name / "inputs.safetensors"), load_file(ROOT / name / "expected.safetensors")


def check_answers(model, name, *, atol=1e-5):
    inputs, wanted = expected(name)
    with torch.no_grad():
        outputs = model(**inputs)
    for key, value in wanted.items():
        torch.testing.assert_close(outputs[key], value, rtol=0, atol=atol)


@pytest.mark.parametrize("name", CASES)
def test_the_eager_and_the_folded_model_answer_as_the_library(name):
    model = load(name)
    check_answers(base_of(model), name)
    check_answers(fold(model), name)


@pytest.mark.parametrize("name", EXPORTED)
def test_an_artifact_answers_as_the_library(name, tmp_path):
    result = export_onnx(subject(name), tmp_path / "out")
    assert result.parity.passed
    runner = open_runner(tmp_path / "out")
    inputs, wanted = expected(name)
    batch = {key: value.numpy() for key, value in inputs.items()}
    for missing in {*runner.input_names} - {*batch}:
        shape = batch["input_ids"].shape
        batch[missing] = (
            np.zeros(shape, np.int64) if missing == "token_type_ids" else np.tile(np.arange(shape[1]), (3, 1))
        )
    outputs = runner.run(batch)
    for key, value in wanted.items():
        found, right = outputs[key], value.numpy()
        if "attention_mask" in batch and found.shape[1:2] == batch["attention_mask"].shape[1:]:  # by token: no padding
            kept = batch["attention_mask"] == 1
            found, right = found[kept], right[kept]
        np.testing.assert_allclose(found, right, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["compacter", "own-norms", "by-layer", "leave-out", "head-static", "head-questions",
                                  "learned-scaling", "lora-everywhere", "ia3", "invertible"])  # fmt: skip
def test_a_converted_checkpoint_is_a_peft_folder_that_answers_the_same(name, tmp_path):
    where = subject(name)
    folder = convert(where.path, tmp_path / "peft", backbone=where.backbone)
    assert find_checkpoint(folder).kind == ("peft" if name in ("lora-everywhere", "ia3") else "bottleneck")
    check_answers(base_of(load_model(folder)), name)
    with pytest.raises(CheckpointError, match="PEFT checkpoint already; there is nothing to convert"):
        convert(folder, tmp_path / "again")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("fuse-dynamic", "with the bottleneck adapters one, two, fused"),
        ("houlsby", "(reduction_factor=2.0, activation=silu, position=both, original_ln_before=False) folded in"),
        ("lora", "with a LORA adapter (r=4, lora_alpha=16.0) merged in"),
    ],
)
def test_the_card_says_what_was_exported(name, words, tmp_path):
    export_onnx(subject(name), tmp_path / "out", settings=ExportSettings(validate=False))
    assert words in " ".join((tmp_path / "out" / "README.md").read_text().split())


def test_labels_come_from_the_head():
    config = base_of(load("head-tagging")).config
    assert config.id2label == {0: "label 0", 1: "label 1", 2: "label 2"}
    assert base_of(load("head-multilabel")).config.problem_type == "multi_label_classification"


def test_inspect_names_kind_and_settings():
    where = subject("houlsby")
    info = inspect(where.path, backbone=where.backbone)
    assert (info.kind, info.task) == ("adapterhub", "text-classification")
    assert (info.settings["activation"], info.settings["position"]) == ("silu", "both")
    assert info.adapters[0].shapes["bottleneck_down.weight"] == (12, 24)


def damaged(tmp_path, name="pfeiffer"):
    return shutil.copytree(ROOT / name, tmp_path / name)


def change_config(folder, **changes):
    file = folder / "adapter_config.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, "config": {**content["config"], **changes}}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "prefix_tuning"}, "trained keys and values"),
        ({"architecture": "mtl_lora"}, "LoRA of several tasks"),
        ({"architecture": "union"}, "a union of several methods"),
        ({"architecture": "newer"}, "the adapter is 'newer'"),
        ({"inv_adapter": "nice"}, "does not fit the backbone.*missing.*embeddings"),
        ({"inv_adapter": "glow"}, "invertible is 'glow'"),
        ({"invertible_adapter": {"block_type": "nice"}}, "invertible_adapter asks for invertible adapters"),
        ({"cross_adapter": True}, "cross_adapter asks for adapters behind cross-attention"),
        ({"new_flag": False}, "new_flag is no setting that is known"),
        ({"mh_adapter": False, "output_adapter": False}, "neither mh_adapter nor output_adapter"),
        ({"non_linearity": "softplusplus"}, "activation is 'softplusplus'"),
        ({"reduction_factor": 0}, "reduction_factor is 0"),
        ({"scaling": "row"}, "scaling is 'row'"),
        ({"residual_before_ln": "later"}, "residual_before_ln is 'later'"),
        ({"reduction_factor": 4}, "does not fit the backbone.*misshapen"),
        ({"mh_adapter": True}, "adapter_down.0.weight is missing"),
        ({"leave_out": [0]}, "is no part of a bottleneck that is known"),
        ({"use_gating": True}, "gate.weight is missing"),
        ({"ln_after": True}, "adapter_norm_after.weight is missing"),
        ({"phm_layer": True}, "W_left is missing"),
    ],
)
def test_what_is_not_built_or_does_not_fit_is_named(changes, message, tmp_path):
    folder = damaged(tmp_path)
    change_config(folder, **changes)
    with pytest.raises(CheckpointError, match=message):
        load("pfeiffer", tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_dora": True}, "use_dora asks for DoRA, which AdapterHub computes otherwise"),
        ({"use_gating": True}, "use_gating asks for a gate"),
        ({"vera_d": 0.1}, "vera_d asks for VeRA"),
        ({"composition_mode": "other"}, "not readable.*composition_mode"),
        ({"new_flag": 0}, "new_flag is no setting that is known"),
        ({"r": 8}, "does not fit the backbone.*misshapen"),
        ({"attn_matrices": ["q", "k", "v"]}, "its configuration has 3 in each of 2"),
        ({"leave_out": [1]}, "has weights for 4 modules in 2 layers, where its configuration has 2 in each of 1"),
    ],
)
def test_a_lora_that_is_not_built_or_does_not_fit_is_named(changes, message, tmp_path):
    change_config(damaged(tmp_path, "lora"), **changes)
    with pytest.raises(CheckpointError, match=message):
        load("lora", tmp_path)


def test_a_setting_that_is_not_read_for_answers_changes_none(tmp_path):
    folder = damaged(tmp_path)
    change_config(folder, dropout=0.5, stochastic_depth=0.3, init_weights="houlsby", init_weights_seed=3)
    check_answers(base_of(load("pfeiffer", tmp_path)), "pfeiffer")


def change_tensors(folder, change, file="pytorch_adapter.bin"):
    tensors = torch.load(folder / file, weights_only=True)
    change(tensors)
    torch.save(tensors, folder / file)


def test_a_norm_that_is_there_twice_must_be_the_same(tmp_path):
    folder = damaged(tmp_path, "own-norms")

    def change(tensors):
        name = next(name for name in tensors if name.endswith("adapter_norm_before.bias"))
        tensors[name] = tensors[name] + 1

    change_tensors(folder, change)
    with pytest.raises(CheckpointError, match="its LayerNorm is there twice, with different numbers"):
        load("own-norms", tmp_path)


def test_a_tensor_that_is_left_over_is_named(tmp_path):
    folder = damaged(tmp_path)
    name = "bert.encoder.layer.0.output.adapters.task.gate.weight"
    change_tensors(folder, lambda tensors: tensors.update({name: torch.zeros(1, 24)}))
    with pytest.raises(CheckpointError, match="gate.weight is left over"):
        load("pfeiffer", tmp_path)


def test_a_shared_tensor_that_is_left_over_is_named(tmp_path):
    folder = damaged(tmp_path)
    change_tensors(
        folder, lambda tensors: tensors.update({"bert.shared_parameters.task.phm_rule": torch.zeros(4, 4, 4)})
    )
    with pytest.raises(CheckpointError, match="the shared phm_rule is left over"):
        load("pfeiffer", tmp_path)


def test_small_factors_do_not_ask_for_a_large_product(tmp_path):
    folder = damaged(tmp_path, "compacter")
    name = "bert.shared_parameters.task.phm_rule"
    change_tensors(folder, lambda tensors: tensors.update({name: torch.zeros(4, 4000, 4000)}))
    with pytest.raises(CheckpointError, match="would be multiplied out to"):
        load("compacter", tmp_path)


@pytest.mark.parametrize(
    "settings", [{"reduction_factor": 1e-12}, {"inv_adapter": "nice", "inv_adapter_reduction_factor": 1e-12}]
)
def test_a_factor_does_not_ask_for_a_width_without_bound(settings, tmp_path):
    folder = damaged(tmp_path)
    change_config(folder, **settings)
    with pytest.raises(AdaKronError, match="at most 65536 is taken"):
        load("pfeiffer", tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"head_type": "causal_lm"}, "a head of type 'causal_lm' is not exported"),
        ({"layers": 3}, "does not fit the backbone"),
        ({"num_labels": 0}, "the head's settings are not readable.*num_labels"),
        ({"activation_function": "unheard"}, "activation is 'unheard'"),
        ({"something": True}, "there is no setting 'something'"),
    ],
)
def test_a_head_that_is_not_built_is_named(changes, message, tmp_path):
    folder = damaged(tmp_path)
    file = folder / "head_config.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, "config": {**content["config"], **changes}}))
    with pytest.raises(CheckpointError, match=message):
        load("pfeiffer", tmp_path)


def test_a_checkpoint_without_a_head_needs_a_task_that_has_none(tmp_path):
    folder = damaged(tmp_path)
    for name in ("head_config.json", "pytorch_model_head.bin"):
        (folder / name).unlink()
    assert type(base_of(load("pfeiffer", tmp_path))).__name__ == "BertModel"
    where = subject("pfeiffer", tmp_path)
    with pytest.raises(CheckpointError, match="the head is in neither"):
        load_model(where.path, backbone=where.backbone, task="text-classification")


def test_a_task_that_is_not_the_heads_is_refused():
    where = subject("pfeiffer")
    with pytest.raises(CheckpointError, match="its head is for text-classification; leave --task out"):
        load_model(where.path, backbone=where.backbone, task="token-classification")


def test_nothing_of_a_pickle_is_run(tmp_path):
    folder = damaged(tmp_path)
    marker = tmp_path / "ran"

    class Harmful:
        def __reduce__(self):
            return Path.touch, (marker,)

    (folder / "pytorch_adapter.bin").write_bytes(pickle.dumps({"a": Harmful()}, protocol=2))
    with pytest.raises(CheckpointError, match="nothing in it was executed"):
        load("pfeiffer", tmp_path)
    assert not marker.exists()


def test_safetensors_are_read_first(tmp_path):
    folder = damaged(tmp_path)
    for pickled, safe in (("pytorch_adapter.bin", "adapter"), ("pytorch_model_head.bin", "model_head")):
        save_file(torch.load(folder / pickled, weights_only=True), folder / f"{safe}.safetensors")
        (folder / pickled).write_bytes(b"not read")
    check_answers(base_of(load("pfeiffer", tmp_path)), "pfeiffer")


@pytest.mark.parametrize("name", ["fuse-dynamic", "stack"])
def test_a_setup_has_no_peft_folder(name, tmp_path):
    where = subject(name)
    with pytest.raises(CheckpointError, match="several adapters at once, which no PEFT folder holds"):
        convert(where.path, tmp_path / "peft", backbone=where.backbone)


def test_inspect_names_a_setup():
    where = subject("fuse-dynamic")
    info = inspect(where.path, backbone=where.backbone)
    assert (info.kind, info.settings["setup"], [*info.settings["adapters"]]) == (
        "adapterhub-setup",
        "Fuse",
        ["one", "two"],
    )


def change_json(file, **changes):
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def single(name):
    return {"type": "single", "children": [name]}


EMPTY = {"type": "Stack", "children": []}


@pytest.mark.parametrize(
    ("setup", "message"),
    [
        ({"type": "Parallel", "children": [single("one"), single("two")]}, "a setup of this form is not exported"),
        ({"type": "Fuse", "children": [single("one"), EMPTY]}, "not made of two adapters or more"),
        ({"type": "Stack", "children": [single("one"), single("one")]}, "not made of two adapters or more"),
        ({"type": "Stack", "children": [single("one")]}, "not made of two adapters or more"),
        ({"type": "Stack", "children": [single("one"), single("../two")]}, "each by its name: ../two"),
        ({"type": "Fuse", "children": [single("one"), single("three")]}, "of the fusion lack"),
    ],
)
def test_a_setup_that_is_not_built_is_named(setup, message, tmp_path):
    change_json(damaged(tmp_path, "fuse-dynamic") / "adapter_setup.json", adapter_setup=setup)
    with pytest.raises(CheckpointError, match=message):
        load("fuse-dynamic", tmp_path)


@pytest.mark.parametrize("setting", ["temperature", "residual_before"])
def test_a_fusion_that_is_not_built_is_named(setting, tmp_path):
    file = damaged(tmp_path, "fuse-dynamic") / "one,two" / "adapter_fusion_config.json"
    content = json.loads(file.read_text())
    change_json(file, config={**content["config"], setting: True})
    with pytest.raises(CheckpointError, match=f"has {setting} set, which is not exported"):
        load("fuse-dynamic", tmp_path)


def test_adapters_of_a_setup_sit_in_the_same_places(tmp_path):
    folder = damaged(tmp_path, "stack")
    shutil.rmtree(folder / "two")
    shutil.copytree(ROOT / "leave-out", folder / "two")
    with pytest.raises(CheckpointError, match="its adapters sit in different places"):
        load("stack", tmp_path)


def test_missing_pieces_are_named(tmp_path):
    folder = damaged(tmp_path)
    with pytest.raises(BackboneError, match="backbone-bert"):
        load_model(folder)
    (folder / "head_config.json").unlink()
    with pytest.raises(CheckpointError, match=r"pytorch_model_head.bin has no head_config.json"):
        load("pfeiffer", tmp_path)
    (folder / "pytorch_adapter.bin").unlink()
    with pytest.raises(CheckpointError, match=r"neither adapter.safetensors nor pytorch_adapter.bin"):
        load("pfeiffer", tmp_path)

"""Files of the reference implementation, as its scripts and users write them."""

import shutil

import pytest
import torch
from peft import PeftModel

from adakron_export import convert, load_model
from adakron_export.checkpoints.finding import find_checkpoint
from adakron_export.checkpoints.loading import load_checkpoint
from adakron_export.checkpoints.reference import read_reference
from adakron_export.errors import CheckpointError
from adakron_export.tasks import Task


def logits_of(model, case):
    with torch.no_grad():
        return model(**case.inputs).logits


def assert_reproduces(model, case):
    torch.testing.assert_close(logits_of(model, case), case.logits, rtol=0, atol=1e-5)


@pytest.fixture
def glue_state(glue_case):
    return torch.load(glue_case.file, weights_only=True)


def write(state, folder, name="pytorch_model_expert_soup.bin", **options):
    torch.save(state, folder / name, **options)
    return folder / name


def test_reproduces_the_expected_outputs(case):
    assert_reproduces(load_model(case.file, backbone=case.backbone), case)


def test_converted_folder_reproduces_them_too(case, tmp_path):
    folder = convert(case.file, tmp_path / "peft", backbone=case.backbone)
    assert_reproduces(load_model(folder), case)


def test_converted_folder_loads_with_peft_alone(glue_case, tmp_path):
    from transformers import AutoModelForSequenceClassification

    folder = convert(glue_case.file, tmp_path / "peft", backbone=glue_case.backbone)
    backbone = AutoModelForSequenceClassification.from_pretrained(glue_case.backbone)
    assert_reproduces(PeftModel.from_pretrained(backbone, str(folder)).eval(), glue_case)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("bert-glue-r48", (48, 4, "a2_a1", 1)),
        ("roberta-glue-r16", (16, 4, "a2_a1", 1)),
        ("gpt2-nlg-1-expert", (8, 4, "a1_a2", 1)),
        ("gpt2-nlg-4-experts", (8, 4, "a1_a2", 4)),
    ],
)
def test_variant_and_sizes_are_read_off_the_file(name, expected):
    from conftest import reference_case

    file = read_reference(reference_case(name).file)
    assert (file.r, file.k, file.order.value, file.num_experts) == expected


def test_wrong_order_is_noticed_by_these_cases(case):
    """The cases would be worthless if a swapped product passed them."""
    model = load_model(case.file, backbone=case.backbone)
    for module in model.modules():
        if hasattr(module, "adakron_a1"):
            order, activation = module.settings["default"]
            swapped = next(other for other in type(order) if other is not order)
            module.settings["default"] = (swapped, activation)
    assert (logits_of(model, case) - case.logits).abs().max() > 1e-3


@pytest.mark.parametrize("prefix", ["module.", "module.module.", "_orig_mod.", "module._orig_mod."])
def test_prefixes_of_several_processes_and_compile(case, tmp_path, prefix):
    state = torch.load(case.file, weights_only=True)
    inner = state.get("model_state_dict", state)
    renamed = {prefix + key: value for key, value in inner.items()}
    wrapped = {"model_state_dict": renamed} if "model_state_dict" in state else renamed
    assert_reproduces(load_model(write(wrapped, tmp_path, "model.500.pt"), backbone=case.backbone), case)


def test_adapter_only_file(tmp_path):
    from conftest import reference_case

    case = reference_case("gpt2-nlg-4-experts")
    state = torch.load(case.file, weights_only=True)["model_state_dict"]
    only = {f"module.{key}": value for key, value in state.items() if "ExpertSoup" in key}
    path = write({"model_state_dict": only}, tmp_path, "model.500.pt")
    assert_reproduces(load_model(path, backbone=case.backbone), case)


def test_head_named_as_the_nlg_scripts_name_it(tmp_path):
    from conftest import reference_case

    case = reference_case("gpt2-nlg-1-expert")
    state = torch.load(case.file, weights_only=True)["model_state_dict"]
    state["lm_head.decoder.weight"] = state.pop("lm_head.weight")
    path = write({"model_state_dict": state}, tmp_path, "model.final.pt")
    assert_reproduces(load_model(path, backbone=case.backbone), case)


def test_old_serialisation_and_stray_buffers(glue_case, glue_state, tmp_path):
    glue_state["bert.embeddings.position_ids"] = torch.arange(64)[None]
    path = write(glue_state, tmp_path, _use_new_zipfile_serialization=False)
    assert_reproduces(load_model(path, backbone=glue_case.backbone), glue_case)


def test_half_precision_file_loads(glue_case, glue_state, tmp_path):
    path = write({key: value.half() for key, value in glue_state.items()}, tmp_path)
    difference = (logits_of(load_model(path, backbone=glue_case.backbone), glue_case) - glue_case.logits).abs().max()
    assert 0 < difference < 0.05


def test_folder_of_a_trainer(glue_case, tmp_path):
    """The partial file lies beside a full model, its optimizer and its state."""
    shutil.copy(glue_case.file, tmp_path)
    shutil.copy(glue_case.backbone / "model.safetensors", tmp_path)
    torch.save({"state": {}}, tmp_path / "optimizer.pt")
    (tmp_path / "trainer_state.json").write_text("{}")
    assert_reproduces(load_model(tmp_path, backbone=glue_case.backbone), glue_case)


def test_only_some_layers_have_adapters(glue_case, glue_state, tmp_path):
    some = {key: value for key, value in glue_state.items() if ".layer.1." not in key}
    model = load_model(write(some, tmp_path), backbone=glue_case.backbone)
    assert model.active_peft_config.layers_to_transform == [0, 2]
    folder = convert(tmp_path / "pytorch_model_expert_soup.bin", tmp_path / "peft", backbone=glue_case.backbone)
    assert torch.equal(logits_of(load_model(folder), glue_case), logits_of(model, glue_case))


def test_backbone_without_a_head_gets_its_size_from_the_file(glue_case, glue_state, tmp_path):
    from transformers import AutoModel

    AutoModel.from_pretrained(glue_case.backbone).save_pretrained(tmp_path / "headless")
    model = load_model(write(glue_state, tmp_path), backbone=tmp_path / "headless")
    assert_reproduces(model, glue_case)
    assert model.get_base_model().config.num_labels == 3


class Evil:
    def __reduce__(self):
        return (print, ("this must not run",))


def broken(state, **changes):
    return {**state, **changes}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: {k: v for k, v in s.items() if "layer.1.output.ExpertSoup.MoA_B." not in k}, "incomplete adapters"),
        (
            lambda s: {
                k: v for k, v in s.items() if "layer.1.output.ExpertSoup.MoA_A1.deepspeed_experts.0.b" not in k
            },
            "missing tensors of bert.encoder.layer.1.output.ExpertSoup.MoA_A1: bias.0",
        ),
        (
            lambda s: broken(s, **{"bert.encoder.layer.0.output.ExpertSoup.MoA_C.weight": torch.ones(1)}),
            "unknown adapter",
        ),
        (
            lambda s: broken(
                s, **{"bert.encoder.layer.0.output.ExpertSoup.MoA_A2.deepspeed_experts.0.bias": torch.ones(5)}
            ),
            "misshapen tensors in bert.encoder.layer.0",
        ),
        (
            lambda s: broken(
                s, **{"bert.encoder.layer.0.output.ExpertSoup.MoA_B.deepspeed_experts.0.weight": torch.ones(64, 40)}
            ),
            "misshapen adapter at bert.encoder.layer.0.output",
        ),
        (lambda s: {k.replace("layer.2", "layer.7"): v for k, v in s.items()}, "layer.7.output, where the backbone"),
        (lambda s: broken(s, extra=torch.ones(1)), "another backbone.*does not have: extra"),
        (
            lambda s: broken(s, **{"bert.encoder.layer.0.output.dense.bias": torch.ones(64)}),
            "another backbone.*other values: bert.encoder.layer.0.output.dense.bias",
        ),
        (
            lambda s: {k: v for k, v in s.items() if k != "classifier.bias"},
            r"1 missing: base_model.model.classifier.bias",
        ),
        (lambda s: {"weight": torch.ones(1)}, "no AdaKron adapter is in this file"),
        (lambda s: [1, 2], "holds a list"),
        (lambda s: {"step": 3}, "holds no tensors"),
        (lambda s: {"a": Evil()}, "not a file of plain tensors that can be read safely"),
    ],
)
def test_bad_files_are_refused(glue_case, glue_state, tmp_path, capsys, change, message):
    path = write(change(glue_state), tmp_path)
    with pytest.raises(CheckpointError, match=message):
        load_model(path, backbone=glue_case.backbone)
    assert "this must not run" not in capsys.readouterr().out


def test_truncated_file_is_refused(glue_case, tmp_path):
    path = tmp_path / "model.pt"
    path.write_bytes(glue_case.file.read_bytes()[:2000])
    with pytest.raises(CheckpointError, match="cannot be read safely|can be read safely"):
        load_model(path, backbone=glue_case.backbone)


def test_wrong_backbone_is_refused(glue_case):
    from conftest import reference_case

    with pytest.raises(CheckpointError, match="where the backbone"):
        load_model(glue_case.file, backbone=reference_case("roberta-glue-r16").backbone)


def test_missing_backbone_option(glue_case):
    with pytest.raises(CheckpointError, match="does not name its backbone; pass --backbone"):
        load_model(glue_case.file)


def test_task_follows_the_files_head(glue_case):
    found = find_checkpoint(glue_case.file, glue_case.backbone)
    assert load_checkpoint(found).task is Task.TEXT_CLASSIFICATION

"""Architectures that are in no table: what they take is read off the model itself."""

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest
import torch
from transformers import CONFIG_MAPPING

from adakron_export import ExportSettings, Subject, export_onnx, open_runner, validate
from adakron_export.artifacts.artifact import open_artifact, write_manifest
from adakron_export.backbones.table import BACKBONES
from adakron_export.tasks import Task, auto_class
from tampered import changed
from tiny import adapted, first

SMALL = {
    "vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
    "max_position_embeddings": 40, "initializer_range": 0.2, "pad_token_id": 1,
}  # fmt: skip
OTHERS = {
    "big_bird": ({"attention_type": "original_full", "type_vocab_size": 2}, r".*\.layer\.\d+\.output\.dense"),
    "ernie": ({"type_vocab_size": 2}, r".*\.layer\.\d+\.output\.dense"),
    "megatron-bert": ({"type_vocab_size": 2}, r".*\.layer\.\d+\.output\.dense"),
    "opt": ({"ffn_dim": 48, "word_embed_proj_dim": 32, "do_layer_norm_before": True}, r".*\.layers\.\d+\.fc2"),
}


def checkpoint_of(model_type, task, folder):
    changes, target = OTHERS[model_type]
    torch.manual_seed(0)
    backbone = auto_class(task).from_config(CONFIG_MAPPING[model_type](**{**SMALL, **changes})).eval()
    for name, parameter in backbone.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.1)
    backbone.save_pretrained(folder / "backbone")
    model = adapted(backbone, task, target_modules=target)
    model.save_pretrained(folder / "adapter")
    return Subject(folder / "adapter", backbone=folder / "backbone", task=task.value), model


@pytest.mark.parametrize(
    ("model_type", "task"),
    first(
        3,
        [
            ("ernie", Task.FEATURE_EXTRACTION),
            ("megatron-bert", Task.TOKEN_CLASSIFICATION),
            ("opt", Task.TEXT_GENERATION),
            ("opt", Task.TEXT_CLASSIFICATION),
            ("ernie", Task.TEXT_CLASSIFICATION),
            ("big_bird", Task.TEXT_CLASSIFICATION),
        ],
    ),
)
def test_an_architecture_in_no_table_takes_what_its_forward_takes(model_type, task, tmp_path):
    assert model_type not in BACKBONES
    subject, model = checkpoint_of(model_type, task, tmp_path)
    result = export_onnx(subject, tmp_path / "out")
    assert result.written
    names = [info.name for info in result.artifact.manifest.inputs]
    assert ("token_type_ids" in names) == (model_type != "opt")
    assert ("position_ids" in names) == (task is Task.TEXT_GENERATION)
    assert validate(tmp_path / "out", against=subject).passed

    ids = np.array([[5, 6, 7, 8, 9], [5, 6, 7, 1, 1]])
    batch = {"input_ids": ids, "attention_mask": (ids != 1).astype(np.int64)}
    if model_type != "opt":
        batch["token_type_ids"] = np.array([[0, 0, 1, 1, 1], [0, 1, 1, 0, 0]])
    expected = model(**{name: torch.from_numpy(array) for name, array in batch.items()})[0].detach().numpy()
    if "position_ids" in names:
        batch["position_ids"] = np.clip(batch["attention_mask"].cumsum(1) - 1, 0, None)
    found = open_runner(tmp_path / "out").run(batch)
    output = next(iter(found.values()))
    kept = batch["attention_mask"].astype(bool) if output.ndim == 3 else ...
    np.testing.assert_allclose(output[kept], expected[kept], atol=1e-4)


def test_a_graph_that_lacks_the_token_types_is_not_comparable(tmp_path):
    """As one that an exporter makes which leaves out an input that the model reads."""
    subject, _ = checkpoint_of("ernie", Task.TEXT_CLASSIFICATION, tmp_path)
    export_onnx(subject, tmp_path / "out", settings=ExportSettings(validate=False))

    def leave_out(nodes, model):
        inputs = {value.name: value for value in model.graph.inputs}
        nothing = ir.node("Sub", [inputs["input_ids"], inputs["input_ids"]])
        model.graph.insert_before(next(iter(model.graph)), nothing)
        ir.convenience.replace_all_uses_with(inputs["token_type_ids"], nothing.outputs[0])
        model.graph.inputs.remove(inputs["token_type_ids"])

    wrong = changed(tmp_path / "out", tmp_path / "wrong", leave_out)
    manifest = open_artifact(wrong).manifest
    write_manifest(wrong, replace(manifest, inputs=manifest.inputs[:2]))
    report = validate(wrong, against=subject)
    assert not report.passed
    assert report.mismatches[0].startswith("inputs: the candidate has ['attention_mask', 'input_ids'], the reference")

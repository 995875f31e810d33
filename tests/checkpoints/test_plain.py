"""Models without an adapter: exported and proven like the others."""

import json

import pytest
import torch

from adakron_export import Subject, create_bank, export_engine, export_onnx, inspect, load_model, predict, validate
from adakron_export.checkpoints.finding import find_checkpoint
from adakron_export.errors import CheckpointError, ExportError
from adakron_export.tasks import Task
from tiny import backbone_of, first, save_backbone


def save(folder, model_type="bert", task=None):
    backbone_of(model_type, task).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("model_type", "task"),
    first(
        3,
        [
            ("distilbert", Task.QUESTION_ANSWERING),
            ("gpt2", None),
            ("mpnet", Task.FEATURE_EXTRACTION),
            ("bert", None),
            ("roberta", Task.FILL_MASK),
            ("vit", None),
        ],
    ),
)
def test_a_whole_model_travels(model_type, task, tmp_path):
    model = save(tmp_path / "model", model_type, task)
    result = export_onnx(model, tmp_path / "out")
    assert result.parity.passed
    assert result.artifact.manifest.adapter == {"kind": "none"}
    assert validate(tmp_path / "out", against=model).passed
    card = (tmp_path / "out" / "README.md").read_text()
    assert "with a" not in card.partition("| |")[0]
    assert "adakron\n" not in card.partition("---\n\n")[0].partition("tags:")[2]


def test_it_is_inspected_and_answers(tmp_path):
    torch.manual_seed(0)
    model = save_backbone(tmp_path / "model", task=Task.TEXT_CLASSIFICATION)
    info = inspect(model)
    assert (info.kind, info.settings, info.adapters, info.adapter_parameters) == ("none", {}, (), 0)
    export_onnx(model, tmp_path / "out")
    assert {row["label"] for row in predict(tmp_path / "out", ["the film was good"])} <= {"LABEL_0", "LABEL_1"}


def test_another_model_is_not_taken_for_it(tmp_path):
    export_onnx(save(tmp_path / "one"), tmp_path / "out")
    other = backbone_of("bert")
    other.bert.encoder.layer[0].output.dense.weight.data[3, 5] += 0.01
    other.save_pretrained(tmp_path / "other")
    report = validate(tmp_path / "out", against=tmp_path / "other")
    assert not report.passed
    assert any("exported from another" in note for note in report.notes)


def test_what_it_has_no_use_for_is_refused(tmp_path):
    model = save(tmp_path / "model")
    with pytest.raises(CheckpointError, match="is a whole model, which no backbone is for"):
        export_onnx(Subject(model, save(tmp_path / "backbone")), tmp_path / "out")
    with pytest.raises(ExportError, match="cannot be in a bank: it has no adapter; export it alone"):
        create_bank({"one": model}, tmp_path / "bank")


def test_a_head_that_would_be_random_is_refused(tmp_path):
    headless = save(tmp_path / "model", task=Task.FEATURE_EXTRACTION)
    with pytest.raises(CheckpointError, match="the head is in neither"):
        load_model(headless, task="text-classification")


def test_a_folder_without_weights_is_no_model(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(CheckpointError, match=r"holds neither adapter_config.json .* nor pytorch_model_expert_soup"):
        find_checkpoint(tmp_path)


def test_tensorrt_builds_it(tmp_path):
    pytest.importorskip("tensorrt_rtx")
    export_onnx(save(tmp_path / "model"), tmp_path / "out", target="tensorrt", dtype="fp16")
    assert export_engine(tmp_path / "out", tmp_path / "engine", flavor="rtx").engine_bytes > 0

"""The main job, end to end on tiny models."""

import json
import sys

import numpy as np
import onnx
import pytest
import torch

import adakron_export
from adakron_export import (
    ExportSettings,
    Limits,
    Subject,
    export_onnx,
    load_model,
    open_artifact,
    open_runner,
    validate,
)
from adakron_export.artifacts.listing import sha256_of
from adakron_export.errors import ArtifactError, ExportError, RunnerError
from adakron_export.tasks import Task
from conftest import DEMO, stages
from tiny import EVERY, save_checkpoint

TEXT_TASKS = [task for task in Task if task is not Task.IMAGE_CLASSIFICATION and not task.writes]


@pytest.mark.parametrize("model_type", EVERY)
def test_every_backbone_exports_and_agrees(model_type, tmp_path):
    result = export_onnx(save_checkpoint(tmp_path, model_type), tmp_path / "out")
    assert result.written
    assert result.parity.max_abs_error < 5e-5
    adapters = sum(node.op_type == "KronAdapter" for node in onnx.load(tmp_path / "out/model.onnx").graph.node)
    assert adapters == 2


@pytest.mark.parametrize("task", TEXT_TASKS)
def test_every_task_exports_with_the_names_of_optimum(task, tmp_path):
    checkpoint = save_checkpoint(tmp_path, "bert", task)
    manifest = export_onnx(checkpoint, tmp_path / "out").artifact.manifest
    assert manifest.task == task.value
    assert [info.name for info in manifest.inputs] == ["input_ids", "attention_mask", "token_type_ids"]
    assert {info.shape for info in manifest.inputs} == {("batch_size", "sequence_length")}
    assert {info.dtype for info in manifest.inputs} == {"int64"}
    names = {
        Task.QUESTION_ANSWERING: ["start_logits", "end_logits"],
        Task.FEATURE_EXTRACTION: ["last_hidden_state", "sentence_embedding"],
    }
    assert [info.name for info in manifest.outputs] == names.get(task, ["logits"])


@pytest.mark.parametrize(
    "changes",
    [{"num_labels": 1, "problem_type": "regression"}, {"num_labels": 5, "problem_type": "multi_label_classification"}],
)
def test_regression_and_multi_label_heads(changes, tmp_path):
    checkpoint = save_checkpoint(tmp_path, "roberta", changes=changes)
    manifest = export_onnx(checkpoint, tmp_path / "out").artifact.manifest
    assert manifest.outputs[0].shape == ("batch_size", changes["num_labels"])
    assert json.loads((tmp_path / "out/config.json").read_text())["problem_type"] == changes["problem_type"]


def test_decoder_that_classifies(tmp_path):
    checkpoint = save_checkpoint(tmp_path, "gpt2", Task.TEXT_CLASSIFICATION)
    assert export_onnx(checkpoint, tmp_path / "out").written


def test_decoder_without_padding_token_is_told_what_to_do(tmp_path):
    checkpoint = save_checkpoint(tmp_path, "gpt2", Task.TEXT_CLASSIFICATION, changes={"pad_token_id": None})
    with pytest.raises(ExportError, match="needs a padding token.*set pad_token_id"):
        export_onnx(checkpoint, tmp_path / "out")


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
@pytest.mark.parametrize("target", ["portable", "ort-cpu"])
def test_half_precision_is_validated_by_rounding(dtype, target, tmp_path):
    result = export_onnx(save_checkpoint(tmp_path, "bert"), tmp_path / "out", dtype=dtype, target=target)
    assert result.written
    assert 1e-5 < result.parity.max_abs_error < 0.1
    assert "emulated" in result.parity.candidate
    weights = onnx.load(tmp_path / "out/model.onnx").graph.initializer
    halves = {"fp16": onnx.TensorProto.FLOAT16, "bf16": onnx.TensorProto.BFLOAT16}[dtype]
    assert onnx.TensorProto.FLOAT not in {tensor.data_type for tensor in weights}
    assert halves in {tensor.data_type for tensor in weights}
    assert {info.dtype for info in result.artifact.manifest.outputs} == {"float32"}


def test_fp16_overflow_is_found_and_not_shipped(tmp_path):
    checkpoint = save_checkpoint(tmp_path, "bert")
    model = load_model(checkpoint)
    with torch.no_grad():  # the Kronecker product squares magnitudes: 1000 * 1000 is past 65504
        layer = model.base_model.model.bert.encoder.layer[1].output.dense
        layer.adakron_a1["default"].bias.fill_(1000)
        layer.adakron_a2["default"].bias.fill_(1000)
    model.save_pretrained(checkpoint)
    assert export_onnx(checkpoint, tmp_path / "fp32", limits=Limits(atol=1e3)).written
    result = export_onnx(checkpoint, tmp_path / "out", dtype="fp16")
    assert not result.written
    assert not (tmp_path / "out").exists()
    assert result.parity.overflow.startswith("bert.encoder.layer.1.output.dense overflows")


def test_weights_beyond_fp16_are_named(tmp_path):
    checkpoint = save_checkpoint(tmp_path, "bert")
    model = load_model(checkpoint)
    model.base_model.model.classifier.modules_to_save["default"].weight.data[0, 0] = 1e5
    model.save_pretrained(checkpoint)
    with pytest.raises(ExportError, match="classifier.weight has values that fp16 cannot hold; export in bf16"):
        export_onnx(checkpoint, tmp_path / "out", dtype="fp16")


def test_external_data_has_the_name_that_others_look_for(tmp_path, monkeypatch):
    monkeypatch.setattr("adakron_export.artifacts.onnx_file.EXTERNAL_DATA_FROM_BYTES", 1000)
    result = export_onnx(save_checkpoint(tmp_path, "bert"), tmp_path / "out")
    assert result.written
    assert (tmp_path / "out/model.onnx_data").stat().st_size > 10_000
    locations = {
        entry.value
        for tensor in onnx.load(tmp_path / "out/model.onnx", load_external_data=False).graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    }
    assert locations == {"model.onnx_data"}
    assert open_runner(tmp_path / "out")
    assert export_onnx(tmp_path / "adapter", tmp_path / "half", dtype="bf16").written


def test_failed_validation_keeps_the_old_artifact(tmp_path):
    checkpoint = save_checkpoint(tmp_path, "bert")
    assert export_onnx(checkpoint, tmp_path / "out").written
    before = (tmp_path / "out/parity.json").read_text()
    result = export_onnx(checkpoint, tmp_path / "out", overwrite=True, limits=Limits(atol=0))
    assert not result.written
    assert not result.parity.passed
    assert (tmp_path / "out/parity.json").read_text() == before
    forced = export_onnx(
        checkpoint, tmp_path / "out", overwrite=True, settings=ExportSettings(force=True), limits=Limits(atol=0)
    )
    assert forced.written
    assert open_artifact(tmp_path / "out").parity()["passed"] is False
    assert "FAILED" in (tmp_path / "out/README.md").read_text()


def test_validate_accepts_the_artifact_and_notices_another_checkpoint(tmp_path):
    checkpoint = save_checkpoint(tmp_path, "bert")
    export_onnx(checkpoint, tmp_path / "out")
    report = validate(tmp_path / "out", against=checkpoint)
    assert report.passed
    assert report.notes == ()
    other = save_checkpoint(tmp_path / "other", "bert", kron_order="a1_a2", r=16)
    report = validate(tmp_path / "out", against=other)
    assert not report.passed
    assert "exported from another adapter_model.safetensors" in report.notes[0]


def test_one_changed_weight_is_caught(tmp_path):
    """A hundredth on one of the 20,000 numbers: first by its sha256, and where that is forged by its outputs."""
    checkpoint = save_checkpoint(tmp_path, "bert")
    export_onnx(checkpoint, tmp_path / "out")
    model = onnx.load(tmp_path / "out/model.onnx")
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == "classifier.weight")
    values = onnx.numpy_helper.to_array(weight).copy()
    values[1, 5] += 0.01
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    onnx.save(model, tmp_path / "out/model.onnx")
    with pytest.raises(ArtifactError, match="changed since it was written: model.onnx"):
        open_runner(tmp_path / "out")
    manifest = json.loads((tmp_path / "out/adakron_export.json").read_text())
    manifest["files"]["model.onnx"] = sha256_of(tmp_path / "out/model.onnx")
    (tmp_path / "out/adakron_export.json").write_text(json.dumps(manifest))
    assert not validate(tmp_path / "out", against=checkpoint).passed


def test_reference_file_is_taken_directly(glue_case, tmp_path):
    result = export_onnx(Subject(glue_case.file, backbone=glue_case.backbone), tmp_path / "out")
    assert result.parity.max_abs_error < 1e-5
    assert validate(tmp_path / "out", against=Subject(glue_case.file, backbone=glue_case.backbone)).passed
    runner = open_runner(tmp_path / "out")
    inputs = {name: tensor.numpy() for name, tensor in glue_case.inputs.items()}
    inputs["token_type_ids"] = np.zeros_like(inputs["input_ids"])
    np.testing.assert_allclose(runner.run(inputs)["logits"], glue_case.logits.numpy(), atol=1e-5)


def test_runner_refuses_what_does_not_fit(demo_artifact, demo_batch):
    runner = open_runner(demo_artifact)
    runner.run(demo_batch)
    ids = demo_batch["input_ids"]
    with pytest.raises(RunnerError, match="lacks token_type_ids"):
        runner.run({name: demo_batch[name] for name in ("input_ids", "attention_mask")})
    with pytest.raises(RunnerError, match="has labels"):
        runner.run({**demo_batch, "labels": ids})
    with pytest.raises(RunnerError, match="differ in shape"):
        runner.run({**demo_batch, "attention_mask": ids[:, :3]})
    with pytest.raises(RunnerError, match="65 tokens long, the model takes 64; truncate"):
        runner.run({name: np.ones((1, 65), dtype=np.int64) for name in demo_batch})
    with pytest.raises(RunnerError, match="no CUDAExecutionProvider"):
        open_runner(demo_artifact, device="cuda")
    with pytest.raises(RunnerError, match="device is 'tpu'; choose one of cpu"):
        open_runner(demo_artifact, device="tpu")


def test_checkpoint_opens_as_a_runner_too(demo_artifact, demo_batch):
    eager, exported = open_runner(DEMO).run(demo_batch), open_runner(demo_artifact).run(demo_batch)
    np.testing.assert_allclose(exported["logits"], eager["logits"], atol=1e-5)


def test_bf16_artifact_on_the_cpu_says_why_not(tmp_path):
    export_onnx(DEMO, tmp_path / "out", dtype="bf16")
    with pytest.raises(RunnerError, match="no bf16 on the CPU"):
        open_runner(tmp_path / "out")


def test_stages_are_told_in_order(tmp_path):
    with stages() as said:
        export_onnx(DEMO, tmp_path / "out")
    kinds = [stage for stage in said if not stage.startswith("batch")]
    assert [stage.split()[0] for stage in kinds] == ["load", "fold", "export", "write", "validate", "compare"]
    assert sum(stage.startswith("batch") for stage in said) == 11


def test_export_leaves_no_trace_of_where_it_was_made(demo_artifact):
    for file in demo_artifact.iterdir():
        assert str(DEMO.parent).encode() not in file.read_bytes(), file.name


def test_missing_runtime_names_the_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(adakron_export.errors.MissingPackageError, match=r"adakron-export\[cpu"):
        export_onnx(DEMO, tmp_path / "out")

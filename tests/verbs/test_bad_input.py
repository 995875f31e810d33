"""What a user can get wrong on the way to an artifact: each has one message, and nothing is written."""

import json
import shutil

import pytest

from adakron_export import Batches, ExportSettings, Guard, Limits, Subject, TextSettings, Timing, export_onnx
from adakron_export.errors import BackboneError, CheckpointError, DataError, ExportError, RunnerError
from adakron_export.tasks import Task
from conftest import DEMO
from tiny import backbone_of, save_checkpoint


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"dtype": "fp7"}, ExportError, "dtype 'fp7' is unknown; choose one of fp32, fp16, bf16"),
        ({"target": "cpu"}, ExportError, "target 'cpu' is unknown"),
    ],
)
def test_bad_options_are_refused_before_work_is_done(tmp_path, settings, error, message):
    with pytest.raises(error, match=message):
        export_onnx(DEMO, tmp_path / "out", **settings)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("backbone", "message"),
    [
        ("/nowhere/at/all", "/nowhere/at/all: no such file or folder"),
        ("nobody/nothing", "nobody/nothing: .* hub cannot be reached"),
    ],
)
def test_backbones_that_are_not_there_are_refused_before_work_is_done(tmp_path, backbone, message):
    with pytest.raises(BackboneError, match=message):
        export_onnx(Subject(DEMO, backbone=backbone), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Subject(DEMO, task="translate"), ExportError, "task 'translate' cannot be exported"),
        (lambda: Subject(DEMO, device="tpu"), RunnerError, "device is 'tpu'; choose one of cpu, openvino"),
        (lambda: Subject(DEMO, precision="fp8"), RunnerError, "choose one of fp32, fp64"),
        (lambda: Subject(DEMO, threads=0), RunnerError, "threads is 0; it must be a number of at least 1"),
        (lambda: Limits(atol=-1.0), ExportError, "atol is -1.0"),
        (lambda: Limits(rtol=float("nan")), ExportError, "rtol is nan"),
        (lambda: Limits(max_drop=100), ExportError, "max_drop is 100; it must be below 100"),
        (lambda: Batches(limit=0), ExportError, "limit is 0"),
        (lambda: Timing(budget_s=0), RunnerError, "must be above 0"),
        (lambda: Timing(clients=(0,)), RunnerError, "clients is 0"),
        (lambda: Guard(max_regression=5), RunnerError, "max_regression is about a baseline, and none is named"),
        (lambda: Guard(strict=True), RunnerError, "strict is about a baseline"),
        (lambda: Guard(baseline="b", max_regression=1000), RunnerError, "it must be below 1000"),
        (lambda: TextSettings(n_best=0), DataError, "n_best is 0"),
        (lambda: ExportSettings(layout="round"), ExportError, "choose one of flat, transformers.js"),
    ],
)
def test_records_refuse_what_makes_no_sense(make, error, message):
    with pytest.raises(error, match=message):
        make()


def corrupt(name, content):
    return lambda folder: (folder / name).write_text(content)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "adapter_model.safetensors").unlink(), "adapter_model.safetensors is missing"),
        (lambda folder: (folder / "adapter_config.json").unlink(), "holds neither adapter_config.json"),
        (corrupt("adapter_config.json", "{"), "not readable"),
        (corrupt("adapter_config.json", "[]"), "holds a list"),
        (corrupt("adapter_model.safetensors", "nonsense"), "not a readable safetensors file"),
    ],
)
def test_damaged_checkpoints(tmp_path, damage, message):
    checkpoint = save_checkpoint(tmp_path, "bert")
    damage(checkpoint)
    with pytest.raises(CheckpointError, match=message):
        export_onnx(checkpoint, tmp_path / "out")


def test_untrained_adapters_are_not_shipped_unawares(tmp_path):
    checkpoint = save_checkpoint(tmp_path, "bert", init_weights=True)
    with pytest.raises(ExportError, match="changes nothing of what its backbone answers.*--force"):
        export_onnx(checkpoint, tmp_path / "out")
    assert export_onnx(checkpoint, tmp_path / "out", settings=ExportSettings(force=True)).written


def test_missing_checkpoint(tmp_path):
    with pytest.raises(CheckpointError, match="no such file or folder"):
        export_onnx(tmp_path / "nowhere", tmp_path / "out")


def test_checkpoint_that_does_not_fit_lists_what_is_wrong(tmp_path):
    checkpoint = save_checkpoint(tmp_path, "bert")
    wide = backbone_of("bert", hidden_size=64)
    wide.save_pretrained(tmp_path / "wide")
    with pytest.raises(CheckpointError, match=r"does not fit the backbone.*misshapen: base_model.*is \[2, 32\] where"):
        export_onnx(Subject(checkpoint, backbone=tmp_path / "wide"), tmp_path / "out")
    deep = backbone_of("bert", num_hidden_layers=3)
    deep.save_pretrained(tmp_path / "deep")
    with pytest.raises(CheckpointError, match=r"6 missing: base_model.model.bert.encoder.layer.2"):
        export_onnx(Subject(checkpoint, backbone=tmp_path / "deep"), tmp_path / "out")
    shallow = backbone_of("bert", num_hidden_layers=1)
    shallow.save_pretrained(tmp_path / "shallow")
    with pytest.raises(CheckpointError, match=r"6 unexpected: base_model.model.bert.encoder.layer.1"):
        export_onnx(Subject(checkpoint, backbone=tmp_path / "shallow"), tmp_path / "out")


def test_checkpoint_and_backbone_from_the_hub(tmp_path, monkeypatch):
    """As they lie in its cache, which is what a machine without network has."""
    cache = tmp_path / "cache"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    checkpoint = save_checkpoint(tmp_path, "bert")
    settings = json.loads((checkpoint / "adapter_config.json").read_text())
    settings |= {"base_model_name_or_path": "somebody/backbone", "revision": "v1"}
    (checkpoint / "adapter_config.json").write_text(json.dumps(settings))
    for name, folder, revision in (("adapter", checkpoint, "main"), ("backbone", tmp_path / "backbone", "v1")):
        repository = cache / f"models--somebody--{name}"
        (repository / "refs").mkdir(parents=True)
        (repository / "refs" / revision).write_text("abc")
        shutil.copytree(folder, repository / "snapshots/abc")
    result = export_onnx("somebody/adapter", tmp_path / "out")
    assert result.written
    assert result.artifact.manifest.backbone == "somebody/backbone"
    assert {source.name for source in result.artifact.manifest.backbone_source} == {"config.json", "model.safetensors"}
    with pytest.raises(BackboneError, match="somebody/other: .* hub cannot be reached"):
        export_onnx(Subject("somebody/adapter", backbone="somebody/other"), tmp_path / "other")


def test_remote_code_is_not_run_and_not_asked_for(tmp_path):
    checkpoint = save_checkpoint(tmp_path, "bert")
    config = json.loads((tmp_path / "backbone/config.json").read_text())
    config |= {"model_type": "theirs", "auto_map": {"AutoConfig": "theirs.Theirs"}}
    for folder in (checkpoint, tmp_path / "backbone"):
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "theirs.py").write_text("raise SystemExit('this must not run')")
    with pytest.raises(BackboneError, match="cannot be loaded"):
        export_onnx(checkpoint, tmp_path / "out")


def test_head_that_nobody_trained_is_refused(tmp_path):
    """The adapter was saved without its head, and the backbone has none: the outputs would be random."""
    checkpoint = save_checkpoint(tmp_path, "bert", task_type=None)
    backbone_of("bert", Task.FEATURE_EXTRACTION).save_pretrained(tmp_path / "backbone")
    with pytest.raises(CheckpointError, match="the head is in neither.*classifier"):
        export_onnx(Subject(checkpoint, task="text-classification"), tmp_path / "out")


def test_pooler_that_nobody_saved_is_refused(tmp_path):
    """A backbone from masked language modelling has no pooler; a classifier on a random one is worthless."""
    checkpoint = save_checkpoint(tmp_path, "bert", task_type="SEQ_CLS")
    backbone_of("bert", Task.FILL_MASK).save_pretrained(tmp_path / "backbone")
    with pytest.raises(CheckpointError, match="would be random: bert.pooler.dense.bias, bert.pooler.dense.weight"):
        export_onnx(checkpoint, tmp_path / "out")


def test_backbone_of_another_architecture_is_refused(tmp_path):
    checkpoint = save_checkpoint(tmp_path, "bert")
    config = json.loads((tmp_path / "backbone/config.json").read_text())
    save_checkpoint(tmp_path / "other", "distilbert")
    (tmp_path / "other/backbone/config.json").write_text(json.dumps(config))
    with pytest.raises(BackboneError, match="lacks tensors of a BertForSequenceClassification"):
        export_onnx(Subject(checkpoint, backbone=tmp_path / "other/backbone"), tmp_path / "out")

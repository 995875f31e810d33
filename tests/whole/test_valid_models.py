"""Models and files that are valid, if not usual: each is exported and proven, or refused with a clear word."""

import json

import numpy as np
import pytest
import torch
from peft import get_peft_model

from adakron_export import AdaKronConfig, ExportSettings, Subject, export_onnx, load_model, open_runner, validate
from adakron_export.errors import AdaKronError, BackboneError, ExportError, RunnerError
from adakron_export.tasks import Task
from adakron_export.validation.batches import batch_of
from tiny import adapted, backbone_of, first, save_backbone, save_checkpoint


def changed(file, **settings):
    file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))


@pytest.mark.parametrize(
    ("model_type", "task", "build", "settings"),
    first(8, [
        ("bert", Task.TEXT_CLASSIFICATION, {"type_vocab_size": 1}, {}),
        ("llama", Task.TEXT_GENERATION, {}, {"pad_token_id": -1}),
        ("bert", Task.TEXT_CLASSIFICATION, {}, {"attn_implementation": "flash_attention_2"}),
        ("bert", Task.TEXT_CLASSIFICATION, {"is_decoder": True}, {}),
        ("bert", Task.TEXT_GENERATION, {"is_decoder": True}, {}),
        ("bert", Task.TEXT_CLASSIFICATION, {}, {"return_dict": False}),
        ("bert", Task.TEXT_CLASSIFICATION, {}, {"chunk_size_feed_forward": 3}),
        ("vit", Task.IMAGE_CLASSIFICATION, {"image_size": [16, 24]}, {}),
        ("bert", Task.TEXT_CLASSIFICATION, {}, {"pad_token_id": -1}),
        ("bert", Task.TEXT_CLASSIFICATION, {}, {"_attn_implementation": "flash_attention_2"}),
        ("deberta-v2", Task.TEXT_CLASSIFICATION, {}, {"attn_implementation": "flash_attention_2"}),
    ]),
)  # fmt: skip
def test_exported_and_proven(model_type, task, build, settings, tmp_path):
    checkpoint = save_checkpoint(tmp_path, model_type, task, changes=build)
    changed(tmp_path / "backbone/config.json", **settings)
    assert export_onnx(Subject(checkpoint, task=task.value), tmp_path / "out").written


@pytest.mark.parametrize("rope", ["dynamic", "longrope"])
def test_rotations_by_the_length_of_a_batch_are_refused(rope, tmp_path):
    checkpoint = save_checkpoint(tmp_path, "llama", Task.TEXT_GENERATION)
    factors = {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4, "original_max_position_embeddings": 20}
    changed(tmp_path / "backbone/config.json",
            rope_parameters={"rope_type": rope, "factor": 2.0, "rope_theta": 10000.0, **factors})  # fmt: skip
    with pytest.raises(ExportError, match=f"rope_type '{rope}' rotates by the length"):
        export_onnx(checkpoint, tmp_path / "out")


@pytest.mark.parametrize("task", [Task.TEXT_CLASSIFICATION, Task.FILL_MASK])
def test_tokens_that_were_added(task, tmp_path):
    """PEFT saves the whole embedding then, and the backbone keeps its own."""
    backbone = backbone_of("bert", task)
    backbone.save_pretrained(tmp_path / "backbone")
    backbone.name_or_path = str(tmp_path / "backbone")
    backbone.resize_token_embeddings(103)
    model = adapted(backbone, task)
    with torch.no_grad():
        model.get_input_embeddings().weight[99:] = torch.randn(4, 32)
    model.save_pretrained(tmp_path / "adapter", save_embedding_layers=True)
    loaded = load_model(tmp_path / "adapter", task=task.value)
    ids = torch.tensor([[2, 100, 102, 3]])
    with torch.no_grad():
        torch.testing.assert_close(loaded(input_ids=ids).logits, model(input_ids=ids).logits, rtol=0, atol=1e-5)
    assert export_onnx(Subject(tmp_path / "adapter", task=task.value), tmp_path / "out").written
    assert json.loads((tmp_path / "out/config.json").read_text())["vocab_size"] == 103


def test_a_tokenizer_with_more_tokens_than_the_embedding_is_refused(tmp_path):
    checkpoint = save_checkpoint(tmp_path, "bert", changes={"vocab_size": 60})
    save_backbone(tmp_path / "other")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (checkpoint / name).write_bytes((tmp_path / "other" / name).read_bytes())
    with pytest.raises(ExportError, match="the tokenizer has a token 94, where the model's embedding has 60 rows"):
        export_onnx(checkpoint, tmp_path / "out")


@pytest.mark.parametrize("kept", [("tokenizer.json",), ("vocab.txt",)])
def test_a_tokenizer_without_its_settings(kept, tmp_path):
    from adakron_export import predict

    checkpoint = save_checkpoint(tmp_path, "bert")
    save_backbone(tmp_path / "other")
    tokens = json.loads((tmp_path / "other/tokenizer.json").read_text())["model"]["vocab"]
    (checkpoint / "vocab.txt").write_text("\n".join(sorted(tokens, key=tokens.get)))
    (checkpoint / "tokenizer.json").write_bytes((tmp_path / "other/tokenizer.json").read_bytes())
    for name in {"tokenizer.json", "vocab.txt"} - {*kept}:
        (checkpoint / name).unlink()
    export_onnx(checkpoint, tmp_path / "out", settings=ExportSettings(validate=False))
    assert predict(tmp_path / "out", ["good film"])[0]["label"] in ("LABEL_0", "LABEL_1")


def test_files_that_a_tokenizers_class_names_are_copied(tmp_path):
    checkpoint = save_checkpoint(tmp_path, "roberta")
    (checkpoint / "vocab.txt").write_text("good 10\nfilm 9\n")
    (checkpoint / "bpe.codes").write_text("g o 1\n")
    (checkpoint / "tokenizer_config.json").write_text('{"tokenizer_class": "PhobertTokenizer"}')
    export_onnx(checkpoint, tmp_path / "out", settings=ExportSettings(validate=False))
    assert (tmp_path / "out/bpe.codes").read_text() == "g o 1\n"


def test_names_of_labels_with_gaps_are_kept(tmp_path):
    checkpoint = save_checkpoint(tmp_path, "bert", changes={"num_labels": 3})
    changed(tmp_path / "backbone/config.json", id2label={"0": "good", "2": "bad"}, label2id={"good": 0, "bad": 2})
    export_onnx(checkpoint, tmp_path / "out", settings=ExportSettings(validate=False))
    names = json.loads((tmp_path / "out/config.json").read_text())["id2label"]
    assert names == {"0": "good", "1": "LABEL_1", "2": "bad"}


def test_labels_that_predict_gives_are_labels_that_validate_takes(tmp_path):
    checkpoint = save_checkpoint(tmp_path, "bert")
    save_backbone(tmp_path / "other")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (checkpoint / name).write_bytes((tmp_path / "other" / name).read_bytes())
    export_onnx(checkpoint, tmp_path / "out", settings=ExportSettings(validate=False))
    for labels in (("LABEL_0", "LABEL_1"), ("0", "1")):
        (tmp_path / "t.csv").write_text("text,label\n" + "".join(f"good film,{labels[n % 2]}\n" for n in range(8)))
        assert validate(tmp_path / "out", against=checkpoint, data=tmp_path / "t.csv").accuracy.examples == 8


@pytest.mark.parametrize(("model_type", "task"), first(1, [("gpt2", Task.TEXT_GENERATION), ("bert", Task.FILL_MASK)]))
@pytest.mark.parametrize("target", first(1, ["ort-cpu", "portable"]))
def test_a_tied_head_is_kept_once(model_type, task, target, tmp_path):
    wide = {"vocab_size": 4000, "initializer_range": 0.05}
    checkpoint = save_checkpoint(tmp_path, model_type, task, changes=wide)
    sizes = {}
    for dtype in ("fp32", "int8"):
        result = export_onnx(Subject(checkpoint, task=task.value), tmp_path / dtype, dtype=dtype, target=target)
        assert result.written
        sizes[dtype] = result.artifact.size_bytes
    assert sizes["fp32"] < 1.5 * 4 * 4000 * 32  # bytes of the weights
    assert sizes["int8"] < 0.5 * sizes["fp32"]


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("input_ids", np.ones((1, 3)), "input_ids has values of dtype float64"),
        ("input_ids", np.array([["a", "b", "c"]]), "input_ids has values of dtype <U1"),
        ("input_ids", np.array([[1, -2, 3]]), "input_ids has negative values"),
        ("attention_mask", np.array([[1, 1, np.nan]]), "attention_mask has values of dtype float64"),
        ("attention_mask", np.array([[1, 2, 1]]), "attention_mask has values that are neither 0 nor 1"),
    ],
)
def test_inputs_of_another_kind_are_refused(name, values, message, demo_artifact):
    for path in (demo_artifact, demo_artifact.parent.parent / "none"):
        if not path.exists():
            continue
        runner = open_runner(path)
        batch = {key: np.ones((1, 3), dtype=np.int64) for key in runner.input_names}
        runner.run(batch)
        with pytest.raises(RunnerError, match=message):
            runner.run({**batch, name: values})


def test_a_model_that_sees_later_tokens_cannot_write(tmp_path):
    backbone_of("bert", Task.FILL_MASK).save_pretrained(tmp_path / "backbone")
    model = get_peft_model(backbone_of("bert", Task.TEXT_GENERATION, is_decoder=True),
                           AdaKronConfig(r=8, task_type="CAUSAL_LM", init_weights=False))  # fmt: skip
    model.get_base_model().name_or_path = str(tmp_path / "backbone")
    model.save_pretrained(tmp_path / "adapter")
    with pytest.raises(BackboneError, match='looks at later tokens.*"is_decoder": true'):
        export_onnx(Subject(tmp_path / "adapter", backbone=tmp_path / "backbone"), tmp_path / "out")


def test_a_row_of_nothing_but_padding_leaves_the_others_alone(tmp_path):
    result = export_onnx(save_checkpoint(tmp_path, "bert"), tmp_path / "out")
    assert "padding-row" in {row.batch for row in result.parity.rows}
    runner = open_runner(tmp_path / "out")
    from adakron_export.artifacts.artifact import open_artifact
    from adakron_export.subjects.space import exported_space

    batch = batch_of(exported_space(open_artifact(tmp_path / "out")), 2, 8).inputs
    batch["attention_mask"][1] = 0
    alone = {name: values[:1] for name, values in batch.items()}
    np.testing.assert_allclose(runner.run(batch)["logits"][0], runner.run(alone)["logits"][0], atol=1e-5)
    with pytest.raises(AdaKronError):
        runner.run({})

"""Batches, metrics and limits, and what labelled text shows."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from adakron_export import Batches, Limits, Subject, TextSettings, export_onnx, open_runner, validate
from adakron_export.artifacts.artifact import open_artifact, write_manifest
from adakron_export.errors import CheckpointError, DataError, ExportError, RunnerError
from adakron_export.graph.dtypes import DTYPES
from adakron_export.runtimes.ort import OrtRunner, misplaced
from adakron_export.runtimes.space import InputSpace, NamedBatch
from adakron_export.subjects.space import exported_space
from adakron_export.tasks import Task
from adakron_export.validation.accuracy import AccuracyReport, MetricPair
from adakron_export.validation.batches import batch_of, make_batches
from adakron_export.validation.parity import compare_outputs
from conftest import DEMO
from tiny import save_checkpoint

SPACE = InputSpace(
    ("input_ids", "attention_mask"), 50, pad_id=0, max_length=40, special_ids=frozenset({1, 2}), frame=(1, 2)
)


def row_of(expected, found, *, output="logits", mask=None, dtype="fp32"):
    inputs = {"input_ids": np.zeros((len(expected), 3), dtype=int)}
    if mask is not None:
        inputs["attention_mask"] = mask
    batch = NamedBatch("batch", inputs)
    found = {output: np.asarray(found, dtype=np.float32)}
    expected = {output: np.asarray(expected, dtype=np.float32)}
    return compare_outputs(batch, expected, found, DTYPES[dtype].tolerance, outputs=[output])[0]


def test_batches_hold_the_corners_and_are_repeatable_alone():
    batches = {batch.name: batch.inputs for batch in make_batches(SPACE, seed=4)}
    assert batches["one-token"]["input_ids"].shape == (1, 1)
    assert batches["max-length"]["input_ids"].shape == (1, 40)
    mask = batches["padded-left"]["attention_mask"]
    assert mask[1, 0] == 0
    assert mask[:, -1].all()
    assert not batches["padded-tail"]["attention_mask"][:, -1].any()
    assert len(set(batches["repeated-token"]["input_ids"][0, 1:-1])) == 1
    assert len(set(batches["realistic"]["attention_mask"].sum(1))) > 3
    for inputs in (inputs for name, inputs in batches.items() if name != "vocabulary"):
        texts = [row[kept == 1] for row, kept in zip(inputs["input_ids"], inputs["attention_mask"], strict=True)]
        assert all((text[0], text[-1]) == (1, 2) for text in texts if len(text) > 2)
        assert not any(np.isin(text[1:-1], [0, 1, 2]).any() for text in texts)
        assert all(
            (row[kept == 0] == 0).all()
            for row, kept in zip(inputs["input_ids"], inputs["attention_mask"], strict=True)
        )
    again = {batch.name: batch.inputs for batch in make_batches(replace(SPACE, left_padding=False), seed=4)}
    assert "padded-left" not in again
    np.testing.assert_array_equal(again["realistic"]["input_ids"], batches["realistic"]["input_ids"])
    other = {batch.name: batch.inputs for batch in make_batches(SPACE, seed=5)}
    assert not np.array_equal(other["one-text"]["input_ids"], batches["one-text"]["input_ids"])


def test_batch_of_a_shape():
    assert batch_of(SPACE, 3, 16).inputs["attention_mask"].sum() == 48
    with pytest.raises(RunnerError, match="shape 1x41: the model takes at most 40 tokens"):
        batch_of(SPACE, 1, 41)


@pytest.mark.parametrize(
    ("found", "failed"),
    [
        ([[2.0, 0.5], [1.0, -1.0]], ()),
        ([[2.0, 0.50009], [1.0, -1.0]], ()),
        ([[2.0, 0.5003], [1.0, -1.0]], ("max_abs_error", "mean_abs_error", "relative_error")),
        ([[2.00009, 0.50009], [1.00009, -0.99991]], ("mean_abs_error",)),
        (
            [[-2.0, 0.5], [1.0, -1.0]],
            ("max_abs_error", "mean_abs_error", "relative_error", "cosine", "top1_agreement", "kl"),
        ),
        ([[2.0, float("nan")], [1.0, -1.0]], ("max_abs_error",)),
        ([[2.0, float("inf")], [1.0, -1.0]], ("max_abs_error",)),
    ],
)
def test_each_metric_has_its_verdict(found, failed):
    row = row_of([[2.0, 0.5], [1.0, -1.0]], found)
    assert row.failed == failed
    assert row.passed is (not failed)
    assert row.non_finite == int(not np.isfinite(found).all())
    json.dumps(row.to_json(), allow_nan=False)


def test_nan_in_the_reference_never_passes():
    assert not row_of([[float("nan"), 1.0]], [[float("nan"), 1.0]]).passed


def test_kl_is_that_of_the_softmax():
    row = row_of([[0.0, 0.0]], [[0.0, np.log(3.0)]])
    assert row.value("kl") == pytest.approx(0.5 * np.log(0.5 / 0.25) + 0.5 * np.log(0.5 / 0.75), rel=1e-6)


def test_near_ties_may_flip_and_clear_answers_may_not():
    assert row_of([[1.0, 1.00001]], [[1.00001, 1.0]]).value("top1_agreement") == 1.0
    assert row_of([[1.0, 1.01], [3.0, 0.0]], [[1.01, 1.0], [3.0, 0.0]]).value("top1_agreement") == 0.5


def test_padding_is_not_compared():
    mask = np.array([[1, 1, 0]])
    right, other = np.ones((1, 3, 2)), np.ones((1, 3, 2))
    other[0, 2] = 99
    assert row_of(right, other, mask=mask).passed
    assert not row_of(right, other, mask=np.ones((1, 3))).passed
    starts, wrong = np.array([[1.0, 2.0, 0.0]]), np.array([[1.0, 2.0, 9.0]])
    assert row_of(starts, wrong, output="start_logits", mask=mask).passed
    assert row_of(starts, wrong, output="start_logits", mask=np.ones((1, 3))).value("top1_agreement") == 0.0


def test_limits_can_be_set_and_nonsense_is_refused(demo_artifact):
    assert not validate(demo_artifact, against=DEMO, limits=Limits(kl=0.0)).passed
    report = validate(demo_artifact, against=DEMO, limits=Limits(atol=1e-3, rtol=1e-3))
    assert (report.tolerance.absolute, report.tolerance.relative) == (1e-3, 1e-3)
    for wrong, message in (
        ({"batches": Batches(batch="none")}, "there is no batch 'none'"),
        ({"limits": Limits(max_drop=1)}, "max_drop is about the text"),
        ({"text": TextSettings(text_column="text")}, "text is about the text"),
        ({"batches": Batches(limit=5)}, "limit is about the text"),
    ):
        with pytest.raises(ExportError, match=message):
            validate(demo_artifact, against=DEMO, **wrong)


def test_double_precision_reference_and_two_artifacts(demo_artifact, tmp_path):
    report = validate(demo_artifact, against=Subject(DEMO, precision="fp64"))
    assert report.reference == "eager PyTorch fp64"
    assert report.passed
    assert export_onnx(DEMO, tmp_path / "cpu", target="ort-cpu").written
    assert validate(tmp_path / "cpu", against=demo_artifact).passed
    assert validate(DEMO, against=demo_artifact).candidate == "eager PyTorch fp32"


def test_other_models_are_refused(demo_artifact, tmp_path):
    other = save_checkpoint(tmp_path, "bert")
    report = validate(demo_artifact, against=other)
    assert not report.passed
    assert not report.rows
    assert "logits has shape" in " ".join(report.mismatches)
    questions = save_checkpoint(tmp_path / "qa", "bert", Task.QUESTION_ANSWERING)
    with pytest.raises(CheckpointError, match="does not fit the backbone"):
        validate(demo_artifact, against=questions)


def test_batches_of_the_demo_are_made_of_its_tokens(demo_artifact):
    space = exported_space(open_artifact(demo_artifact))
    vocabulary = json.loads((DEMO / "tokenizer.json").read_text())
    special = {row["content"]: row["id"] for row in vocabulary["added_tokens"]}
    assert space.frame == (special["[CLS]"], special["[SEP]"])
    assert space.special_ids == set(special.values())


def test_labelled_text_gives_both_metrics_and_no_flips(demo_artifact):
    report = validate(demo_artifact, against=DEMO, data=DEMO / "train.tsv")
    assert report.passed
    assert report.accuracy.examples == 600
    assert report.accuracy.metrics[0].metric == "accuracy"
    assert report.accuracy.metrics[0].reference == report.accuracy.metrics[0].candidate > 0.9
    assert report.accuracy.flips == ()
    assert sum(row.shape[0] for row in report.rows if row.batch.startswith("data-")) == 600


def test_flips_are_named_with_their_place(demo_artifact, tmp_path):
    wrong = shutil.copytree(demo_artifact, tmp_path / "wrong")
    manifest = open_artifact(wrong).manifest
    import onnx_ir as ir

    model = ir.load(wrong / "model.onnx")
    bias = next(value for name, value in model.graph.initializers.items() if name.endswith("classifier.bias"))
    bias.const_value = ir.tensor(bias.const_value.numpy() + np.array([100.0, 0.0, 0.0], dtype="f4"), name=bias.name)
    ir.save(model, wrong / "model.onnx")
    write_manifest(wrong, manifest)
    report = validate(wrong, against=DEMO, data=DEMO / "train.tsv", batches=Batches(limit=60))
    assert not report.accuracy.passed
    flipped = report.accuracy.flips
    assert 30 <= len(flipped) <= 50
    assert len({flip.candidate for flip in flipped}) == 1
    assert all(
        flip.place.startswith(str(DEMO / "train.tsv") + ":") and flip.reference != flip.candidate for flip in flipped
    )
    assert report.divergence.part == "head"
    assert "classifier.bias" in report.divergence.cause


def test_labels_that_the_model_does_not_know(demo_artifact, tmp_path):
    (tmp_path / "data.tsv").write_text("text\tlabel\nIt works\tpraise\nIt burns\tcomplaint\n")
    with pytest.raises(DataError, match=r"labels that the model does not have: 'complaint' \(.*data.tsv:3\)"):
        validate(demo_artifact, against=DEMO, data=tmp_path / "data.tsv")


@pytest.mark.parametrize(
    ("task", "content"),
    [
        (
            Task.TOKEN_CLASSIFICATION,
            '{"tokens": ["good", "film"], "tags": ["0", "1"]}\n{"tokens": ["bad"], "tags": ["1"]}\n',
        ),
        (
            Task.QUESTION_ANSWERING,
            '{"question": "who", "context": "Anna in Oslo", "answers": {"text": ["Anna"], "answer_start": [0]}}\n'
            '{"question": "where", "context": "Tom in Paris", "answers": {"text": ["Paris"], "answer_start": [7]}}\n',
        ),
        (Task.FEATURE_EXTRACTION, '{"text": "a good film"}\n{"text": "bad"}\n'),
    ],
)
def test_data_of_other_tasks(task, content, tmp_path):
    from tiny import save_backbone

    checkpoint = save_checkpoint(tmp_path, "bert", task, changes={"vocab_size": 110})
    save_backbone(tmp_path / "words")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tmp_path / "words" / name, checkpoint)
    (tmp_path / "data.jsonl").write_text(content)
    assert export_onnx(checkpoint, tmp_path / "out").written
    report = validate(tmp_path / "out", against=checkpoint, data=tmp_path / "data.jsonl")
    assert report.passed
    assert any(row.batch == "data-0" for row in report.rows)
    if task is not Task.FEATURE_EXTRACTION:
        assert [pair.difference for pair in report.accuracy.metrics] == [0.0] * len(report.accuracy.metrics)


def test_accuracy_verdicts():
    def report(reference, candidate, **rest):
        return AccuracyReport("data", 10, (MetricPair("m", reference, candidate),), (), 0.005, **rest)

    assert report(0.90, 0.895).passed
    assert not report(0.90, 0.89).passed
    assert report(0.5, 0.9).passed
    assert not report(0.5, 0.9, lower_is_better=True).passed
    assert not report(0.5, float("nan")).passed


@pytest.mark.parametrize("side", ["checkpoint", "artifact"])
def test_a_batch_that_no_side_can_run_is_an_error(side, demo_artifact):
    runner = open_runner(DEMO if side == "checkpoint" else demo_artifact)
    ids = np.array([[2, 10**6, 3]])
    batch = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    with pytest.raises(RunnerError, match="(cannot run this batch: .*out of|tokens lie below)"):
        runner.run(batch)


def test_operators_left_to_the_cpu_are_found(demo_artifact):
    runner = OrtRunner(open_artifact(demo_artifact))
    parts = runner.session.get_provider_graph_assignment_info()
    assert misplaced(parts, "CPUExecutionProvider") == []
    elsewhere = misplaced(parts, "CUDAExecutionProvider")
    assert any("MatMul" in name for name in elsewhere)
    assert not any("Shape" in name or "Reshape" in name for name in elsewhere)


def test_a_limit_on_the_drop_needs_labels(demo_artifact, tmp_path):
    (tmp_path / "texts.jsonl").write_text('{"text": "The printer stopped."}\n')
    with pytest.raises(DataError, match="has no labels that this model knows; max_drop needs them"):
        validate(demo_artifact, against=DEMO, data=tmp_path / "texts.jsonl", limits=Limits(max_drop=1))
    assert validate(demo_artifact, against=DEMO, data=tmp_path / "texts.jsonl").accuracy is None

"""Texts of many lengths in few batches."""

import json

import numpy as np
import pytest
from transformers import AutoTokenizer

from adakron_export import ExportSettings, export_onnx, open_runner, predict, run_texts
from adakron_export.errors import RunnerError
from adakron_export.runtimes.batching import group_by_length
from adakron_export.tasks import Task
from conftest import DEMO
from tiny import first, save_checkpoint

SENTENCE = "the printer stopped working after the last update and nobody knows why it did"
WORDS = SENTENCE.split()
TEXTS = [" ".join(WORDS[: 1 + (7 * index) % len(WORDS)]) for index in range(37)]


def test_batches_hold_each_text_once_and_waste_little():
    lengths = [3, 60, 5, 4, 61, 3, 2]
    batches = group_by_length(lengths, batch_size=3, longest=62)
    assert sorted(row for batch in batches for row in batch.rows) == list(range(7))
    assert [batch.tokens for batch in batches] == [62, 4, 4]
    assert batches[0].rows[0] == 4
    assert group_by_length([70], batch_size=3, longest=62)[0].tokens == 70  # the runner refuses it, with a reason


def counted(runner):
    """The shapes that run."""
    shapes, run = [], runner.run

    def noted(batch):
        shapes.append(batch["input_ids"].shape)
        return run(batch)

    runner.run = noted
    return shapes


@pytest.mark.parametrize("model_type", first(2, ["roberta", "deberta-v2", "bert", "modernbert"]))
@pytest.mark.parametrize("task", [Task.TEXT_CLASSIFICATION, Task.TOKEN_CLASSIFICATION])
def test_outputs_are_those_of_each_text_alone(model_type, task, tmp_path):
    checkpoint = save_checkpoint(tmp_path, model_type, task, changes={"vocab_size": 700})
    export_onnx(checkpoint, tmp_path / "out", settings=ExportSettings(validate=False))
    runner = open_runner(tmp_path / "out")
    texts = [dict(AutoTokenizer.from_pretrained(DEMO)(text)) for text in TEXTS]
    texts = [{name: text[name] for name in runner.input_names if name != "attention_mask"} for text in texts]
    expected = [
        runner.run({**{name: np.array([ids]) for name, ids in text.items()},
                    "attention_mask": np.ones((1, len(text["input_ids"])), dtype=np.int64)})["logits"][0]
        for text in texts
    ]  # fmt: skip
    shapes = counted(runner)
    found = run_texts(runner, texts, batch_size=8)
    assert len(shapes) == 5
    assert {tokens for _, tokens in shapes} <= {4, 8, 12, 16, 20}
    for one, other in zip(found, expected, strict=True):
        assert one["logits"].shape == other.shape
        np.testing.assert_allclose(one["logits"], other, atol=1e-5)


def test_what_cannot_be_run_is_refused(demo_artifact, tmp_path):
    runner = open_runner(demo_artifact)
    assert run_texts(runner, []) == []
    with pytest.raises(RunnerError, match="text 1 has no tokens"):
        run_texts(runner, [{"input_ids": [1]}, {"input_ids": []}])
    with pytest.raises(RunnerError, match="is 65 tokens long, the model takes 64"):
        run_texts(runner, [{"input_ids": [1] * 65}])
    with pytest.raises(RunnerError, match="batch_size is 0"):
        run_texts(runner, [{"input_ids": [1]}], batch_size=0)
    export_onnx(save_checkpoint(tmp_path, "vit"), tmp_path / "vit", settings=ExportSettings(validate=False))
    with pytest.raises(RunnerError, match="the model takes pixel_values"):
        run_texts(open_runner(tmp_path / "vit"), [{"input_ids": [1]}])


def test_predict_answers_in_the_order_of_the_texts(demo_artifact):
    together = predict(demo_artifact, TEXTS)
    for text, answer in list(zip(TEXTS, together, strict=True))[:9]:
        alone = predict(demo_artifact, [text])[0]
        assert answer["label"] == alone["label"]
        assert answer["score"] == pytest.approx(alone["score"], abs=1e-5)
    assert json.dumps(together)

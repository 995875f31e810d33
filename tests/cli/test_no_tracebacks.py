"""Every public function and command on what people give by mistake: one of our errors comes out, or an answer."""

import contextlib
import json
import shutil

import numpy as np
import pytest

import adakron_export
from adakron_export import ExportSettings, Recipe
from adakron_export.errors import AdaKronError
from adakron_export.tasks import Task
from conftest import DEMO
from tiny import save_backbone, save_checkpoint

FILES = {
    "artifact": "adakron_export.json",
    "engine": "adakron_engine.json",
    "peft": "adapter_config.json",
    "backbone": "config.json",
    "report": "report.json",
}


@pytest.fixture(scope="module")
def places(tmp_path_factory, demo_artifact):
    """Paths that are not what they should be."""
    folder = tmp_path_factory.mktemp("places")
    (folder / "empty").mkdir()
    (folder / "text.txt").write_text("just text\n")
    (folder / "bytes.bin").write_bytes(bytes(range(256)) * 4)
    for name, file in FILES.items():
        for kind, content in (("empty", ""), ("list", "[]"), ("deep", "[" * 3000), ("number", "3"), ("object", "{}")):
            place = folder / f"{name}-{kind}"
            place.mkdir()
            (place / file).write_text(content)
    shutil.copytree(demo_artifact, folder / "no-model")
    (folder / "no-model/model.onnx").unlink()
    return [folder / "nowhere", *sorted(folder.iterdir()), demo_artifact, DEMO, DEMO / "backbone"]


def holds(function, *arguments, **options):
    """A call answers, or refuses with one of our errors."""
    with contextlib.suppress(AdaKronError):
        function(*arguments, **options)


COMMANDS = {
    "bench": ["bench", "PLACE", "--shapes", "1x4", "--budget", "0.1s", "--against", "PLACE"],
    "check": ["check", "PLACE"],
    "compare": ["compare", "PLACE", "PLACE"],
    "convert": ["convert", "PLACE", "--backbone", "PLACE", "-o", "OUT"],
    "inspect": ["inspect", "PLACE"],
    "onnx": ["onnx", "PLACE", "-o", "OUT", "--no-validate"],
    "onnx-backbone": ["onnx", DEMO, "--backbone", "PLACE", "-o", "OUT", "--no-validate"],
    "predict": ["predict", "PLACE", "--text", "a"],
    "predict-input": ["predict", "ARTIFACT", "--input", "PLACE"],
    "tensorrt": ["tensorrt", "PLACE", "-o", "OUT", "--flavor", "rtx", "--max-shape", "1x8"],
    "train": ["train", "--backbone", "PLACE", "--data", "PLACE", "-o", "OUT"],
    "train-config": ["train", "--config", "PLACE", "-o", "OUT"],
    "tune": ["tune", "PLACE", "--shapes", "1x4", "--budget", "0.1s"],
    "validate": ["validate", "PLACE", "--against", DEMO],
    "validate-against": ["validate", "ARTIFACT", "--against", "PLACE"],
    "validate-data": ["validate", "ARTIFACT", "--against", DEMO, "--data", "PLACE", "--limit", "2"],
}  # fmt: skip


@pytest.mark.parametrize("name", COMMANDS)
def test_commands_on_places_that_are_something_else(name, places, cli, demo_artifact, tmp_path):
    answers = 0
    for index, place in enumerate(places):
        words = {"PLACE": place, "OUT": tmp_path / f"out-{index}", "ARTIFACT": demo_artifact}
        arguments = [words.get(word, word) if isinstance(word, str) else word for word in COMMANDS[name]]
        if name in ("train", "tensorrt") and place in (demo_artifact, DEMO / "backbone"):
            continue  # these would begin
        if name == "tune" and place == demo_artifact:
            continue  # it would change what other tests use
        result = cli(*arguments, code=None)
        assert result.exit_code in (0, 1, 2), (place, result.output)
        assert "Traceback" not in result.output
        answers += result.exit_code == 0
        if result.exit_code == 2:
            assert "error: " in result.stderr.lower(), (place, result.stderr)
    assert answers <= 4


def test_functions_on_places_that_are_something_else(places, tmp_path):
    for place in places:
        holds(adakron_export.open_artifact, place)
        holds(adakron_export.open_runner, place)
        holds(adakron_export.inspect, place)
        holds(adakron_export.load_model, place)
        holds(adakron_export.predict, place, ["a"])
        holds(adakron_export.OnnxModel.from_pretrained, place)
        holds(adakron_export.load_model, DEMO, backbone=place)
        holds(adakron_export.convert, place, tmp_path / "out", backbone=place)


ROWS = [
    [{"text": "a", "label": None}, {"text": "b", "label": 1}],
    [{"text": None, "label": 0}, {"text": "b", "label": 1}],
    [{"text": "a", "label": {}}, {"text": "b", "label": {"x": 1}}],
    [{"text": ["a", 1], "label": 0}, {"text": "b", "label": 1}],
    [{"text": "a", "label": ["x", 1]}, {"text": "b", "label": [None]}],
    [{"text": "half \ud800", "label": 0}, {"text": "b", "label": 1}],
    [{"tokens": ["a"], "tags": []}, {"tokens": [], "tags": []}],
    [{"tokens": "a b", "tags": 3}, {"tokens": ["a"], "tags": ["O"]}],
    [{"tokens": [1, None], "tags": ["O", "B-X"]}],
    [{"question": "q", "context": "c", "answers": {"text": "c", "answer_start": [0, 1]}}],
    [{"question": "q", "context": "c", "answers": {"text": [["c"]], "answer_start": [0]}}],
    [{"question": "q", "context": None, "answers": "c"}],
    [{"question": "q " * 200, "context": "c d e", "answers": "c"}] * 4,
    [{"prompt": "a", "completion": None}, {"prompt": "b", "completion": 3}],
    [{"prompt": ["a"], "completion": "b"}, {"prompt": "b", "completion": "c"}],
    [{"label": 1}, {"label": 0}],
    [{}],
    [{"text": "a", "label": float("nan")}, {"text": "b", "label": float("inf")}],
]


@pytest.mark.parametrize("rows", ROWS, ids=range(len(ROWS)))
def test_data_that_cannot_be_learned(rows, tmp_path, cli):
    backbone = save_backbone(tmp_path / "backbone")
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = str(tmp_path / "t.jsonl")
    recipe = {"backbone": str(backbone), "data": data, "eval_data": data, "max_steps": 1, "r": 8}
    with pytest.raises(AdaKronError):
        adakron_export.train(Recipe(**recipe), tmp_path / "out")
    if not any("\ud800" in str(row) for row in rows):
        options = [word for key, value in recipe.items() for word in (f"--{key.replace('_', '-')}", value)]
        result = cli("train", "-o", tmp_path / "out", *options, code=2)
        assert "error: " in result.stderr


BATCHES = [
    {},
    {"input_ids": None},
    {"input_ids": []},
    {"input_ids": [[1, 2], [3]]},
    {"input_ids": "text", "attention_mask": "text", "token_type_ids": "text"},
    {"input_ids": 3, "attention_mask": 1, "token_type_ids": 0},
    {name: np.ones((1, 2, 3), dtype=np.int64) for name in ("input_ids", "attention_mask", "token_type_ids")},
    {name: np.full((1, 3), 10**9) for name in ("input_ids", "attention_mask", "token_type_ids")},
    {
        "input_ids": np.full((1, 3), 10**6),
        "attention_mask": np.ones((1, 3), int),
        "token_type_ids": np.zeros((1, 3), int),
    },
    {"input_ids": np.full((1, 3), 5), "attention_mask": np.ones((1, 3), int), "token_type_ids": np.full((1, 3), 9)},
    {name: np.array([[object()]]) for name in ("input_ids", "attention_mask", "token_type_ids")},
]


@pytest.mark.parametrize("batch", BATCHES, ids=range(len(BATCHES)))
def test_batches_that_no_runner_takes(batch, demo_artifact):
    for path in (demo_artifact, DEMO):
        runner = adakron_export.open_runner(path)
        with pytest.raises(AdaKronError):
            runner.run(batch)
        with pytest.raises(AdaKronError):
            runner.prepare(batch)()


@pytest.mark.parametrize(
    ("task", "texts"),
    [(Task.FILL_MASK, ["no mask"]), (Task.FILL_MASK, [["a", "b"]]), (Task.FEATURE_EXTRACTION, [None]),
     (Task.FEATURE_EXTRACTION, [{}]), (Task.TEXT_CLASSIFICATION, [b"bytes"]), (Task.TEXT_CLASSIFICATION, [("a",)]),
     (Task.TEXT_CLASSIFICATION, [("a", "b", "c")]), (Task.TEXT_CLASSIFICATION, [("a", None)])],
)  # fmt: skip
def test_texts_that_are_none(task, texts, tmp_path_factory):
    folder = tmp_path_factory.getbasetemp() / f"texts-{task.value}"
    if not folder.exists():
        checkpoint = save_checkpoint(folder, "bert", task, changes={"vocab_size": 720})
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (checkpoint / name).write_bytes((DEMO / name).read_bytes())
        adakron_export.export_onnx(checkpoint, folder / "out", settings=ExportSettings(validate=False))
    with pytest.raises(AdaKronError):
        adakron_export.predict(folder / "out", texts)

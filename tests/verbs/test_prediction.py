"""`predict` answers what eager PyTorch answers, in every task, alone and beside other texts."""

import inspect
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from transformers import AutoImageProcessor, AutoTokenizer, pipeline

from adakron_export import ExportSettings, Subject, export_onnx, load_model, open_artifact, predict
from adakron_export.artifacts.artifact import write_manifest
from adakron_export.errors import AdaKronError
from adakron_export.tasks import Task
from conftest import DEMO, stages
from tiny import CONFIGS, first, save_backbone, save_checkpoint

TEXTS = [
    "The printer stopped working.",
    "Thanks, the new camera is wonderful!",
    "Why?",
    "no ?!",
    "a b c d e f g h i j",
]
PAIR = ("Who stopped the printer?", "Nobody knows. The printer stopped because Anna unplugged it before lunch.")


def give_tokenizer(checkpoint):
    """The demo's, as one of no architecture: transformers would make another of it for some."""
    settings = json.loads((DEMO / "tokenizer_config.json").read_text())
    settings = {**settings, "tokenizer_class": "PreTrainedTokenizerFast"}
    (checkpoint / "tokenizer_config.json").write_text(json.dumps(settings))
    (checkpoint / "tokenizer.json").write_bytes((DEMO / "tokenizer.json").read_bytes())


def exported(folder, model_type, task, **changes):
    """An artifact with the demo's tokenizer, and the eager model."""
    changes = {"vocab_size": 720, "pad_token_id": 0, **changes}
    checkpoint = save_checkpoint(folder, model_type, task, changes=changes)
    give_tokenizer(checkpoint)
    assert export_onnx(Subject(checkpoint, task=task.value), folder / "out").written
    return folder / "out", load_model(checkpoint, task=task.value).get_base_model().eval()


def run(artifact, model, *text, **options):
    tokenizer = AutoTokenizer.from_pretrained(artifact)
    inputs = tokenizer(*text, return_tensors="pt", truncation=True, max_length=40, **options)
    names = inspect.signature(model.forward).parameters
    with torch.no_grad():
        return model(**{name: tensor for name, tensor in inputs.items() if name in names}), inputs


def close(found, expected):
    return found == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("model_type", first(2, ["roberta", "gpt2", "bert", "llama"]))
def test_classes(model_type, tmp_path):
    artifact, model = exported(tmp_path, model_type, Task.TEXT_CLASSIFICATION, num_labels=3)
    found = predict(artifact, TEXTS, top_k=3)
    for text, rows in zip(TEXTS, found, strict=True):
        scores = run(artifact, model, text)[0].logits[0].softmax(-1)
        assert [row["label"] for row in rows] == [f"LABEL_{index}" for index in scores.argsort(descending=True)]
        assert close([row["score"] for row in rows], scores.sort(descending=True)[0].tolist())
    assert predict(artifact, TEXTS[:1]) == [pytest.approx(found[0][0])]
    together, alone = predict(artifact, [PAIR, ("a", "b")]), predict(artifact, [("a", "b")])
    assert close(together[1]["score"], alone[0]["score"])
    assert close(alone[0]["score"], run(artifact, model, "a", "b")[0].logits[0].softmax(-1).max().item())


def test_numbers_are_not_squeezed(tmp_path):
    artifact, model = exported(tmp_path, "bert", Task.TEXT_CLASSIFICATION, num_labels=1)
    logit = run(artifact, model, TEXTS[0])[0].logits.item()
    assert predict(artifact, TEXTS[:1])[0] == {"label": "LABEL_0", "score": pytest.approx(logit, abs=1e-4)}


def test_all_labels_of_a_text_are_given(tmp_path):
    settings = {"num_labels": 3, "problem_type": "multi_label_classification"}
    artifact, model = exported(tmp_path, "bert", Task.TEXT_CLASSIFICATION, **settings)
    scores = run(artifact, model, TEXTS[0])[0].logits[0].sigmoid().sort(descending=True)[0]
    assert close([row["score"] for row in predict(artifact, TEXTS[:1])[0]], scores.tolist())


def test_tags_are_grouped_as_transformers_groups_words(tmp_path):
    labels = {"id2label": {0: "O", 1: "B-PER", 2: "I-PER", 3: "LOC"}}
    artifact, model = exported(tmp_path, "bert", Task.TOKEN_CLASSIFICATION, **labels)
    tag = pipeline("token-classification", model=model, tokenizer=AutoTokenizer.from_pretrained(artifact),
                   aggregation_strategy="first")  # fmt: skip
    found = predict(artifact, TEXTS)
    assert sum(map(len, found)) > 5
    for text, spans in zip(TEXTS, found, strict=True):
        expected = tag(text)
        assert [(span["entity_group"], span["start"], span["end"]) for span in spans] == [
            (span["entity_group"], span["start"], span["end"]) for span in expected
        ]
        assert close([span["score"] for span in spans], [float(span["score"]) for span in expected])
        assert all(text[span["start"] : span["end"]] == span["word"] for span in spans)
        json.dumps(spans)


def test_masks_are_filled(tmp_path):
    artifact, model = exported(tmp_path, "bert", Task.FILL_MASK)
    texts = ["The [MASK] stopped.", "The [MASK] is [MASK]."]
    fill = pipeline("fill-mask", model=model, tokenizer=AutoTokenizer.from_pretrained(artifact))
    one, two = predict(artifact, texts, top_k=3)
    for found, expected in ((one, fill(texts[0], top_k=3)), *zip(two, fill(texts[1], top_k=3), strict=True)):
        assert [row["token"] for row in found] == [row["token"] for row in expected]
        assert [row["token_str"] for row in found] == [row["token_str"] for row in expected]
        assert close([row["score"] for row in found], [row["score"] for row in expected])
    with pytest.raises(AdaKronError, match=r"text 2 has no \[MASK\] to fill"):
        predict(artifact, [texts[0], "nothing"])


@pytest.mark.parametrize("repeats", [1, 6])
def test_questions_are_answered_from_their_context(repeats, tmp_path):
    artifact, model = exported(tmp_path, "bert", Task.QUESTION_ANSWERING)
    question, context = PAIR[0], " ".join([PAIR[1]] * repeats)
    found = predict(artifact, [{"question": question, "context": context}])[0]
    assert context[found["start"] : found["end"]] == found["answer"] != ""
    tokenizer = AutoTokenizer.from_pretrained(artifact)
    best = (0.0, 0, 0)
    windows = tokenizer(question, context, truncation="only_second", max_length=40, stride=10,
                        return_overflowing_tokens=True, return_offsets_mapping=True, padding=True,
                        return_tensors="pt")  # fmt: skip
    assert (len(windows["input_ids"]) > 1) == (repeats > 1)
    for index in range(len(windows["input_ids"])):
        kept = torch.tensor([part == 1 for part in windows.sequence_ids(index)])
        with torch.no_grad():
            output = model(**{name: windows[name][index : index + 1] for name in
                              ("input_ids", "attention_mask", "token_type_ids") if name in windows})  # fmt: skip
        starts, ends = (logits[0].masked_fill(~kept, -torch.inf).softmax(-1) for logits in
                        (output.start_logits, output.end_logits))  # fmt: skip
        scores = torch.triu(starts[:, None] * ends[None])
        place = int(scores.argmax())
        start, end = divmod(place, len(ends))
        offsets = windows["offset_mapping"][index]
        best = max(best, (scores.max().item(), int(offsets[start][0]), int(offsets[end][1])))
    assert close(found["score"], best[0])
    assert (found["start"], found["end"]) == best[1:]


def test_embeddings_are_those_of_the_mean(tmp_path):
    artifact, model = exported(tmp_path, "bert", Task.FEATURE_EXTRACTION)
    found = predict(artifact, TEXTS)
    for text, vector in zip(TEXTS, found, strict=True):
        np.testing.assert_allclose(vector, run(artifact, model, text)[0].last_hidden_state[0].mean(0), atol=1e-4)


def test_a_sentence_is_cut_where_sentence_transformers_cuts_it(tmp_path):
    artifact, model = exported(tmp_path, "bert", Task.FEATURE_EXTRACTION)
    (artifact / "sentence_bert_config.json").write_text('{"max_seq_length": 5, "do_lower_case": false}')
    write_manifest(artifact, open_artifact(artifact, wait=False).manifest)
    found = predict(artifact, TEXTS[:1])[0]
    tokens = AutoTokenizer.from_pretrained(artifact)(TEXTS[0], return_tensors="pt", truncation=True, max_length=5)
    with torch.no_grad():
        np.testing.assert_allclose(found, model(**tokens).last_hidden_state[0].mean(0), atol=1e-4)


@pytest.mark.parametrize("model_type", ["gpt2", "qwen2"])
def test_text_is_written_as_generate_writes_it(model_type, tmp_path):
    artifact, model = exported(tmp_path, model_type, Task.TEXT_GENERATION, eos_token_id=3)
    found = predict(artifact, TEXTS, max_new_tokens=6)
    tokenizer = AutoTokenizer.from_pretrained(artifact)
    for text, answer in zip(TEXTS, found, strict=True):
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        mask = torch.ones_like(ids)
        expected = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=6, do_sample=False)
        whole, prompt = (tokenizer.decode(part, skip_special_tokens=True) for part in (expected[0], ids[0]))
        assert answer["generated_text"] == text + whole[len(prompt) :]


def test_every_stop_token_of_the_generation_settings_stops(tmp_path):
    artifact, _ = exported(tmp_path, "gpt2", Task.TEXT_GENERATION)
    free = predict(artifact, TEXTS[:1], max_new_tokens=8)[0]["generated_text"]
    assert len(free.split()) > len(TEXTS[0].split())
    settings = json.loads((artifact / "generation_config.json").read_text())
    (artifact / "generation_config.json").write_text(json.dumps({**settings, "eos_token_id": list(range(720))}))
    with pytest.raises(AdaKronError, match="changed since it was written"):
        predict(artifact, TEXTS[:1])


def test_generation_settings_come_along(tmp_path):
    checkpoint = save_checkpoint(tmp_path, "gpt2", changes={"vocab_size": 720})
    settings = {"eos_token_id": [5, 6, 7], "max_new_tokens": 4, "repetition_penalty": 1.3}
    (tmp_path / "backbone/generation_config.json").write_text(json.dumps(settings))
    give_tokenizer(checkpoint)
    export_onnx(checkpoint, tmp_path / "out", settings=ExportSettings(validate=False))
    from adakron_export import OnnxModel

    model, tokenizer = OnnxModel.from_pretrained(tmp_path / "out"), AutoTokenizer.from_pretrained(tmp_path / "out")
    assert model.generation_config.eos_token_id == [5, 6, 7]
    ids = tokenizer(TEXTS[0], return_tensors="pt")["input_ids"]
    whole, prompt = (tokenizer.decode(part, skip_special_tokens=True) for part in (model.generate(ids)[0], ids[0]))
    assert predict(tmp_path / "out", TEXTS[:1])[0]["generated_text"] == TEXTS[0] + whole[len(prompt) :]


@pytest.mark.parametrize(
    ("model_type", "task"),
    [
        # Encoders classify the first token, which the latter show; ModernBERT may take a mean, decoders the last one.
        *first(3, ((name, Task.TEXT_CLASSIFICATION) for name in ("modernbert", "gpt2", "llama", "bert", "qwen3"))),
        *first(
            2, ((name, Task.FEATURE_EXTRACTION) for name in sorted(CONFIGS, key="deberta-v2".__ne__) if name != "vit")
        ),
    ],
)
def test_no_answer_depends_on_a_texts_neighbours(model_type, task, tmp_path):
    checkpoint = save_checkpoint(tmp_path, model_type, task, changes={"vocab_size": 720, "pad_token_id": 7})
    give_tokenizer(checkpoint)
    export_onnx(Subject(checkpoint, task=task.value), tmp_path / "out", settings=ExportSettings(validate=False))
    with stages() as said:
        together = predict(tmp_path / "out", TEXTS)
    assert any("pads with 0, the model with 7" in line for line in said)
    for text, answer in zip(TEXTS, together, strict=True):
        alone = predict(tmp_path / "out", [text])[0]
        np.testing.assert_allclose(
            *([row["score"]] if isinstance(row, dict) else row for row in (answer, alone)), atol=1e-5
        )


@pytest.mark.parametrize(
    ("task", "texts", "options", "message"),
    [
        (Task.TEXT_CLASSIFICATION, [], {}, "there is no text"),
        (Task.TEXT_CLASSIFICATION, [3], {}, "text 1 is 3; a string or a pair of strings"),
        (Task.TEXT_CLASSIFICATION, ["fine", "half \ud800"], {}, "text 2 is no valid Unicode"),
        (Task.TEXT_CLASSIFICATION, ["a"], {"top_k": 0}, "top_k is 0"),
        (Task.TEXT_CLASSIFICATION, ["a"], {"max_new_tokens": 3}, "max_new_tokens is for text-generation"),
        (Task.TEXT_CLASSIFICATION, [{"text": "a"}], {}, "has text; a mapping has a question and a context"),
        (Task.TOKEN_CLASSIFICATION, [("a", "b")], {}, "is a pair, which token-classification has no use for"),
        (Task.TOKEN_CLASSIFICATION, ["a"], {"top_k": 2}, "top_k is for"),
        (Task.QUESTION_ANSWERING, ["Who?"], {}, "is a question without a context"),
        (Task.QUESTION_ANSWERING, [(" ".join("abcdefgh" * 8), "He.")], {}, "leaves no room for its second text"),
    ],
)
def test_what_cannot_be_meant_is_refused(task, texts, options, message, tmp_path_factory):
    folder = tmp_path_factory.getbasetemp() / f"refused-{task.value}"
    if not folder.exists():
        exported(folder, "bert", task)
    with pytest.raises(AdaKronError, match=message):
        predict(folder / "out", texts, **options)


def test_it_needs_no_torch(demo_artifact):
    code = (
        "import sys; sys.modules['torch'] = sys.modules['transformers'] = sys.modules['peft'] = None\n"
        "from adakron_export.cli.main import main; main()"
    )
    command = [sys.executable, "-c", code, "predict", str(demo_artifact), "--text", TEXTS[0], "--json"]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert found[0]["result"] == pytest.approx(predict(demo_artifact, TEXTS[:1])[0])
    command[3:] = ["inspect", str(demo_artifact)]
    assert "text-classification" in subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_a_tokenizer_that_needs_transformers_is_told_apart(tmp_path):
    from adakron_export.tokenization.encoding import is_plain

    save_backbone(tmp_path / "plain")
    assert is_plain(tmp_path / "plain")
    assert is_plain(DEMO, decodes=False)
    assert not is_plain(DEMO)  # its file has no decoder, which transformers' class adds
    (tmp_path / "plain/tokenizer.json").unlink()
    assert not is_plain(tmp_path / "plain")


@pytest.mark.parametrize(
    ("name", "content", "options", "expected"),
    [
        ("t.txt", "one\x0ctwo\n\nthree\u2028four\r\nfive\x85six".encode(), {},
         ["one\x0ctwo", "", "three\u2028four", "five\x85six"]),
        ("t.txt", b"\xef\xbb\xbfone\n", {}, ["one"]),
        ("t.csv", b"text,label\none,a\ntwo,a\n", {}, ["one", "two"]),
        ("t.CSV", b"id;note\n1;one\n2;two\n", {"text_column": "note"}, ["one", "two"]),
        ("t.jsonl", b'{"sentence": "one"}\n{"sentence": "two", "x": 1}\n', {}, ["one", "two"]),
        ("t.json", b'[{"question": "q", "context": "c"}]', {}, [("q", "c")]),
        ("t.tsv", b"one\ttwo\n", {"header": False, "text_column": "2"}, ["two"]),
    ],
)  # fmt: skip
def test_texts_of_files(name, content, options, expected, tmp_path):
    from adakron_export.data.settings import TextSettings
    from adakron_export.data.text_input import read_texts

    (tmp_path / name).write_bytes(content)
    assert read_texts(tmp_path / name, TextSettings(**options)) == expected


def test_command_line(cli, demo_artifact, tmp_path):
    (tmp_path / "in.csv").write_text("text,other\nThe printer stopped,1\nThanks,2\n")
    cli("predict", demo_artifact, "--input", tmp_path / "in.csv", "-o", tmp_path / "out.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().split("\n") if line]
    assert [row["text"] for row in rows] == ["The printer stopped", "Thanks"]
    assert all(isinstance(row["result"]["score"], float) for row in rows)
    assert cli("predict", demo_artifact, "--text", "Thanks", "--top-k", "3").stdout.count("\n") == 4
    assert "no such file" in cli("predict", demo_artifact, "--input", tmp_path / "nowhere.txt", code=2).output
    assert (
        "1 texts and 2 second"
        in cli("predict", demo_artifact, "--text", "a", "--pair", "b", "--pair", "c", code=2).output
    )
    assert "is for tables" in cli("predict", demo_artifact, "--input", "-", "--header", code=2).output


def test_images(cli, tmp_path):
    image = pytest.importorskip("PIL.Image")
    checkpoint = save_checkpoint(tmp_path, "vit", Task.IMAGE_CLASSIFICATION, changes={"num_labels": 3})
    size = load_model(checkpoint).get_base_model().config.image_size
    settings = {"image_processor_type": "ViTImageProcessor", "size": {"height": size, "width": size},
                "image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.5, 0.5]}  # fmt: skip
    (checkpoint / "preprocessor_config.json").write_text(json.dumps(settings))
    assert export_onnx(checkpoint, tmp_path / "out").written
    files = [tmp_path / f"{index}.png" for index in range(3)]
    for index, file in enumerate(files):
        pixels = np.random.default_rng(index).integers(0, 256, (20, 30 + index, 3), dtype=np.uint8)
        image.fromarray(pixels).save(file)
    processor = AutoImageProcessor.from_pretrained(checkpoint)
    model = load_model(checkpoint).get_base_model().eval()
    with torch.no_grad():
        expected = [model(**processor(image.open(file), return_tensors="pt")).logits[0].softmax(-1) for file in files]
    found = predict(tmp_path / "out", files, top_k=3, batch_size=2)
    for rows, scores in zip(found, expected, strict=True):
        by_name = {row["label"]: row["score"] for row in rows}
        assert close([by_name[model.config.id2label[index]] for index in range(3)], scores.tolist())
    shown = json.loads(cli("predict", tmp_path / "out", "--image", files[0], "--json").stdout)
    assert shown == [{"image": str(files[0]), "result": found[0][0]}]
    (tmp_path / "list.txt").write_text(f"{files[0]}\n{files[2]}\n")
    assert len(json.loads(cli("predict", tmp_path / "out", "--input", tmp_path / "list.txt", "--json").stdout)) == 2
    with pytest.raises(AdaKronError, match=r"list.txt: not a readable image"):
        predict(tmp_path / "out", [tmp_path / "list.txt"])
    with pytest.raises(AdaKronError, match="image 1 is None"):
        predict(tmp_path / "out", [None])


def test_an_image_for_a_model_of_texts(cli, demo_artifact, tmp_path):
    assert "a string or a pair of strings" in cli("predict", demo_artifact, "--image", "a.png", code=2).stderr

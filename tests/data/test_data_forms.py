"""The forms in which people have their data, and what is refused because it could mean two things."""

import gzip
import json

import numpy as np
import pytest

from adakron_export import Recipe
from adakron_export.data.data import load_data
from adakron_export.data.features import Tokenisation, read_answers
from adakron_export.data.labels import MULTI, Labels, encode_labels
from adakron_export.data.metrics import IGNORED, token_metrics
from adakron_export.errors import DataError
from adakron_export.tasks import Task
from conftest import stages

TEXTS = [f"sentence {number}" for number in range(12)]


def load(file, content, **settings):
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with stages() as notes:
        data = load_data(Recipe(backbone="-", data=str(file), eval_data=str(file), **settings))
    return data, "\n".join(notes)


def table(delimiter, quote="", header=("text", "label")):
    rows = [header, *((text, str(index % 2)) for index, text in enumerate(TEXTS))]
    return "".join(delimiter.join(f"{quote}{cell}{quote}" for cell in row) + "\n" for row in rows)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.csv", table(";")),
        ("t.CSV", table(",")),
        ("t.csv", table("\t")),
        ("t.tsv", table("\t", '"')),
        ("t.csv.gz", gzip.compress(table(",").encode(), mtime=0)),
        ("t.JSONL.gz", gzip.compress(b"".join(json.dumps({"text": text, "label": index % 2}).encode() + b"\n"
                                              for index, text in enumerate(TEXTS)), mtime=0)),
        ("t.json", json.dumps([{"text": text, "label": index % 2} for index, text in enumerate(TEXTS)], indent=1)),
        ("t.json", json.dumps({"data": [{"text": text, "label": index % 2} for index, text in enumerate(TEXTS)]})),
        ("t.csv", "\ufeff" + table(",")),
    ],
)  # fmt: skip
def test_tables_of_all_kinds_hold_the_same(name, content, tmp_path):
    data, _ = load(tmp_path / name, content)
    assert data.train.columns["text"] == TEXTS
    assert encode_labels(data.train, data.columns, data.labels) == [index % 2 for index in range(12)]


def test_a_mark_of_quotation_stays_where_cells_are_not_quoted(tmp_path):
    rows = "".join(f'"{text}" he said\t{index % 2}\n' for index, text in enumerate(TEXTS))
    data, _ = load(tmp_path / "t.tsv", "text\tlabel\n" + rows)
    assert data.train.columns["text"][0] == '"sentence 0" he said'


@pytest.mark.parametrize(
    ("content", "settings", "texts"),
    [
        ("good,comment\nbad,question\nfine,comment\nnice,question\n", {}, ["good", "bad", "fine", "nice"]),
        ("".join(f"text number {n} is,intent {n % 20}\n" for n in range(60)), {"header": True}, None),
        ("utterance,intent\n" + "".join(f"text number {n} is,intent {n % 20}\n" for n in range(60)), {}, 60),
        ("some text,other\nbad day,question\n", {"header": False, "label_column": "2"}, ["some text", "bad day"]),
    ],
)
def test_headers(content, settings, texts, tmp_path):
    data, _ = load(tmp_path / "t.csv", content, **settings)
    found = data.train.columns[data.columns.text]
    assert found == texts if isinstance(texts, list) else len(found) == (texts or 59)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "nice film,comment\nbad film,question\ngood film,question\nawful,answer\n",
            "may be a header or data; pass --header",
        ),
        ("a;b,c;d\n1;2,3;4\n", "parted by ',' or ';'.*--delimiter"),
    ],
)
def test_what_may_mean_two_things_is_asked(content, message, tmp_path):
    with pytest.raises(DataError, match=message):
        load(tmp_path / "t.csv", content)


@pytest.mark.parametrize("option", [{"header": False}, {"delimiter": ";"}])
def test_options_of_tables_are_refused_elsewhere(option, tmp_path):
    with pytest.raises(DataError, match=r"t.jsonl: --(header|delimiter) is for CSV and TSV"):
        load(tmp_path / "t.jsonl", '{"text": "a", "label": 0}\n{"text": "b", "label": 1}\n', **option)
    for hub in ("glue:sst2", "somebody/reviews"):
        with pytest.raises(DataError, match=f"{hub}: --(header|delimiter) is for CSV and TSV"):
            load_data(Recipe(backbone="any", data=hub, **option))


def test_prompts_and_completions_are_for_language_models(tmp_path):
    rows = "".join(json.dumps({"prompt": f"say {text}", "completion": text}) + "\n" for text in TEXTS)
    data, notes = load(tmp_path / "t.jsonl", rows)
    assert data.columns.task is Task.TEXT_GENERATION
    assert "text from 'prompt', labels from 'completion'" in notes
    assert load(tmp_path / "t.txt", "one line\n\nand another\x0cone\n")[0].train.columns["text"] == [
        "one line", "and another\x0cone"]  # fmt: skip


def test_conll(tmp_path):
    content = "-DOCSTART- -X- O O\n\nAnna NNP B-NP B-PER\nsmiles VBZ B-VP O\nand CC O O\n\n"
    content += "in IN B-PP O\nOslo NNP B-NP B-LOC\nso RB O O\n"
    for name, text in (("t.conll", content), ("t.txt", content)):
        data, _ = load(tmp_path / name, text)
        assert data.columns.task is Task.TOKEN_CLASSIFICATION
        assert data.train.columns["tokens"] == [["Anna", "smiles", "and"], ["in", "Oslo", "so"]]
        assert data.train.columns["tags"] == [["B-PER", "O", "O"], ["O", "B-LOC", "O"]]
        assert data.train.places[1].endswith(":7")


def test_squad(tmp_path):
    asked = [{"id": "1", "question": "Who?", "answers": [{"text": "Anna", "answer_start": 0}]},
             {"id": "2", "question": "Why?", "is_impossible": True, "answers": []}]  # fmt: skip
    content = {"version": "2", "data": [{"title": "t", "paragraphs": [{"context": "Anna smiles", "qas": asked}]}]}
    data, _ = load(tmp_path / "t.json", json.dumps(content))
    assert data.columns.task is Task.QUESTION_ANSWERING
    assert data.train.columns["answers"] == [{"text": ["Anna"], "answer_start": [0]}, {"text": [], "answer_start": []}]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("Oslo", (["Oslo"], [8])),
        (["Oslo", "Anna"], (["Oslo", "Anna"], [8, 0])),
        ({"text": "Oslo", "answer_start": 8}, (["Oslo"], [8])),
        ({"text": ["Oslo"], "answer_start": [8]}, (["Oslo"], [8])),
        ({"text": "Oslo"}, (["Oslo"], [8])),
        ([{"text": "Oslo", "answer_start": 8}], (["Oslo"], [8])),
        (None, ([], [])),
        ("", ([], [])),
        ({"text": [], "answer_start": []}, ([], [])),
    ],
)
def test_answers_of_all_forms(value, expected):
    assert read_answers(value, "Anna in Oslo", "here") == expected


@pytest.mark.parametrize("value", [{"text": ["a", "b"], "answer_start": [1]}, {"answer_start": 1}, 5, {"text": [3]}])
def test_answers_of_no_form_are_refused(value):
    with pytest.raises(DataError, match="here: "):
        read_answers(value, "a b", "here")


def test_a_column_for_each_label(tmp_path):
    rows = "".join(f"{text},{index % 2},{index % 3 // 2},0\n" for index, text in enumerate(TEXTS))
    data, notes = load(tmp_path / "t.csv", "text,angry,sad,odd\n" + rows)
    assert data.labels.problem_type == MULTI
    assert "labels from 'angry', 'sad', 'odd'" in notes
    encoded = encode_labels(data.train, data.columns, data.labels)
    by_name = dict(zip(data.labels.names, zip(*encoded, strict=True), strict=True))
    assert by_name["angry"] == tuple(float(index % 2) for index in range(12))
    assert by_name["sad"] == tuple(float(index % 3 // 2) for index in range(12))


def test_a_text_may_have_no_label_where_it_may_have_several(tmp_path):
    rows = "".join(
        json.dumps({"text": text, "labels": ["a", "b"][: index % 3]}) + "\n" for index, text in enumerate(TEXTS)
    )
    data, _ = load(tmp_path / "t.jsonl", rows)
    assert encode_labels(data.train, data.columns, data.labels)[:3] == [[0.0, 0.0], [1.0, 0.0], [1.0, 1.0]]
    rows = "".join(f"{text},{['', 'a', 'a|b'][index % 3]}\n" for index, text in enumerate(TEXTS))
    data, _ = load(tmp_path / "t.csv", "text,label\n" + rows, label_separator="|")
    assert encode_labels(data.train, data.columns, data.labels)[:3] == [[0.0, 0.0], [1.0, 0.0], [1.0, 1.0]]


def test_one_label_has_one_name(tmp_path):
    values = [True, 1, 1.0, "1", "1.0", False, 0, 0.0, "0", "0.0"]
    rows = "".join(json.dumps({"text": f"text {index}", "label": value}) + "\n" for index, value in enumerate(values))
    data, _ = load(tmp_path / "t.jsonl", rows)
    assert data.labels.names == ("0", "1")
    assert encode_labels(data.train, data.columns, data.labels) == [1] * 5 + [0] * 5


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"text": "a", "label": "['x', 'y']"}, {"text": "b", "label": "['x']"}], "holds a list written as a text"),
        ([{"tokens": "['a', 'b']", "tags": ["O", "O"]}], None),
        ([{"text": ["a"], "label": "x"}, {"text": "b", "label": "y"}], "1 rows have no text in 'text'"),
        ([{"text": "a", "label": ["x"]}, {"text": "b", "label": "y"}], "holds several labels"),
        ([{"text": "half \ud800", "label": "x"}, {"text": "b", "label": "y"}], "half a character"),
        ([{"question": "q", "context": "c", "answers": 3}], None),
        (["text"], "holds a str; write a list of rows"),
    ],
)
def test_what_is_no_row_is_refused(rows, message, tmp_path):
    content = "".join(json.dumps(row) + "\n" for row in rows) if isinstance(rows[0], dict) else '"text"\n'
    with pytest.raises(DataError, match=message or "t.jsonl"):
        data, _ = load(tmp_path / "t.jsonl", content)
        Tokenisation(None, 8, data.columns, data.labels, Recipe(backbone="-", data="-"))._inputs(data.train)


def test_held_out_rows_leave_every_class_one_and_take_each_ones_share(tmp_path):
    labels = ["a"] * 60 + ["b"] * 30 + ["c"] * 9 + ["d"]
    file = tmp_path / "t.csv"
    file.write_text("text,label\n" + "".join(f"text {index},{label}\n" for index, label in enumerate(labels)))
    for seed in range(5):
        data = load_data(Recipe(backbone="-", data=str(file), eval_share=0.2, seed=seed))
        held = data.evaluation.columns["label"]
        assert [held.count(label) for label in "abcd"] == [12, 6, 2, 0]
        assert len(data.train) == 80


class _Characters:
    """A tokenizer of characters."""

    eos_token_id = None

    def __call__(self, text, **_):
        return {"input_ids": [ord(character) for character in text]}


def test_completions_are_learned_as_they_are_given():
    columns = type("C", (), {"task": Task.TEXT_GENERATION, "text": "prompt", "pair": None, "label": "completion"})()
    tokenisation = Tokenisation(_Characters(), 99, columns, Labels(None), Recipe(backbone="-", data="-"))
    found = tokenisation._continuations({"text": ["f:", "中"], "completion": ["\n\tdef", "文"], "row": [0, 1]})
    assert ["".join(map(chr, ids)) for ids in found["input_ids"]] == ["f:\n\tdef", "中文"]
    assert ["".join(map(chr, (i for i in ids if i != IGNORED))) for ids in found["labels"]] == ["\n\tdef", "文"]


def f1(names, expected, found):
    index = {name: number for number, name in enumerate(names)}
    references = np.array([[index[tag] for tag in expected]])
    logits = np.eye(len(names))[[[index[tag] for tag in found]]]
    return token_metrics(logits, references, Labels(None, tuple(names)))


@pytest.mark.parametrize(
    ("names", "expected", "found", "value"),
    [
        (["O", "B-X", "I-X", "L-X", "U-X"], "B-X I-X L-X O", "B-X L-X O O", 0.0),
        (["O", "B-X", "I-X", "L-X", "U-X"], "B-X L-X O U-X", "B-X L-X O O", 2 / 3),
        (["O", "B-X", "I-X", "E-X", "S-X"], "S-X O B-X E-X", "S-X O B-X E-X", 1.0),
        (["O", "PER"], "PER PER O", "PER O O", 0.0),
        (["O", "B-X", "I-X"], "B-X I-X O", "I-X I-X O", 0.0),
        (["O", "B-X", "I-X"], "I-X I-X O", "I-X I-X O", 1.0),
    ],
)
def test_spans_are_counted_whole_and_by_their_scheme(names, expected, found, value):
    assert f1(names, expected.split(), found.split())["f1"] == pytest.approx(value)


def test_tags_that_are_numbers_have_no_spans_and_strange_ones_no_scheme():
    assert f1(["0", "1"], ["0", "0", "1"], ["0", "0", "0"]) == {"accuracy": pytest.approx(2 / 3)}
    with pytest.raises(DataError, match="follow no scheme"):
        f1(["O", "X-A", "Y-A"], ["X-A"], ["X-A"])

"""Labelled text: how it is read and understood, and what is refused with its file and line."""

import json
import math
import subprocess
import sys

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from adakron_export import Recipe, train
from adakron_export.checkpoints import hub
from adakron_export.data.data import load_data
from adakron_export.data.glue import GLUE
from adakron_export.data.labels import encode_labels
from adakron_export.errors import BackboneError, DataError, TrainingError
from adakron_export.tasks import Task
from conftest import stages
from tiny import save_backbone

ROWS = [("a good film", "pos"), ("a bad film", "neg"), ('a "fine" film, very', "pos"), ("NA", "neg")] * 5


def write_rows(folder, form, rows=ROWS, name="train", header=("text", "label")):
    file = folder / f"{name}.{form}"
    if form == "parquet":
        table = {key: [row[index] for row in rows] for index, key in enumerate(header)}
        pyarrow.parquet.write_table(pyarrow.table(table), file)
    elif form == "jsonl":
        file.write_text("".join(json.dumps(dict(zip(header, row, strict=True))) + "\n" for row in rows))
    elif form == "csv":
        lines = [",".join('"' + str(cell).replace('"', '""') + '"' for cell in row) for row in [header, *rows]]
        file.write_text("\n".join(lines) + "\n")
    else:
        file.write_text("".join("\t".join(map(str, row)) + "\n" for row in [header, *rows]))
    return file


def load(source, **settings):
    with stages() as notes:
        data = load_data(Recipe(backbone="anything", data=str(source), **settings))
    return data, "\n".join(notes)


@pytest.mark.parametrize("form", ["tsv", "csv", "jsonl", "parquet"])
def test_every_form_is_read_alike(tmp_path, form):
    data, _ = load(write_rows(tmp_path, form), eval_data=str(write_rows(tmp_path, form, name="dev")))
    assert list(zip(data.train.columns["text"], data.train.columns["label"], strict=True)) == ROWS
    assert len(data.evaluation) == len(ROWS)
    assert data.labels.names == ("neg", "pos")
    assert encode_labels(data.train, data.columns, data.labels)[:4] == [1, 0, 1, 0]


def test_a_folder_has_training_and_evaluation_files(tmp_path):
    write_rows(tmp_path, "tsv", ROWS[:8], name="train-1")
    write_rows(tmp_path, "tsv", ROWS[8:], name="train-2")
    write_rows(tmp_path, "tsv", ROWS[:4], name="validation")
    write_rows(tmp_path, "tsv", ROWS[:2], name="test")
    data, _ = load(tmp_path)
    assert (len(data.train), len(data.evaluation)) == (20, 4)


def test_files_without_a_header(tmp_path):
    file = tmp_path / "train.tsv"
    file.write_text("".join(f"sentence number {n}\t{n % 2}\n" for n in range(20)))
    data, notes = load(file)
    assert data.columns.describe() == "text-classification: text from '1', labels from '2'"
    assert "has no header line" in notes
    assert data.labels.names == ("0", "1")
    assert f"{file}:1" in {*data.train.places, *data.evaluation.places}


def test_what_is_held_out_depends_on_the_seed_alone(tmp_path):
    file = write_rows(tmp_path, "csv")
    first, again, other = load(file)[0], load(file)[0], load(file, seed=1)[0]
    assert first.fingerprint() == again.fingerprint() != other.fingerprint()
    assert not {*first.train.places} & {*first.evaluation.places}


@pytest.mark.parametrize(
    ("header", "row", "expected"),
    [
        (("sentence1", "sentence2", "label"), ("a", "b", "x"), ("sentence1", "sentence2", "label")),
        (("id", "premise", "hypothesis", "label"), ("1", "a", "b", "x"), ("premise", "hypothesis", "label")),
        (("Review", "Rating"), ("a", "x"), ("Review", None, "Rating")),
        (("body of mail", "kind"), ("a", "x"), ("body of mail", None, "kind")),
    ],
)
def test_columns_are_guessed(tmp_path, header, row, expected):
    rows = [(*(f"{cell}{n}" for cell in row[:-1]), f"{row[-1]}{n % 2}") for n in range(12)]
    columns = load(write_rows(tmp_path, "csv", rows, header=header))[0].columns
    assert (columns.text, columns.pair, columns.label) == expected


def test_columns_that_were_named_are_taken(tmp_path):
    rows = [(f"a{n}", f"b{n}", f"{n % 2}", f"{n % 3}") for n in range(12)]
    file = write_rows(tmp_path, "csv", rows, header=("text", "other", "label", "class"))
    columns = load(file, text_column="other", label_column="class")[0].columns
    assert (columns.text, columns.pair, columns.label) == ("other", None, "class")


def test_problem_types(tmp_path):
    scores = write_rows(tmp_path, "csv", [(f"t{n}", n / 4) for n in range(12)], name="scores")
    assert load(scores)[0].metrics[0] == "pearson"
    stars = write_rows(tmp_path, "csv", [(f"t{n}", n % 12) for n in range(48)], name="stars")
    assert load(stars)[0].labels.names == tuple(map(str, range(12)))
    assert load(stars, problem_type="regression")[0].labels.names == ()
    several = write_rows(tmp_path, "csv", [(f"t{n}", ("red;blue", "red", "")[n % 2]) for n in range(12)], name="tags")
    data = load(several, label_separator=";", eval_data=str(several))[0]
    assert data.labels.names == ("blue", "red")
    assert encode_labels(data.train, data.columns, data.labels)[:2] == [[1.0, 1.0], [0.0, 1.0]]
    lists = write_rows(tmp_path, "jsonl", [(f"t{n}", [["a"], ["a", "b"]][n % 2]) for n in range(12)], name="lists")
    assert load(lists)[0].labels.problem_type == "multi_label_classification"


@pytest.mark.parametrize("name", sorted(GLUE))
def test_glue_by_name(monkeypatch, name):
    task = GLUE[name]
    label = datasets.Value("float32") if task.num_labels == 1 else datasets.ClassLabel(task.num_labels)
    features = {task.text: datasets.Value("string"), "label": label, "idx": datasets.Value("int32")}
    features |= {task.pair: datasets.Value("string")} if task.pair else {}
    rows = [{key: f"{key} {n}" for key in (task.text, task.pair) if key} | {"idx": n} for n in range(12)]
    for n, row in enumerate(rows):
        row["label"] = n / 3 if task.num_labels == 1 else n % task.num_labels
    table = datasets.Dataset.from_list(rows, features=datasets.Features(features))
    asked = []

    def load_dataset(*arguments):
        asked.append(arguments)
        return datasets.DatasetDict({"train": table, task.evaluation: table, "test": table})

    monkeypatch.setattr(hub, "check_dataset", lambda *_, **__: None)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    data, _ = load(f"glue:{name}")
    assert asked == [("nyu-mll/glue", name)]
    assert data.metrics == task.metrics
    assert (data.columns.text, data.columns.pair) == (task.text, task.pair)
    assert len(data.labels.names) == (0 if task.num_labels == 1 else task.num_labels)
    assert data.evaluation.places[0] == f"nyu-mll/glue[{task.evaluation}]:0"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "train.csv: is empty"),
        ("text,label\n", "train.csv: has no rows"),
        ("text,label\na,x\nb,x\n", r"from .*train.csv:2 on has the label 'x'; with one class"),
        ("text,label\na,x\nb,\nc,y\n", r"1 of 3 rows have no label in 'label': .*train.csv:3"),
        ("text,label\na,1.5\nb,nan\nc,2.5\n", r"1 of 3 rows have no label.*train.csv:3"),
        ("text,label\na,x\nb\n", r"2 columns, others have more or fewer: .*train.csv:3"),
        ("one,two,three\na b,c d,e f\ng h,i j,k l\n", "may be a header or data; pass --header or --no-header"),
        ('text,label\na,x\n"b,y\n', r"train.csv:3: unexpected end of data"),
        ("text,text\na,x\n", "two columns have the same name"),
    ],
)
def test_bad_files_are_named_with_their_line(tmp_path, content, message):
    file = tmp_path / "train.csv"
    file.write_text(content)
    with pytest.raises(DataError, match=message):
        load(file, eval_data=str(file))


def test_what_is_not_text_is_refused(tmp_path):
    file = tmp_path / "train.tsv"
    file.write_bytes("text\tlabel\ngood\t1\ncaf\xe9\t0\n".encode("latin1"))
    with pytest.raises(DataError, match=r"train.tsv:3: not UTF-8 \(byte 3 of the line\).*iconv"):
        load(file)
    (tmp_path / "train.jsonl").write_text('{"text": "a", "label": 1}\n{"text": "b"}\n{"text": "c", "label": 0}\n')
    with pytest.raises(DataError, match=r"1 of 3 rows have no label in 'label': .*train.jsonl:2"):
        load(tmp_path / "train.jsonl", eval_data=str(tmp_path / "train.jsonl"))
    (tmp_path / "train.parquet").write_bytes(b"nonsense")
    with pytest.raises(DataError, match="not a readable Parquet file"):
        load(tmp_path / "train.parquet")
    table = pyarrow.table({"text": ["a", None, "c"], "label": [0.5, 1.0, math.nan]})
    pyarrow.parquet.write_table(table, tmp_path / "gaps.parquet")
    with pytest.raises(DataError, match=r"1 rows have no text in 'text': .*gaps.parquet:row 2"):
        load(tmp_path / "gaps.parquet", eval_data=str(tmp_path / "gaps.parquet"))


def test_evaluation_data_that_does_not_fit(tmp_path):
    train_file = write_rows(tmp_path, "csv")
    other = write_rows(tmp_path, "csv", [("a", "unheard of")], name="dev")
    with pytest.raises(DataError, match=r"'unheard of' \(.*dev.csv:2\); it has neg, pos"):
        data, _ = load(train_file, eval_data=str(other))
        encode_labels(data.evaluation, data.columns, data.labels)
    named = write_rows(tmp_path, "csv", ROWS, name="named", header=("text", "verdict"))
    with pytest.raises(DataError, match="there is no column 'label', which the training data has"):
        load(train_file, eval_data=str(named))


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"data": "/nowhere/train.tsv"}, DataError, "/nowhere/train.tsv: no such file or folder"),
        ({"data": "nobody/nothing"}, DataError, "nobody/nothing: .*hub cannot be reached"),
        ({"data": "glue:nothing"}, DataError, "glue:nothing: no such task; choose one of glue:cola"),
        ({"backbone": "nobody/nothing"}, BackboneError, "hub cannot be reached"),
        ({"text_column": "nothing"}, DataError, r"no column 'nothing' \(--text-column\); there are 'text', 'label'"),
        ({"metric": "bleu"}, DataError, "metric is 'bleu'; for this data choose one of accuracy"),
        ({"layers": "0-2"}, TrainingError, "layers is '0-2'; the backbone has layers 0 to 1"),
        ({"revision": "main"}, BackboneError, "is a folder, which has no revision 'main'"),
        ({"max_length": 4000}, TrainingError, "max_length is 4000; the backbone has 40 positions"),
    ],
)
def test_nothing_is_written_before_everything_was_checked(tmp_path, settings, error, message):
    backbone = save_backbone(tmp_path / "backbone")
    recipe = {"backbone": str(backbone), "data": str(write_rows(tmp_path, "csv")), "r": 8, **settings}
    with pytest.raises(error, match=message):
        train(Recipe(**recipe), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"data": ""}, "no data is named; pass --data"),
        ({"backbone": ""}, "no backbone is named; pass --backbone"),
        ({"epochs": 0.0}, "epochs is 0"),
        ({"learning_rate": math.nan}, "learning_rate is nan"),
        ({"batch_size": 0}, "batch_size is 0; it must be a number of at least 1"),
        ({"dtype": "int8"}, "dtype is 'int8'; choose one of fp32, bf16, fp16"),
        ({"consistency": 1.0}, "needs num_experts of at least 2"),
        ({"eval_share": 1.0}, "eval_share is 1.0"),
        ({"layers": "5-2"}, "layers is '5-2'; write 2-5"),
        ({"layers": "top"}, "layers is 'top'"),
    ],
)
def test_impossible_settings(settings, message):
    with pytest.raises(TrainingError, match=message):
        Recipe(**{"backbone": "b", "data": "d", **settings})


def test_long_texts_are_counted_and_named(tmp_path):
    backbone = save_backbone(tmp_path / "backbone")
    rows = [("the film was good", "pos"), ("the film was bad " * 60_000, "neg")] * 6  # a megabyte each
    recipe = Recipe(backbone=str(backbone), data=str(write_rows(tmp_path, "csv", rows)), r=8, epochs=1.0)
    with stages() as notes:
        result = train(recipe, tmp_path / "out")
    assert result.steps == 1
    assert "texts are longer than 40 tokens: " + str(tmp_path / "train.csv:3") in "\n".join(notes)


def test_settings_of_files_and_of_the_command_line(cli, tmp_path):
    backbone, data = save_backbone(tmp_path / "backbone"), write_rows(tmp_path, "csv")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"backbone: {backbone}\ndata: {data}\nr: 16\nlearning-rate: 1e-2\nepochs: 2\n")
    result = cli("train", "--config", recipe, "--r", 8, "--max-steps", 1, "-o", tmp_path / "out", "--json")
    assert json.loads(result.stdout)["steps"] == 1
    record = json.loads((tmp_path / "out/training.json").read_text())["recipe"]
    assert (record["r"], record["learning_rate"], record["epochs"]) == (8, 0.01, 2.0)
    recipe.write_text("learning_rat: 1\n")
    assert "no such setting: learning_rat" in cli("train", "--config", recipe, "-o", tmp_path / "x", code=2).stderr
    recipe.write_text("epochs: many\n")
    assert "epochs is 'many'; it must be a number" in cli("train", "--config", recipe, "-o", "x", code=2).stderr
    recipe.write_text("{")
    assert "not a readable recipe" in cli("train", "--config", recipe, "-o", "x", code=2).stderr
    assert "bert-base-glue" in cli("train", "--config", "nothing", "-o", "x", code=2).stderr


def test_without_the_extra_the_message_names_it(tmp_path):
    code = f"""
import sys
sys.modules["datasets"] = None
from adakron_export import Recipe, train
train(Recipe(backbone="b", data="d"), {str(tmp_path / "out")!r})
"""
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert "pip install 'adakron-export[train]'" in done.stderr


def test_task_names_are_those_of_the_recipe():
    assert Recipe(backbone="b", data="d", task="question-answering").task == Task.QUESTION_ANSWERING.value

"""Files of many rows: what is written, what is kept, and how a run goes on."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pyarrow
import pyarrow.parquet
import pytest

from adakron_export import BulkSettings, TextSettings, predict, predict_files
from adakron_export.errors import DataError, RunnerError
from adakron_export.serving import bulk

TEXTS = [
    "The printer stopped working",
    "Thanks!",
    "How do I share the calendar?",
    "Why?",
    'A "quoted", text\nof lines',
]


@pytest.fixture
def without_ray(monkeypatch):
    """The same workers in this process."""

    def run(artifact, output, parts, workers, settings):
        worker = bulk._Worker(artifact, output, settings)
        return [error for part in parts if (error := worker(bulk.asdict(part))["error"])]

    monkeypatch.setattr(bulk, "ray_here", lambda *_: contextlib.nullcontext())
    monkeypatch.setattr(bulk, "_run", run)


def rows_of(output):
    return [row for file in sorted(output.glob("*.parquet")) for row in pyarrow.parquet.read_table(file).to_pylist()]


def csv_of(file, texts=TEXTS):
    cells = ['"' + text.replace('"', '""') + f'",{number}' for number, text in enumerate(texts)]
    file.write_text("\n".join(["text,number", *cells]) + "\n")
    return file


def close(found, wanted):
    assert [each["label"] for each in found] == [each["label"] for each in wanted]
    assert [each["score"] for each in found] == pytest.approx([each["score"] for each in wanted], abs=1e-5)


def made(folder, kind):
    """The texts with a number beside each."""
    if kind == "csv":
        return csv_of(folder / "in.csv")
    table = pyarrow.table({"text": TEXTS, "number": list(range(len(TEXTS)))})
    if kind == "parquet":
        pyarrow.parquet.write_table(table, folder / "in.parquet", row_group_size=2)
        return folder / "in.parquet"
    (folder / "in.jsonl").write_text("\n".join(map(json.dumps, table.to_pylist())))
    return folder / "in.jsonl"


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_columns_are_kept_and_answers_are_those_of_predict(kind, demo_artifact, tmp_path, without_ray):
    file, output = made(tmp_path, kind), tmp_path / "out"
    result = predict_files(demo_artifact, file, output, settings=BulkSettings(rows_per_file=2))
    assert (result.rows, result.files, result.failed) == (5, 3, ())
    rows = rows_of(output)
    assert [row["text"] for row in rows] == TEXTS
    assert [int(row["number"]) for row in rows] == list(range(5))
    assert not any(row["prediction_cut_off"] for row in rows)
    close([row["prediction"] for row in rows], predict(demo_artifact, TEXTS))


def test_a_run_goes_on_where_files_are_missing(demo_artifact, tmp_path, without_ray):
    output, settings = tmp_path / "out", BulkSettings(rows_per_file=1)
    csv_of(tmp_path / "a.csv")
    csv_of(tmp_path / "b.csv", TEXTS[:2])
    predict_files(demo_artifact, tmp_path, output, settings=settings)
    files = sorted(output.glob("*.parquet"))
    assert [file.name for file in files][4:6] == ["0-a-00004.parquet", "1-b-00000.parquet"]
    times = {file: file.stat().st_mtime_ns for file in files}
    files[2].unlink()
    (output / f".{files[2].name}.partial").write_bytes(b"half a file")
    result = predict_files(demo_artifact, tmp_path, output, settings=settings)
    assert (result.rows, result.files) == (7, 7)
    assert {file: file.stat().st_mtime_ns for file in files if file != files[2]} == {
        file: time for file, time in times.items() if file != files[2]
    }
    assert pyarrow.parquet.read_table(files[2])["text"].to_pylist() == [TEXTS[2]]


def test_another_run_is_not_mixed_in(demo_artifact, tmp_path, without_ray):
    file, output = csv_of(tmp_path / "in.csv"), tmp_path / "out"
    predict_files(demo_artifact, file, output)
    changed = BulkSettings(options=replace(BulkSettings().options, top_k=2))
    with pytest.raises(RunnerError, match="another settings"):
        predict_files(demo_artifact, file, output, settings=changed)
    csv_of(file, TEXTS[:3])
    with pytest.raises(RunnerError, match="another files"):
        predict_files(demo_artifact, file, output)
    csv_of(file, [text[::-1] for text in TEXTS])  # other texts in as many bytes
    with pytest.raises(RunnerError, match="another files"):
        predict_files(demo_artifact, file, output)
    (tmp_path / "other").mkdir()
    (tmp_path / "other/mine.txt").touch()
    with pytest.raises(RunnerError, match="not empty"):
        predict_files(demo_artifact, file, tmp_path / "other")


def test_what_is_wrong_with_a_part_keeps_no_other_from_being_written(demo_artifact, tmp_path, without_ray):
    lines = [{"text": text} for text in TEXTS]
    lines[3] = {"text": 7}
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, lines)))
    output = tmp_path / "out"
    result = predict_files(demo_artifact, tmp_path / "in.jsonl", output, settings=BulkSettings(rows_per_file=2))
    assert (result.rows, len(result.failed)) == (3, 1)
    assert f"{tmp_path / 'in.jsonl'}, row 4: 'text' is no text but 7" in result.failed[0]
    assert [file.name for file in sorted(output.glob("*.parquet"))] == ["in-00000.parquet", "in-00002.parquet"]


def test_each_row_has_its_adapter(bank, tmp_path, without_ray):
    names = ["topic", "reply", "topic", "reply", "reply"]
    table = pyarrow.table({"text": TEXTS, "which": names})
    pyarrow.parquet.write_table(table, tmp_path / "in.parquet")
    predict_files(bank, tmp_path / "in.parquet", tmp_path / "out", settings=BulkSettings(adapter_column="which"))
    close([row["prediction"] for row in rows_of(tmp_path / "out")], predict(bank, TEXTS, adapter=names))


def test_one_column_is_the_text_of_all_rows(demo_artifact, tmp_path, without_ray):
    lines = [{"text": "Thanks!", "body": "Why?"}, {"body": "Thanks!"}]
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, lines)))
    result = predict_files(
        demo_artifact, tmp_path / "in.jsonl", tmp_path / "out", settings=BulkSettings(rows_per_file=1)
    )
    assert "row 2: has no column 'text'" in result.failed[0]


def test_long_texts_are_said(demo_artifact, tmp_path, without_ray):
    csv_of(tmp_path / "in.csv", ["Why?", "update " * 500])
    predict_files(demo_artifact, tmp_path / "in.csv", tmp_path / "out")
    assert [row["prediction_cut_off"] for row in rows_of(tmp_path / "out")] == [False, True]


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("in.csv", "text,b\nx\n", "not readable"),
        ("in.csv", b"text\n\xff\n", "utf-8"),
        ("in.csv", "a,b\nx,y\n", "text-column"),
        ("in.csv", "text,prediction\nx,y\n", "rename it"),
        ("in.jsonl", "[1]\n", "JSON object"),
        ("in.jsonl", "{\n", "not readable"),
        ("in.parquet", "no parquet", "not readable"),
        ("in.txt", "text\n", "only files of"),
    ],
)
def test_files_that_are_refused(name, content, why, demo_artifact, tmp_path, without_ray):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    try:
        result = predict_files(demo_artifact, tmp_path / name, tmp_path / "out")
        message = result.failed[0]
    except DataError as error:
        message = str(error)
    assert why in message
    assert name in message
    assert not [*tmp_path.glob("out/*.parquet")]


def test_a_pattern_and_columns(demo_artifact, tmp_path, without_ray):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep/one.tsv").write_text("id;body\n1;Thanks!\n")
    (tmp_path / "deep/note.txt").touch()
    settings = BulkSettings(text=TextSettings(text_column="body", delimiter=";"))
    assert predict_files(demo_artifact, f"{tmp_path}/*/*.tsv", tmp_path / "out", settings=settings).rows == 1
    with pytest.raises(DataError, match="no file of"):
        predict_files(demo_artifact, f"{tmp_path}/*/*.csv", tmp_path / "none", settings=settings)
    with pytest.raises(RunnerError, match="first line"):
        BulkSettings(text=TextSettings(header=False))


def test_options_of_the_command(cli, demo_artifact, tmp_path):
    csv_of(tmp_path / "in.csv")
    for words, why in (
        (["--workers", 2, "--text", "x"], "--workers is for --ray"),
        (["--ray", "--text", "x"], "--input"),
        (["--ray", "--input", "-", "-o", tmp_path / "out"], "--input"),
        (["--ray", "--input", tmp_path / "in.csv"], "--output"),
        (["--input", tmp_path / "in.csv", "-o", tmp_path], "is a folder"),
    ):
        assert why in cli("predict", demo_artifact, *words, code=2).output


@pytest.mark.slow
def test_killed_and_gone_on_with_ray(demo_artifact, tmp_path):
    csv_of(tmp_path / "in.csv", [f"The printer stopped {number}" for number in range(3000)])
    output = tmp_path / "out"
    command = [
        sys.executable, "-m", "adakron_export.cli", "predict", demo_artifact, "--ray", "--workers", "2", "--input",
        tmp_path / "in.csv", "-o", output, "--rows-per-file", "50",
    ]  # fmt: skip
    with (tmp_path / "log").open("wb") as log:
        first = subprocess.Popen([*map(str, command)], stdout=log, stderr=log, start_new_session=True)
        while len([*output.glob("*.parquet")]) < 5 and first.poll() is None:
            time.sleep(0.05)
        os.killpg(first.pid, signal.SIGKILL)
        first.wait()
        there = {file: file.stat().st_mtime_ns for file in output.glob("*.parquet")}
        assert 5 <= len(there) < 60
        subprocess.run([*map(str, command)], stdout=log, stderr=log, check=True)
    said = (tmp_path / "log").read_text()
    assert "wrote 3000 rows in 60 files" in said
    assert "60 of 60 files" in said or "of 60 output files are there already" in said
    assert all(file.stat().st_mtime_ns == time for file, time in there.items())
    rows = rows_of(output)
    assert [row["number"] for row in rows] == [str(number) for number in range(3000)]
    close([row["prediction"] for row in rows[:20]], predict(demo_artifact, [row["text"] for row in rows[:20]]))

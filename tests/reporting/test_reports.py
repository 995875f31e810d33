"""Reports: what is written, that it is what the schema says, and that two can be set side by side."""

import json
import re
import shutil

import jsonschema
import pytest

from adakron_export.errors import ReportError
from adakron_export.reporting.page import render
from adakron_export.reporting.plots import Axis, layer_plot
from adakron_export.reporting.report import read_report, schema, write_report
from conftest import DEMO


@pytest.fixture(scope="module")
def reports(demo_artifact, tmp_path_factory, module_cli):
    """A report of each command."""
    folder = tmp_path_factory.mktemp("reports")
    data = folder / "some.tsv"
    data.write_text("".join((DEMO / "train.tsv").read_text().splitlines(keepends=True)[:12]))
    module_cli("validate", demo_artifact, "--against", DEMO, "--data", data, "--report", folder / "parity")
    reference = shutil.copytree(demo_artifact, folder / "reference")  # opens in a tenth of a checkpoint's time
    arguments = ("--against", reference, "--shapes", "1x4,2x8", "--budget", "0.4s", "--clients", 2, "--rate", 90000)
    module_cli("bench", demo_artifact, *arguments, "--save-baseline", folder / "base.json",
               "--report", folder / "latency")  # fmt: skip
    return folder


@pytest.fixture
def parity(reports):
    return read_report(reports / "parity")


@pytest.fixture
def latency(reports):
    return read_report(reports / "latency" / "report.json")


def test_the_schema_is_one():
    jsonschema.Draft202012Validator.check_schema(schema())


def test_a_report_of_parity_holds_what_was_compared(parity, reports):
    assert parity["passed"] is True
    assert parity["latency"] is None
    assert len(parity["parity"]["rows"]) >= 10
    assert parity["parity"]["accuracy"]["examples"] == 11
    layers = [row["layer"] for row in parity["parity"]["layers"]]
    assert layers[-1] == "classifier"
    assert "bert.encoder.layer.0.output.dense" in layers
    assert str(reports) in parity["repeat"]
    assert parity["repeat"].startswith("adakron-export validate ")


def test_a_page_needs_nothing_else(reports):
    for name in ("parity", "latency"):
        page = (reports / name / "index.html").read_text()
        assert "<script" not in page
        assert not re.findall(r"(?:src|href)=\"(?!data:)", page)
        assert "<h1>Passed</h1>" in page


def test_cells_are_labelled_on_phones_as_their_columns_are_headed(reports):
    labelled = 0
    for name in ("parity", "latency"):
        page = (reports / name / "index.html").read_text()
        for table in re.findall(r"<table>.*?</table>", page, re.DOTALL):
            heads = re.findall(r"<th[^>]*>([^<]*)</th>", table.partition("</thead>")[0])
            labels = set(re.findall(r'data-label="([^"]*)"', table))
            assert labels <= {*heads}
            labelled += bool(labels)
    assert labelled >= 4


def test_what_failed_stands_on_top_with_the_layer_and_the_command(parity):
    found = parity["parity"]
    parity["passed"] = found["rows"][0]["passed"] = False
    found["rows"][0]["metrics"]["max_abs_error"] = {"value": "inf", "limit": 1e-4, "passed": False}
    found["max_abs_error"] = "inf"
    found["repeat"] = "adakron-export validate X --batch one-token"
    bad = {"layer": "bert.encoder.layer.1.output.dense", "error": "inf", "scale": 2.0, "limit": 1e-5, "diverges": True}
    found["divergence"] = {"batch": "one-token", "layer": bad["layer"], "part": "adapter", "node": "MatMul_7 (MatMul)",
                           "cause": "its weight differs", "layers": [found["layers"][0], bad]}  # fmt: skip
    page = render(parity)
    assert "<h1>Failed</h1>" in page
    assert "<title>FAILED" in page
    assert page.index("✗ <b>Parity</b>") < page.index("✓ <b>Accuracy</b>") < page.index("<section")
    assert "First wrong layer: <b>bert.encoder.layer.1.output.dense</b> (adapter)" in page
    assert "MatMul_7 (MatMul)" in page
    assert "adakron-export validate X --batch one-token" in page
    assert page.count('class="dot off"') == 2  # the batch, and the layer
    assert "✗ inf" in page


def test_texts_cannot_write_the_page(parity):
    flip = {
        "place": "a.tsv:1",
        "text": "<script>alert(1)</script>",
        "label": "<b>",
        "reference": "x",
        "candidate": "y",
    }
    parity["parity"]["accuracy"]["flips"] = [flip] * 150
    page = render(parity)
    assert "<script>" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert page.count("a.tsv:1") == 100
    assert "50 more are in report.json" in page


def test_regressions_are_drawn_with_their_limit(latency):
    row = {"side": "artifact", "shape": "1x4", "limit": 1.05, "passed": False,
           "slowdown": {"estimate": 1.2, "low": 1.1, "high": 1.3}}  # fmt: skip
    latency["latency"]["regressions"] = [row]
    latency["passed"] = latency["latency"]["passed"] = False
    page = render(latency)
    assert "✗ <b>Latency</b>: +20.0 % since the baseline for artifact 1x4" in page
    assert 'class="limit"' in page


@pytest.mark.parametrize(
    ("values", "log", "ticks"),
    [
        ([1e-6, 1e-4], True, ["1e-06", "1e-05", "0.0001"]),
        ([0.9, 6.0], True, ["1", "2", "5"]),
        ([1.1, 1.3], True, ["1.1", "1.15", "1.2", "1.25", "1.3"]),
        ([1e-9, 1e6], True, ["1e-09", "1e-06", "0.001", "1", "1e+03", "1e+06"]),
        ([-2.0, 7.0], False, ["-2", "0", "2", "4", "6"]),
        ([0.0, 0.0], True, None),
        ([float("inf")], True, None),
    ],
)
def test_axes_have_few_round_ticks_and_everything_in_order(values, log, ticks):
    axis = Axis(values, log=log)
    found = axis.ticks()
    assert ticks is None or [text for _, text in found] == ticks
    assert 2 <= len(found) <= 8
    places = [axis.at(value) for value in sorted(values)]
    assert places == sorted(places)
    assert all(0 <= place <= 100 for place in places)


def test_a_layer_without_a_scale_is_drawn():
    row = {"layer": "a", "error": 0.0, "scale": 0.0, "limit": 0.0, "diverges": False}
    assert len(layer_plot([row]).points) == 1


def test_files_that_are_no_report(reports, tmp_path):
    good = json.loads((reports / "parity" / "report.json").read_text())
    for content, message in [
        ("{", "not a report"),
        ("[]", r"\$ \[\] is not of type 'object'"),
        (json.dumps({**good, "format_version": 2}), r"\$.format_version 1 was expected"),
        (json.dumps({**good, "parity": {**good["parity"], "rows": [3]}}), "parity"),
        ("[" * 100_000, "not a report"),
    ]:
        (tmp_path / "report.json").write_text(content)
        with pytest.raises(ReportError, match=message):
            read_report(tmp_path)
    with pytest.raises(ReportError, match=r"nowhere: No such file or directory; write one with --report"):
        read_report(tmp_path / "nowhere")


def test_a_report_leaves_other_files_alone_and_refuses_a_file_in_its_place(parity, tmp_path, cli, demo_artifact):
    folder = tmp_path / "deep" / "report"
    folder.mkdir(parents=True)
    (folder / "notes.txt").write_text("mine")
    assert write_report(folder, parity) == folder / "index.html"
    assert {file.name for file in folder.iterdir()} == {"notes.txt", "index.html", "report.json"}
    taken = folder / "notes.txt"
    for command in ("validate", "bench"):
        result = cli(command, demo_artifact, "--against", DEMO, "--report", taken, code=2)
        assert "notes.txt is a file" in result.stderr
    assert taken.read_text() == "mine"


def test_compare_sets_two_side_by_side(cli, reports, latency, tmp_path):
    shutil.copytree(reports / "latency", tmp_path / "later")
    later = latency
    later["machine"]["processor"] = "another"
    for row in later["latency"]["latencies"]:
        row["p50_ms"] *= 2
    write_report(tmp_path / "later", later)
    text = cli("compare", reports / "latency", tmp_path / "later").stdout
    assert max(map(len, text.splitlines())) <= 80
    assert re.search(r"artifact 1x4 p50 +[\d.]+ ms +[\d.]+ ms +\+100\.0 %", text)
    assert re.search(r"artifact 1x4 speed-up +[\d.]+x +[\d.]+x +\+0\.0 %", text)
    assert re.search("not the same processor: .* and another", text)
    content = json.loads(cli("compare", reports / "parity", tmp_path / "later", "--json").stdout)
    assert content["passed"] == [True, True]
    assert content["parity"][0]["second"] is None
    flooded = [row for row in content["latency"] if "90000" in row["what"]]
    assert flooded
    assert all(row["first"] is None and row["second"] == "inf" and row["ratio"] is None for row in flooded)
    assert "not a report" in cli("compare", reports / "base.json", tmp_path / "later", code=2).stderr

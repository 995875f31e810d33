"""Fields of records that are options: what a command and pytest make of them."""

from dataclasses import dataclass

import pytest

from adakron_export import Guard, Limits, TextSettings
from adakron_export.errors import RunnerError
from adakron_export.options.fields import check_record, option, options_of, words_of
from adakron_export.quantities import parse_points


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    number: int | None = option(None, "A number.", least=2, below=9)
    name: str = option("a", "A name.", choices=("a", "b"))
    points: tuple[float, ...] = option((), "Points.", flag="point", read=parse_points)
    quick: bool = option(False, "Be quick.")
    check: bool = option(True, "Check it.")


def test_a_field_says_what_its_option_is():
    number, name, points, quick, _ = options_of(Sample)
    assert (number.kind, number.repeated, number.default) == (int, False, None)
    assert (name.choices, name.default) == (("a", "b"), "a")
    assert (points.flag, points.repeated) == ("point", True)
    assert quick.kind is bool
    assert [each.name for each in options_of(Sample, "quick", "name")] == ["name", "quick"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"number": 1}, "number is 1; it must be a number of at least 2"),
        ({"number": 9}, "number is 9; it must be below 9"),
        ({"name": "c"}, "name is 'c'; choose one of a, b"),
        ({"points": (1.0, float("nan"))}, "point is nan"),
        ({"number": 2.5}, "number is 2.5; it must be a whole number"),
        ({"number": True}, "number is True; it must be a whole number"),
        ({"points": ("1",)}, "point is '1'; it must be a number"),
        ({"quick": "no"}, "quick is 'no'; it must be True or False"),
    ],
)
def test_values_out_of_their_range_are_refused(values, message):
    with pytest.raises(RunnerError, match=message):
        check_record(Sample(**values), RunnerError)


def test_what_differs_from_the_defaults_is_told_as_words():
    record = Sample(number=3, points=(0.5,), quick=True)
    assert words_of(record) == ["--number", "3", "--point", "0.5", "--quick"]
    assert words_of(Sample(check=False), prefix="against-") == ["--no-against-check"]
    assert words_of(Sample()) == []


@pytest.mark.parametrize("text", ["0.5", "0.5%", " 0.5 % "])
def test_points_have_one_unit(text):
    assert parse_points(text) == 0.5
    assert Limits(max_drop=parse_points(text)).drop == 0.005
    assert Guard(baseline="b", max_regression=parse_points(text)).limit == 0.005


@pytest.mark.parametrize("text", ["", "half", "-1", "nan", "1e9", "5 points"])
def test_what_is_no_number_of_points(text):
    with pytest.raises(RunnerError, match="no number of points"):
        parse_points(text)


def test_defaults_stand_once():
    assert Limits().drop == 0.005
    assert Guard().limit == 0.05
    assert TextSettings() == TextSettings(doc_stride=128)


@pytest.mark.parametrize(
    ("command", "options", "message"),
    [
        ("validate", ("--max-drop", "0.5"), "max_drop is about the text to run both sides on"),
        ("validate", ("--limit", "5"), "limit is about the text"),
        ("validate", ("--text-column", "text"), "text is about the text"),
        ("validate", ("--max-drop", "100"), "max_drop is 100"),
        ("validate", ("--data", "d.tsv", "--max-drop", "1", "--batch", "one-token"), "batch names one"),
        ("bench", ("--max-regression", "5%"), "max_regression is about a baseline, and none is named"),
        ("bench", ("--strict",), "strict is about a baseline"),
        ("onnx", ("--max-drop", "0.5", "--dtype", "int8"), "max_drop needs labelled text"),
        ("onnx", ("--delimiter", ";"), "text is about how data is read"),
    ],
)
def test_a_guard_is_never_off_without_a_word(cli, tmp_path, demo_artifact, command, options, message):
    from conftest import DEMO

    arguments = {
        "validate": (demo_artifact, "--against", DEMO),
        "bench": (demo_artifact, "--against", DEMO, "--budget", "0.1s"),
        "onnx": (DEMO, "-o", tmp_path / "out"),
    }[command]
    assert message in cli(command, *arguments, *options, code=2).stderr

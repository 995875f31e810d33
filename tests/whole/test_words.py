"""Help and docstrings: every row is a sentence or a noun phrase that stands without its name."""

import ast
import re
from importlib.metadata import entry_points

import click
import pytest

from conftest import ROOT

OPENERS = re.compile(r"(Of|As|Told|Whose|By|In|To|Such|From|With|It|The same|That|Which)\b")
SECTIONS = re.compile(r"^(Args|Attributes|Raises|Returns):$")
FILES = sorted([*(ROOT / "adakron_export").rglob("*.py"), *(ROOT / "cli").glob("*.py")])


def rows_of(docstring):
    """The rows of a docstring's sections, continuation lines left out."""
    section = False
    for line in docstring.splitlines():
        if SECTIONS.match(line):
            section = True
        elif line and not line.startswith(" "):
            section = False
        elif section and (found := re.match(r"    [\w.]+: (.*)", line)):
            yield found[1]


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_rows_of_docstrings_stand_without_their_names(file):
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            wrong = [row for row in rows_of(ast.get_docstring(node) or "") if OPENERS.match(row)]
            assert not wrong, (node.name, wrong)


def commands():
    group = next(iter(entry_points(group="console_scripts", name="adakron-export"))).load()
    return [pytest.param(command, id=name) for name, command in group.commands.items()]


@pytest.mark.parametrize("command", commands())
def test_rows_of_help_stand_without_their_names(command):
    for option in command.params:
        if isinstance(option, click.Option):
            text = (option.help or "").partition("  [")[0]
            assert re.fullmatch(r"[A-Z].*\.", text), (option.name, text)
            assert not OPENERS.match(text), (option.name, text)


def test_the_lint_sees_a_row_that_needs_its_name():
    rows = list(rows_of("Do it.\n\nArgs:\n    seed: Of the batches.\n    name: A name.\n"))
    assert [bool(OPENERS.match(row)) for row in rows] == [True, False]

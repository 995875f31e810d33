"""The package itself: its names, its files, its documents."""

import re
import shlex
import shutil
import subprocess
import sys
import tomllib

import pytest

import adakron_export
from adakron_export import ExportSettings, errors, export_onnx
from adakron_export.tasks import Task
from conftest import DEMO, ROOT
from tiny import backbone_of, save_backbone

SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_public_names_are_exactly_these_and_load():
    assert len(adakron_export.__all__) == len(set(adakron_export.__all__))
    assert {*adakron_export._HOMES, "__version__"} == set(adakron_export.__all__)
    for name in adakron_export.__all__:
        assert getattr(adakron_export, name) is not None
    with pytest.raises(AttributeError, match="nothing"):
        _ = adakron_export.nothing


def test_every_package_on_disk_is_in_the_wheel():
    listed = set(SETTINGS["tool"]["setuptools"]["packages"])
    found = {
        ".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "adakron_export").rglob("__init__.py")
    } | {"adakron_export.cli", "adakron_export.models"}
    assert listed == found


def test_demo_and_recipes_are_in_the_wheel():
    patterns = SETTINGS["tool"]["setuptools"]["package-data"]["adakron_export.models"]
    models = ROOT / "models"
    shipped = {path for pattern in patterns for path in models.glob(pattern) if path.is_file()}
    there = {path for path in models.glob("*/**/*") if path.is_file() and "__pycache__" not in path.parts}
    assert shipped == there


def test_every_error_is_ours_and_documented():
    classes = [value for value in vars(errors).values() if getattr(value, "__module__", "") == errors.__name__]
    classes = [value for value in classes if isinstance(value, type)]
    assert len(classes) == 16
    assert all(issubclass(cls, errors.AdaKronError) for cls in classes)
    assert all(cls.__name__ in (errors.__doc__ or "") for cls in classes)


def test_changelog_knows_the_version():
    assert f"## [{adakron_export.__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def test_constraints_pin_every_dependency():
    pinned = {
        line.partition("==")[0].lower().replace("_", "-") for line in (ROOT / "constraints.txt").read_text().split()
    }
    project = SETTINGS["project"]
    extras = {name: wanted for name, wanted in project["optional-dependencies"].items() if name != "tensorrt"}
    wanted = [*project["dependencies"], *(requirement for extra in extras.values() for requirement in extra)]
    names = {re.match(r"[\w-]+", requirement).group().lower() for requirement in wanted}
    assert names - {"adakron-export"} <= pinned


DOCUMENTS = sorted(path.relative_to(ROOT) for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_between_documents_lead_somewhere(document):
    for target, _, place in re.findall(r"\]\(([^)#:]+)(#([\w-]+))?\)", (ROOT / document).read_text()):
        path = (ROOT / document).parent.joinpath(target)
        assert path.exists(), target
        if place:
            titles = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
            assert place in [re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles], place


def test_every_page_is_in_the_index_of_the_site():
    listed = set(re.findall(r"- (?:Home: )?([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE))
    assert listed == {str(path.relative_to(ROOT / "docs")) for path in ROOT.glob("docs/**/*.md")}


def test_documented_commands_and_options_exist(cli):
    """Every option that a document shows with a command is one of that command."""
    text = "\n".join((ROOT / path).read_text() for path in DOCUMENTS)
    lines = re.findall(r"^(?:\$ )?adakron-export (\w+)(.*)$", text, re.MULTILINE)
    assert len(lines) >= 20
    for command, rest in lines:
        words = [command, *(rest.split()[:1] if command == "bank" else [])]  # the one command that has others
        known = cli(*words, "--help").stdout
        for option in re.findall(r"(?<=\s)(--?[a-z][\w-]*)", rest):
            assert option in known, f"{command} {option}"


def test_every_public_name_is_in_the_python_reference():
    text = (ROOT / "docs/reference/python.md").read_text()
    for name, home in adakron_export._HOMES.items():
        assert f"::: adakron_export.{home}.{name}\n" in text or name == "AdaKronError", name


def without_numbers(line):
    """A line of output as far as it is the same on every machine."""
    return " ".join(re.sub(r"\d[\d.,e+-]*x?", "#", line).split())


def test_the_readmes_commands_print_what_it_shows(cli, tmp_path, monkeypatch):
    (tmp_path / "models").symlink_to(ROOT / "models")
    monkeypatch.chdir(tmp_path)
    readme = (ROOT / "README.md").read_text()
    blocks = re.findall(r"```console\n\$ adakron-export ([^\n]*)\n(.*?)```", readme, re.DOTALL)
    assert len(blocks) == 3
    for command, shown in blocks:
        printed = [without_numbers(line) for line in cli(*shlex.split(command)).stdout.splitlines()]
        for line in shown.splitlines():
            if line != "..." and " cores, " not in line:  # the machine's name
                assert without_numbers(line) in printed, line


def test_the_readmes_code_runs_as_it_stands(tmp_path, monkeypatch):
    for name in ("checkpoint", "other-checkpoint"):
        shutil.copytree(DEMO, tmp_path / name)
    save_backbone(tmp_path / "decoder", "gpt2", Task.TEXT_GENERATION)
    export_onnx(tmp_path / "decoder", tmp_path / "decoder-artifact", settings=ExportSettings(validate=False))
    monkeypatch.chdir(tmp_path)
    namespace = {"backbone": backbone_of("bert")}
    for block in re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL):
        exec(block, namespace)
    assert namespace["classify"]("How do I share the calendar?")[0]["label"] in ("praise", "problem", "question")


def test_the_commands_of_the_guides_run_one_after_the_other(cli, tmp_path, monkeypatch):
    """A new user's first hour: train, export, look, validate, time, tune, predict, build."""
    backbone = shutil.copytree(DEMO / "backbone", tmp_path / "bert-base-uncased")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(DEMO / name, backbone)
    rows = (DEMO / "train.tsv").read_text().splitlines()[:101]
    (tmp_path / "train.csv").write_text("\n".join('"' + row.replace("\t", '","') + '"' for row in rows))
    shutil.copy(tmp_path / "train.csv", tmp_path / "dev.csv")
    monkeypatch.chdir(tmp_path)
    pages = {
        "train": "adakron-export train --backbone bert-base-uncased --data train.csv --eval-data dev.csv -o OUT",
        "export": "adakron-export onnx CHECKPOINT -o ARTIFACT",
        "validate": "adakron-export validate ARTIFACT --against CHECKPOINT --data dev.tsv",
        "latency": "adakron-export tune ARTIFACT --shapes 1x16,1x128,8x128 --budget 60s",
        "tensorrt": "adakron-export check ARTIFACT --for tensorrt",
    }
    for page, command in pages.items():
        assert command in (ROOT / f"docs/how-to/{page}.md").read_text()
        words = shlex.split(
            command.replace("OUT", "checkpoint").replace("CHECKPOINT", "checkpoint").replace("ARTIFACT", "artifact")
            .replace("dev.tsv", "dev.csv").replace("1x16,1x128,8x128 --budget 60s", "1x16 --budget 1s")
            .replace("--for tensorrt", "--for rtx")
        )  # fmt: skip
        assert cli(*words[1:]).stdout
    assert cli("tensorrt", "artifact", "-o", "engine", "--flavor", "rtx").stdout


def test_artifacts_run_without_torch(demo_artifact):
    """An edge box has onnxruntime and numpy."""
    code = f"""
import sys
for name in ("torch", "transformers", "peft", "onnx", "onnx_ir", "optimum"):
    sys.modules[name] = None
import numpy as np
from adakron_export import open_runner
runner = open_runner({str(demo_artifact)!r})
ids = np.array([[2, 9, 3]])
print(runner.run({{"input_ids": ids, "attention_mask": ids * 0 + 1, "token_type_ids": ids * 0}})["logits"].shape)
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "(1, 3)\n"


def test_importing_the_package_imports_nothing_heavy():
    code = "import adakron_export, sys; assert not {'torch', 'peft', 'onnx', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)

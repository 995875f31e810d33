"""The package itself: its names, its files, its documents."""

import re
import shlex
import shutil
import subprocess
import sys
import tomllib

import pytest

import adakron_export
from adakron_export import errors
from conftest import DEMO, ROOT
from tiny import backbone_of

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


@pytest.mark.parametrize(
    "document", sorted(path.relative_to(ROOT) for path in [ROOT / "README.md", *ROOT.glob("docs/*.md")])
)
def test_links_between_documents_lead_somewhere(document):
    for target in re.findall(r"\]\(([^)#:]+)\)", (ROOT / document).read_text()):
        assert (ROOT / document).parent.joinpath(target).exists(), target


def test_documented_commands_and_options_exist(cli):
    """Every option that a document shows with a command is one of that command."""
    text = "\n".join(path.read_text() for path in [ROOT / "README.md", *ROOT.glob("docs/*.md")])
    lines = re.findall(r"^adakron-export (\w+)(.*)$", text, re.MULTILINE)
    assert len(lines) >= 4
    for command, rest in lines:
        known = cli(command, "--help").stdout
        for option in re.findall(r"(?<=\s)(--?[a-z][\w-]*)", rest):
            assert option in known, f"{command} {option}"


def test_the_readmes_commands_and_code_run_as_they_stand(cli, tmp_path, monkeypatch):
    backbone = shutil.copytree(DEMO / "backbone", tmp_path / "bert-base-uncased")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(DEMO / name, backbone)
    rows = (DEMO / "train.tsv").read_text().splitlines()[:101]
    (tmp_path / "reviews.csv").write_text("\n".join('"' + row.replace("\t", '","') + '"' for row in rows))
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "README.md").read_text()
    commands = [line for block in re.findall(r"```\n(.*?)```", text, re.DOTALL) for line in block.splitlines()
                if line.startswith("adakron-export ")]  # fmt: skip
    assert len(commands) == 9
    for command in commands:
        words = shlex.split(
            command.replace("CHECKPOINT", "checkpoint").replace("ARTIFACT", "artifact").replace("ENGINE", "engine")
        )
        assert cli(*words[1:]).stdout
    shutil.rmtree("artifact")  # the same from Python
    namespace = {"backbone": backbone_of("bert")}
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(block, namespace)
    assert namespace["classify"]("How do I share the calendar?")[0]["label"] in ("praise", "problem", "question")


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

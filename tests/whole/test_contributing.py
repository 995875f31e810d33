"""The recipes of CONTRIBUTING.md, followed with toys in a copy of the package."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from conftest import DEMO, ROOT

RUNTIME = '''"""ONNX Runtime under another name."""

from adakron_export.runtimes.ort import OrtRunner


def open_toy(artifact, *, device, threads, record_launches):
    """Open an artifact."""
    runner = OrtRunner(artifact, threads=threads)
    runner.name = f"a {device}"
    return runner
'''
RUNTIME_ROW = 'Runtime("toy", "a toy", "adakron_export.runtimes.toy:open_toy", "numpy", ("cpu",)),\n'
DTYPE = '''"""16-bit weights, one scale per column."""

import numpy as np
import onnx_ir as ir

from adakron_export.graph.passes.quantize import is_product, product_name
from adakron_export.graph.passes.rewriting import array_of, initializer, integer_of


class Int16WeightsPass(ir.passes.InPlacePass):
    """Rounds the weights of products."""

    def call(self, model):
        """Rewrite the main graph."""
        products = [node for node in model.graph if is_product(node)]
        for node in products:
            weight = node.inputs[1]
            transposed = bool(integer_of(node, "transB"))
            name, array = product_name(weight, transposed=transposed), array_of(weight)
            array = array.T if transposed else array
            scale = (np.abs(array).max(axis=0) / 32767 + 1e-9).astype(np.float32)
            levels = np.round(array / scale).astype(np.int16)
            held = initializer(model.graph, f"{name}_int16", np.ascontiguousarray(levels))
            factors = initializer(model.graph, f"{name}_int16_scale", scale)
            wide = ir.node("DequantizeLinear", [held, factors], {"axis": 1})
            model.graph.insert_before(node, wide)
            node.replace_input_with(1, wide.outputs[0])
            node.attributes.pop("transB", None)
        return ir.passes.PassResult(model, modified=bool(products))
'''
DTYPE_ROW = """Dtype(
            "int16", _EIGHT_BITS, stored=("INT16",), dynamic=("portable",), least_opset=21, falls_back_to="int8",
            passes=lambda _: [__import__("adakron_export.graph.passes.toy", fromlist=["x"]).Int16WeightsPass()],
        ),
"""
BACKBONE_ROW = 'Backbone("megatron-bert", _ENCODER, _BERT, token_types=True),\n'
PASS = '''"""A pass that marks a graph."""

import onnx_ir as ir


class MarkPass(ir.passes.InPlacePass):
    """Writes a mark."""

    def call(self, model):
        """Mark the model."""
        model.metadata_props["mark"] = "seen"
        return ir.passes.PassResult(model, modified=True)


def passes():
    """Those of a target."""
    return [MarkPass()]
'''
VERB = '''"""Greets."""


def greet(name):
    """A greeting."""
    return f"hello {name}"
'''
COMMAND = '''"""`adakron-export greet`."""

import click

from .console import echo


@click.command()
@click.argument("name")
def greet(name: str) -> None:
    """Greet somebody."""
    from adakron_export import greet as say

    echo(say(name))
'''
TRY = """
import json, sys
from pathlib import Path
import onnx_ir as ir, torch
from transformers import AutoModelForSequenceClassification, MegatronBertConfig
from adakron_export import AdaKronConfig, export_onnx, open_runner, validate, Subject, greet
from adakron_export.graph.targets import GraphSpec
from adakron_export.validation.ladder import rungs_of
from adakron_export.verbs.doctor import examine
from peft import get_peft_model
demo, folder = sys.argv[1], Path(sys.argv[2])
found = {"greeting": greet("you")}
result = export_onnx(demo, folder / "int16", dtype="int16")
found["dtype"] = [result.written, result.artifact.manifest.spec.dtype, result.parity.weights.passed]
held = ir.load(result.artifact.model).graph.initializers.values()
found["storage"] = sum(value.dtype == ir.DataType.INT16 for value in held)
found["ladder"] = [rung.dtype for rung in rungs_of(GraphSpec("portable", "int16").complete(), 0.5, has_text=True)]
report = validate(Subject(folder / "int16", device="toy"), against=demo)
found["runtime"] = [report.passed, report.candidate]
found["doctor"] = [row.works for row in examine().abilities if "toy" in row.what]
found["mark"] = ir.load(result.artifact.model).metadata_props["mark"]
torch.manual_seed(0)
config = MegatronBertConfig(vocab_size=100, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
                            intermediate_size=48, max_position_embeddings=40)
AutoModelForSequenceClassification.from_config(config).save_pretrained(folder / "backbone")
backbone = AutoModelForSequenceClassification.from_pretrained(folder / "backbone")
model = get_peft_model(backbone, AdaKronConfig(r=8, k=4, task_type="SEQ_CLS", init_weights=False, scale=50.0))
model.save_pretrained(folder / "adapter")
found["backbone"] = export_onnx(folder / "adapter", folder / "out").written
print(json.dumps(found))
"""


class Branch:
    """A copy of the package that toys are added to."""

    def __init__(self, folder):
        self.package = shutil.copytree(ROOT / "adakron_export", folder / "adakron_export")
        shutil.copytree(ROOT / "cli", self.package / "cli")
        shutil.copytree(ROOT / "models", self.package / "models")
        self.touched = set()

    def add(self, name, text):
        (self.package / name).write_text(text)
        self.touched.add(name)

    def insert(self, name, before, text):
        content = (self.package / name).read_text()
        assert content.count(before) == 1, (name, before)
        (self.package / name).write_text(content.replace(before, text + before))
        self.touched.add(name)

    def run(self, *arguments):
        environment = {**os.environ, "PYTHONPATH": str(self.package.parent)}
        command = [sys.executable, *map(str, arguments)]
        done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment,
                              cwd=self.package.parent)  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout


@pytest.fixture(scope="module")
def branch(tmp_path_factory):
    """All recipes followed, each with the files that it names; the numbers are those of the recipes' steps."""
    branch = Branch(tmp_path_factory.mktemp("branch"))
    steps = {
        "runtime": lambda: (
            branch.add("runtimes/toy.py", RUNTIME),
            branch.insert("runtimes/table.py", 'Runtime(\n            "cpu",', RUNTIME_ROW),
        ),
        "dtype": lambda: (
            branch.add("graph/passes/toy.py", DTYPE),
            branch.insert("graph/dtypes.py", 'Dtype(\n            "int4",', DTYPE_ROW),
        ),
        "backbone": lambda: branch.insert("backbones/table.py", 'Backbone("roberta", _ENCODER, _BERT),', BACKBONE_ROW),
        "graph pass": lambda: (
            branch.add("graph/passes/mark.py", PASS),
            branch.insert("graph/targets.py", "any_session=True),", (
                'passes=lambda: __import__("adakron_export.graph.passes.mark", fromlist=["x"]).passes(), '
            )),
        ),
        "command": lambda: (
            branch.add("verbs/greet.py", VERB),
            branch.insert("__init__.py", '    "inspect": ', '    "greet": "verbs.greet",\n'),
            branch.add("cli/greet.py", COMMAND),
            branch.insert("cli/main.py", "COMMANDS = (", "from .greet import greet\n\n"),
            branch.insert("cli/main.py", "    inspect,\n    onnx,", "    greet,\n"),
        ),
    }  # fmt: skip
    branch.counts = {}
    for name, follow in steps.items():
        branch.touched = set()
        follow()
        branch.counts[name] = len(branch.touched)
    return branch


def test_a_recipe_touches_as_many_files_as_it_says(branch):
    assert branch.counts == {"runtime": 2, "dtype": 2, "backbone": 1, "graph pass": 2, "command": 4}
    text = (ROOT / "CONTRIBUTING.md").read_text()
    for name in branch.counts:
        assert f"## Add a {name}" in text


def test_what_the_recipes_added_works(branch, tmp_path):
    found = json.loads(branch.run("-c", TRY, DEMO, tmp_path).splitlines()[-1])
    assert found["dtype"] == [True, "int16", True]
    assert found["storage"] > 10
    assert found["ladder"] == ["int16", "int8", "int8", "fp32"]
    assert found["runtime"] == [True, "a toy"]
    assert found["doctor"] == [True]
    assert found["mark"] == "seen"
    assert found["backbone"] is True
    assert found["greeting"] == "hello you"


def test_the_command_line_knows_them(branch):
    text = branch.run("-m", "adakron_export.cli", "validate", "--help")
    assert "cpu|openvino|" in text.replace("toy|", "")
    assert "toy" in text
    assert "int16" in branch.run("-m", "adakron_export.cli", "onnx", "--help")
    assert branch.run("-m", "adakron_export.cli", "greet", "you") == "hello you\n"

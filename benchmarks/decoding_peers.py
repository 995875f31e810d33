"""Tokens per second beside onnxruntime-genai and optimum-onnx, each in a virtual environment of its own.

Run as `python benchmarks/decoding_peers.py --genai VENV --optimum VENV -o FILE`, where each folder has the packages of
`requirements-genai.txt` or `requirements-optimum.txt`. The model is `llama` of `decoding.py`, with random weights.
Each side is a process of its own, and they take turns, round by round; a ratio is the median over the rounds.

- `genai, own build` is what onnxruntime-genai's builder makes of the backbone without adapters.
- `genai, artifact` runs our file, with adapters, in its loop.
- `artifact` runs it in ours, `artifact, generate` through transformers' `generate`, as optimum-onnx does.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from decoding import MODELS, made
from machine import describe

from adakron_export import ExportSettings, Subject, export_onnx

PROMPT, NEW, END = 32, 32, 31999
GENAI = """
import onnxruntime_genai as genai
model = genai.Model(folder)
def write(ids, count):
    params = genai.GeneratorParams(model)
    params.set_search_options(max_length=len(ids) + count, min_length=len(ids) + count)
    generator = genai.Generator(model, params)
    generator.append_tokens(np.array([ids], dtype=np.int32))
    for _ in range(count):
        generator.generate_next_token()
"""
OURS = """
from adakron_export import open_runner
from adakron_export.runtimes.decoding import decoder_of
from adakron_export.runtimes.generation import Writing, write_greedily
runner = open_runner(folder, threads=threads)
def write(ids, count):
    write_greedily(decoder_of(runner), [ids], Writing(count), names=runner.input_names, pad_id=0)
"""
GENERATE = """
import torch
torch.set_num_threads(threads)
def write(ids, count):
    ids = torch.tensor([ids])
    found = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=count,
                           min_new_tokens=count, do_sample=False, pad_token_id=0)
    assert found.shape[1] == ids.shape[1] + count
"""
OUR_MODEL = """
from pathlib import Path
from adakron_export import OnnxModel, open_runner
model = OnnxModel.of_runner(open_runner(folder, threads=threads), Path(folder))
"""
THEIR_MODEL = """
import onnxruntime
from optimum.onnxruntime import ORTModelForCausalLM
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = threads
model = ORTModelForCausalLM.from_pretrained(folder, session_options=options)
"""
SERVE = """
for line in sys.stdin:
    ids, count = json.loads(line)
    start = time.perf_counter()
    write(ids, count)
    print(time.perf_counter() - start, flush=True)
"""
HEAD = "import json, sys, time\nimport numpy as np\nfolder, threads = sys.argv[1], int(sys.argv[2])\n"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--genai", type=Path, required=True)
    parser.add_argument("--optimum", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = {**describe(), "threads": options.threads, **measured(Path(folder), options)}
    print(json.dumps(found, indent=2))
    if options.output:
        options.output.write_text(json.dumps(found, indent=2) + "\n")


def measured(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """The sides of each dtype, the first of which is what the others are held against."""
    bare, tuned = made(folder, MODELS["llama"]())
    for dtype in ("fp32", "int4"):
        export_onnx(
            Subject(tuned), folder / dtype, target="ort-cpu", dtype=dtype, settings=ExportSettings(validate=False)
        )
        in_genai(folder / dtype, folder / f"genai-{dtype}", options.threads)
    genai, optimum = (venv / "bin/python" for venv in (options.genai.absolute(), options.optimum.absolute()))
    build(bare, folder / "build", options.genai, options.threads)
    subprocess.run([optimum.with_name("optimum-cli"), "export", "onnx", "--model", bare, "--task",
                    "text-generation-with-past", folder / "optimum"], check=True, stdout=sys.stderr)  # fmt: skip
    ours = Path(sys.executable)
    groups = {
        "int4": {
            "genai, own build": (genai, GENAI, folder / "build"),
            "genai, artifact": (genai, GENAI, folder / "genai-int4"),
            "artifact": (ours, OURS, folder / "int4"),
        },
        "fp32, loops": {
            "genai, artifact": (genai, GENAI, folder / "genai-fp32"),
            "artifact": (ours, OURS, folder / "fp32"),
        },
        "fp32, generate": {
            "optimum-onnx without adapters": (optimum, THEIR_MODEL + GENERATE, folder / "optimum"),
            "artifact, generate": (ours, OUR_MODEL + GENERATE, folder / "fp32"),
        },
    }
    return {name: raced(sides, options) for name, sides in groups.items()}


def in_genai(artifact: Path, folder: Path, threads: int) -> None:
    """What onnxruntime-genai reads of an artifact, which here has no tokens that end a text."""
    folder.mkdir()
    for file in artifact.glob("model.onnx*"):
        shutil.copy(file, folder)
    config = json.loads((artifact / "config.json").read_text())
    settings = {"eos_token_id": END, "pad_token_id": 0}
    (folder / "config.json").write_text(json.dumps({**config, **settings}))
    from adakron_export.artifacts.artifact import open_artifact
    from adakron_export.artifacts.genai import FILE, write_genai_config

    write_genai_config(folder, open_artifact(artifact).manifest)
    with_threads(folder / FILE, threads)


def build(bare: Path, folder: Path, venv: Path, threads: int) -> None:
    """onnxruntime-genai's own 4-bit build; its builder runs where torch is."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({f"w{number}": number for number in range(100)}, unk_token="w0"))
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="w0", eos_token="w1").save_pretrained(bare)
    (packages,) = venv.glob("lib/python*/site-packages")
    options: dict[str, str | Path] = {
        "-m": bare,
        "-i": bare,
        "-o": folder,
        "-p": "int4",
        "-e": "cpu",
        "-c": folder.with_name("cache"),
    }
    command: list[str | Path] = [sys.executable, "-m", "onnxruntime_genai.models.builder"]
    command += [part for option in options.items() for part in option]
    subprocess.run(command, check=True, stdout=sys.stderr, env={**os.environ, "PYTHONPATH": str(packages)})
    with_threads(folder / "genai_config.json", threads)


def with_threads(file: Path, threads: int) -> None:
    """Threads of a session, in its configuration."""
    config = json.loads(file.read_text())
    config["model"]["eos_token_id"] = END
    config["model"]["decoder"]["session_options"]["intra_op_num_threads"] = threads
    file.write_text(json.dumps(config))


def raced(sides: dict[str, tuple[Path, str, Path]], options: argparse.Namespace) -> dict[str, Any]:
    """Tokens per second of each side, and how many times those of the first they are."""
    running = [
        subprocess.Popen([python, "-c", HEAD + code + SERVE, folder, str(options.threads)], stdin=subprocess.PIPE,
                         stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        for python, code, folder in sides.values()
    ]  # fmt: skip
    rounds = [[seconds(side, number) for side in running] for number in range(options.rounds + 1)][1:]
    for side in running:
        side.kill()
    return {
        name: {
            "tokens_per_second": NEW / statistics.median(row[index] for row in rounds),
            "over_the_first": statistics.median(row[0] / row[index] for row in rounds),
        }
        for index, name in enumerate(sides)
    }


def seconds(side: subprocess.Popen[str], number: int) -> float:
    """What writing takes, 50 ms after the other side's idle threads."""
    assert side.stdin is not None
    assert side.stdout is not None
    ids = [(997 * number + 13 * place) % 20000 for place in range(PROMPT)]
    time.sleep(0.05)
    side.stdin.write(json.dumps([ids, NEW]) + "\n")
    side.stdin.flush()
    return float(side.stdout.readline())


if __name__ == "__main__":
    main()

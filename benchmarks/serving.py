"""What `adakron-export serve` and `predict --ray` bring, and what they stand.

Run as `python benchmarks/serving.py -o benchmarks/results/serving.json`. The model is BERT-base
with random weights where nothing else is said. All runs on this machine: the callers too, in a process of their own.

- `batching`: 32 callers, texts of 32 tokens: requests a second, over an own server (uvicorn) that runs each request by
  itself with `OnnxModel`, and over `run_texts` in one process with batches of 32. The sides take turns.
- `delay`: arrivals by chance at half of the largest rate: p50 and p99, with one replica and with two.
- `bank`: 16 adapters drawn by a Zipf law, one bank beside 16 artifacts behind one server: requests a second, memory.
- `kills`: two replicas (the demo), one of them killed each minute: what was lost.
- `memory`: what a server (the demo) has resident after 1,000 requests and after 100,000.
- `workers`: MiniLM over a table of 4,000 rows: two workers of one thread over one.
- `nodes`: the demo on a Ray cluster of three nodes, one of which is killed: where the replicas are, and what was lost.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from backbone import minilm
from bank import bert_base, exported, exported_one, made
from callers import PORT, arriving, closed, counted, text
from machine import describe

from adakron_export import BulkSettings, ExportSettings, Subject, export_onnx, open_runner, predict_files, run_texts

ROOT = Path(__file__).parents[1]
CALLERS, ADAPTERS = 32, 16
BASELINE = """
import sys, torch, uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse
from starlette.routing import Route
from transformers import AutoTokenizer, pipeline
from adakron_export import OnnxModel
torch.set_num_threads(2)
model = OnnxModel.from_pretrained(sys.argv[1])
pipe = pipeline("text-classification", model=model, tokenizer=AutoTokenizer.from_pretrained(sys.argv[1]))
async def predict(request):
    body = await request.json()
    return JSONResponse(await run_in_threadpool(pipe, body["text"]))
app = Starlette(routes=[Route("/predict", predict, methods=["POST"])])
uvicorn.run(app, port=int(sys.argv[2]), log_level="error")
"""


def main() -> None:
    """Measure what was asked for and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)}; all by default")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=15)
    parser.add_argument("--minutes", type=float, default=10, help="of `kills`")
    parser.add_argument("--requests", type=int, default=100_000, help="of `memory`")
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    found: dict[str, Any] = {}
    for part in options.parts or PARTS:
        with tempfile.TemporaryDirectory() as folder:
            found[part] = {"machine": describe(), **PARTS[part](Path(folder), options)}
        print(part, json.dumps(found[part], indent=2), flush=True)
        if options.output:
            before = json.loads(options.output.read_text()) if options.output.exists() else {}
            options.output.write_text(json.dumps({**before, **found}, indent=2) + "\n")


def batching(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Requests a second of all sides, in turn."""
    artifact = bert(folder)
    sides: dict[str, Callable[[], float]] = {
        "serve": lambda: rate_of(["serve", str(artifact)], options.seconds),
        "uvicorn, one at a time": lambda: baseline(artifact, options.seconds),
        "in process": lambda: in_own_process(in_process, artifact, options.seconds),
    }
    rounds = [{name: run() for name, run in sides.items()} for _ in range(options.rounds)]
    return {
        "requests_per_second": {name: statistics.median(row[name] for row in rounds) for name in sides},
        "serve_over": {name: statistics.median(row["serve"] / row[name] for row in rounds) for name in sides},
    }


def delay(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds at half of the largest rate, of one replica with all cores and of two that share them, in turn."""
    artifact = str(bert(folder))
    with serving([artifact]):
        called(closed, CALLERS, 5)
        largest = called(closed, CALLERS, options.seconds)["rate"]
    seconds: dict[str, list[float]] = {"1": [], "2": []}
    for _ in range(options.rounds):
        for replicas, found in seconds.items():
            with serving([artifact, "--replicas", replicas]):
                called(closed, CALLERS, 5)
                found += called(arriving, largest / 2, 4 * options.seconds)["seconds"]
    p50, p99 = (
        {side: 1000 * float(np.quantile(found, share)) for side, found in seconds.items()} for share in (0.5, 0.99)
    )
    return {
        "largest_rate": largest,
        "p50_ms": p50,
        "p99_ms": p99,
        "p99_over_p50": {side: p99[side] / p50[side] for side in seconds},
        "requests": {side: len(found) for side, found in seconds.items()},
    }


def bank(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """One bank beside artifacts of one adapter each."""
    checkpoints = made(folder, with_tokenizer(bert_base(folder)), ADAPTERS)
    names = list(checkpoints)
    singles = [
        f"{name}={exported_one(folder / 'singles' / name, path, 'ort-cpu')}" for name, path in checkpoints.items()
    ]
    shares = [1 / (1 + place) for place in range(len(names))]
    sides = {"bank": ([str(exported(folder, checkpoints, "ort-cpu")[1])], "adapter"), "artifacts": (singles, "model")}
    found: dict[str, dict[str, float]] = {}
    for side, (served, key) in sides.items():
        with serving(served):
            called(closed, CALLERS, 2 * options.seconds, key, names, shares)  # each model is opened by now
            found[side] = {
                "rate": called(closed, CALLERS, options.seconds, key, names, shares)["rate"],
                "resident_bytes": resident("Door"),
            }
    one, other = found["bank"], found["artifacts"]
    return {
        **found,
        "bank_is_faster": one["rate"] / other["rate"],
        "bank_has_memory": one["resident_bytes"] / other["resident_bytes"],
    }


def kills(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """A replica is killed each minute while callers go on."""
    with serving([str(demo(folder)), "--replicas", "2", "--threads", "1"]):
        going = multiprocessing.get_context("spawn").Pool(1)
        calls = going.apply_async(closed, (8, 60 * options.minutes))
        killed = 0
        while not calls.ready():
            calls.wait(60 * options.minutes / max(1, round(options.minutes)))
            replicas = processes("Model")
            if replicas and not calls.ready():
                os.kill(random.choice(replicas), signal.SIGKILL)
                killed += 1
        result = calls.get()
        going.close()
    return {"killed": killed, "requests": len(result["seconds"]), "lost": result["failed"]}


def memory(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Resident bytes of the process that answers."""
    with serving([str(demo(folder))]):
        found = {}
        for count in (1000, options.requests):
            called(counted, CALLERS, count)
            found[count] = resident("Door")
    return {"resident_bytes": found, "grown": found[options.requests] / found[1000]}


def workers(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Rows a second of one and two workers, in turn."""
    artifact = small(folder)
    lines = [f'"{text(random.Random(number), 24)}",{number}' for number in range(4000)]
    (folder / "rows.csv").write_text("\n".join(["text,number", *lines]) + "\n")
    rounds = []
    for number in range(options.rounds):
        rates = []
        for count in (1, 2):
            settings = BulkSettings(workers=count, threads=1, rows_per_file=250)
            output = folder / f"out-{number}-{count}"
            start = time.perf_counter()
            result = predict_files(artifact, folder / "rows.csv", output, settings=settings)
            times = sorted(each.stat().st_mtime for each in output.glob("*.parquet"))
            steady = times[-1] - times[count - 1]  # from the first files on: Ray and the models were started before
            rates.append((result.rows - 250 * count) / steady)
            print(count, rates[-1], time.perf_counter() - start, flush=True)
        rounds.append(rates)
    return {
        "rows_per_second": [statistics.median(row[side] for row in rounds) for side in (0, 1)],
        "two_over_one": statistics.median(row[1] / row[0] for row in rounds),
    }


def nodes(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Three nodes that are processes of this machine; one with replicas dies while callers go on."""
    code = f"""
import json, os, sys, time
os.environ.update(RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S="60", RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S="60",
                  RAY_USAGE_STATS_ENABLED="0")
import yaml, ray
from ray import serve
from ray.cluster_utils import Cluster
from ray.serve.schema import ServeDeploySchema
cluster = Cluster(initialize_head=True, head_node_args={{"num_cpus": 1, "include_dashboard": False}})
others = [cluster.add_node(num_cpus=2) for _ in range(2)]
ray.init(address=cluster.address, log_to_driver=False, logging_level="error")
config = yaml.safe_load(open(sys.argv[1]))["applications"][0]
serve.start(http_options={{"port": {PORT}}}, proxy_location="HeadOnly")
from adakron_export.serving.application import build
serve.run(build(config["args"]), name="adakron", route_prefix="/")
from ray._private.state import actors
def replicas():
    return [row["Address"]["NodeID"] for row in actors().values()
            if "ServeReplica:adakron:Model" in str(row.get("Name", "")) + str(row.get("ActorClassName", ""))
            and row["State"] == "ALIVE"]
print(json.dumps(replicas()), flush=True)
sys.stdin.readline()
cluster.remove_node(others[0], allow_graceful=False)
sys.stdin.readline()
print(json.dumps(replicas()), flush=True)
serve.shutdown(); ray.shutdown(); cluster.shutdown()
"""
    config = folder / "serve.yaml"
    words = [str(demo(folder)), "--replicas", "4", "--threads", "1", "--write-config", str(config)]
    command = [sys.executable, "-m", "adakron_export.cli", "serve", *words]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    process = subprocess.Popen([sys.executable, "-c", code, config], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                               stderr=sys.stderr, text=True)  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    before = json.loads(next(line for line in process.stdout if line.startswith("[")))
    going = multiprocessing.get_context("spawn").Pool(1)
    calls = going.apply_async(closed, (8, 60))
    time.sleep(15)
    print("kill", file=process.stdin, flush=True)
    result = calls.get()
    print("end", file=process.stdin, flush=True)
    after = json.loads(next(line for line in process.stdout if line.startswith("[")))
    process.wait()
    return {
        "replicas_of_nodes": [sorted(map(each.count, set(each))) for each in (before, after)],
        "requests": len(result["seconds"]),
        "lost": result["failed"],
    }


@contextmanager
def serving(words: Sequence[str]) -> Iterator[subprocess.Popen[str]]:
    """A server, until the block is left."""
    command = [sys.executable, "-m", "adakron_export.cli", "serve", *words, "--port", str(PORT)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        if not any(line.startswith("serving") for line in process.stdout):
            sys.exit("the server does not start")
        yield process
    finally:
        process.terminate()
        process.wait()


def rate_of(words: Sequence[str], seconds: float) -> float:
    """Requests a second of `adakron-export` with these words."""
    with serving(words[1:]):
        called(closed, CALLERS, 5)
        return float(called(closed, CALLERS, seconds)["rate"])


def baseline(artifact: Path, seconds: float) -> float:
    """Requests a second of an own server that runs each request by itself."""
    process = subprocess.Popen([sys.executable, "-c", BASELINE, artifact, str(PORT)])
    try:
        for _ in range(120):
            time.sleep(0.5)
            if called(closed, 1, 1)["rate"]:
                break
        called(closed, CALLERS, 5)
        return float(called(closed, CALLERS, seconds)["rate"])
    finally:
        process.terminate()
        process.wait()


def in_process(artifact: Path, seconds: float) -> float:
    """Texts a second of `run_texts` with batches as large as the callers make them, tokenisation included."""
    from tokenizers import Tokenizer

    runner: Any = open_runner(artifact, threads=os.cpu_count())
    tokenizer, chance = Tokenizer.from_file(str(artifact / "tokenizer.json")), random.Random(0)
    tokenizer.no_padding()

    def run() -> None:
        texts = [tokenizer.encode(text(chance)) for _ in range(CALLERS)]
        run_texts(
            runner, [{"input_ids": each.ids, "token_type_ids": each.type_ids} for each in texts], batch_size=CALLERS
        )

    run()
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        run()
        count += CALLERS
    return count / (time.perf_counter() - start)


def in_own_process(run: Callable[..., Any], *arguments: Any) -> Any:
    """What a function returns in a new process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(run, arguments)


called = in_own_process


def bert(folder: Path) -> Path:
    """BERT-base with random weights and adapters."""
    (name, checkpoint), *_ = made(folder, with_tokenizer(bert_base(folder)), 1).items()
    return Path(exported_one(folder / name, checkpoint, "ort-cpu"))


def with_tokenizer(backbone: Path) -> Path:
    """Give a backbone of random weights MiniLM's tokenizer, which is BERT's."""
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        shutil.copy(minilm() / name, backbone / name)
    return backbone


def small(folder: Path) -> Path:
    """MiniLM with random adapters."""
    from batching import artifact

    return Path(artifact(folder))


def demo(folder: Path) -> Path:
    """The embedded demo."""
    export_onnx(Subject(ROOT / "models/demo"), folder / "demo", settings=ExportSettings(validate=False))
    return folder / "demo"


def processes(name: str) -> list[int]:
    """Processes of Ray's that are replicas of a deployment."""
    found = []
    for place in Path("/proc").iterdir():
        if place.name.isdigit():
            try:
                line = (place / "cmdline").read_bytes().split(b"\0")[0].decode()
            except OSError:
                continue
            if line.startswith("ray::ServeReplica") and line.partition(":adakron:")[2].split(".")[0] == name:
                found.append(int(place.name))
    return found


def resident(name: str) -> int:
    """Bytes of these processes; what they share counts once."""
    total = 0
    for process in processes(name):
        for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += 1024 * int(line.split()[1])
    return total


PARTS: dict[str, Callable[[Path, argparse.Namespace], dict[str, Any]]] = {
    "batching": batching,
    "delay": delay,
    "bank": bank,
    "kills": kills,
    "memory": memory,
    "workers": workers,
    "nodes": nodes,
}

if __name__ == "__main__":
    main()

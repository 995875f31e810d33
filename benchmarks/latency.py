"""Latency of a BERT-base-sized model with adapters beside its peers, and the targets that it must reach.

Run as `python benchmarks/latency.py -o benchmarks/results/latency-1.json`, in an environment that also has
`benchmarks/requirements.txt`; a peer that is not installed is not measured. Weights are random, adapters r=48 k=4.
Every runtime has a process of its own, and all take turns; a ratio is the median of the rounds' ratios. Processes that
are opened anew differ by some percent: `--openings` measures in several, one run each, and
`benchmarks/latency_table.py` sets runs side by side.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import graphs
from latency_table import print_tables
from machine import describe

from adakron_export.quantities import parse_seconds, parse_shape
from adakron_export.subjects.subject import Subject
from adakron_export.timing.latency import Latency, measure, speedup
from adakron_export.timing.process import RunnerProcess

SHAPES = ("1x16", "1x128", "1x384", "1x512", "8x128")
PEERS = str(Path(__file__).with_name("peers.py"))


@dataclass(frozen=True, slots=True)
class Target:
    """A ratio of latencies, and what it must reach at each shape.

    Attributes:
        name: What is measured.
        slow: The sides above the line, of which the fastest counts.
        fast: The side below it.
        limits: By shape.
        at_least: Whether the ratio must be at least that much, or at most.
    """

    name: str
    slow: tuple[str, ...]
    fast: str
    limits: Mapping[str, float]
    at_least: bool = True

    def reached(self, shape: str, ratio: float) -> bool:
        """Whether a ratio is good enough."""
        return ratio >= self.limits[shape] if self.at_least else ratio <= self.limits[shape]


TARGETS = (
    Target("artifact / without adapters", ("artifact",), "bare", {"1x16": 1.02, "1x128": 1.01, "8x128": 1.01}, False),
    Target("eager / artifact", ("eager",), "artifact", {"1x16": 2.6, "1x128": 2.5, "1x384": 2.3, "8x128": 2.2}),
    Target("OpenVINO fp32 / artifact", ("openvino",), "artifact", {"1x128": 1.0}),
    Target("eager / int8 artifact", ("eager",), "artifact-int8", {"1x128": 7.5}),
    Target("OpenVINO int8 / int8 artifact", ("openvino-int8",), "artifact-int8", {"1x128": 1.0}),
)
# No target, but what stands in the way of one: eager PyTorch against the products that any graph has to compute.
FLOORS = (("eager", "products alone"), ("eager", "products alone, int8"), ("artifact", "products alone"),
          ("artifact-int8", "products alone, int8"))  # fmt: skip
HAND_BUILT_LIMITS = {"1x16": 1.02, "1x128": 1.02, "1x512": 1.02, "8x128": 1.02}


def main() -> None:
    """Build, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--shapes", default=",".join(SHAPES))
    parser.add_argument("--budget", default="60s", help="for each shape of a run")
    parser.add_argument("--openings", type=int, default=1, help="runs, each in new processes")
    parser.add_argument("--only", nargs="*", help="these sides")
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sides, artifact = made(options, folder), graphs.artifact(folder)
        found = {
            **describe(),
            "threads": options.threads,
            "size_int8_to_fp32": graphs.size(graphs.artifact_int8(folder)) / graphs.size(artifact),
            "runs": [run(options, sides, artifact) for _ in range(options.openings)],
        }
    options.output.write_text(json.dumps(found, indent=2) + "\n")
    print_tables(found["runs"])


def made(options: argparse.Namespace, folder: Path) -> dict[str, str]:
    """What to open for each side."""
    sides = {}
    for label in graphs.SIDES:
        if options.only is None or label in options.only:
            progress(f"make {label}")
            command = [sys.executable, graphs.__file__, str(folder), label]
            done = subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True)
            if done.returncode != graphs.MISSING:
                done.check_returncode()
                sides[label] = done.stdout.splitlines()[-1]
    return sides


def run(options: argparse.Namespace, sides: Mapping[str, str], artifact: Path) -> dict[str, Any]:
    """Latencies in new processes, and how they stand to the targets."""
    with contextlib.ExitStack() as stack:
        processes = {}
        for label, path in sides.items():
            progress(f"open {label}")
            subject = Subject(path, threads=options.threads, backbone=str(artifact) if ":" in path else None)
            command = (PEERS,) if ":" in path else ("-m", "adakron_export.timing.process")
            processes[label] = stack.enter_context(RunnerProcess(subject, command))
        budget_s = parse_seconds(options.budget)
        latencies = {
            shape: measure(processes, parse_shape(shape), budget_s=budget_s, reference=None)
            for shape in options.shapes.split(",")
        }
    return {
        "targets": [row for shape in latencies for row in judged(shape, latencies[shape])],
        "floors": [row for shape in latencies for row in floors(shape, latencies[shape])],
        "latencies": [row.to_json() for rows in latencies.values() for row in rows],
    }


def judged(shape: str, latencies: list[Latency]) -> list[dict[str, Any]]:
    """Every target of a shape."""
    by_side = {row.side: row for row in latencies}
    best = [label for label in by_side if label.startswith("bare")]
    hand_built = Target(
        "artifact / best hand-built graph", ("artifact",), fastest(by_side, best), HAND_BUILT_LIMITS, False
    )
    rows = []
    for target in (*TARGETS, hand_built):
        slow = fastest(by_side, target.slow)
        if shape in target.limits and slow in by_side and target.fast in by_side:
            ratio = speedup(by_side[slow].round_ms, by_side[target.fast].round_ms)
            rows.append({"measure": target.name, "shape": shape, "against": target.fast, "ratio": asdict(ratio),
                         "limit": target.limits[shape], "reached": target.reached(shape, ratio.estimate)})  # fmt: skip
    return rows


def floors(shape: str, latencies: list[Latency]) -> list[dict[str, Any]]:
    """What is left to gain over the products alone, and what they leave of a speed-up."""
    by_side = {row.side: row.round_ms for row in latencies}
    return [
        {"ratio": f"{slow} / {floor}", "shape": shape, **asdict(speedup(by_side[slow], by_side[floor]))}
        for slow, floor in FLOORS
        if slow in by_side and floor in by_side
    ]


def fastest(by_side: Mapping[str, Latency], labels: Any) -> str:
    """Of these sides."""
    there = [label for label in labels if label in by_side]
    return min(there, key=lambda label: by_side[label].p50_ms, default="")


def progress(stage: str) -> None:
    """Say what happens."""
    print(stage, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()

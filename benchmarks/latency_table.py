"""Tables and a picture of one or more runs of benchmarks/latency.py.

Run as `python benchmarks/latency_table.py benchmarks/results/latency-?.json --picture FILE`; the runs may be of
different sides.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from picture import draw_bars

PICTURED = ("1x16", "1x128", "8x128")
NOT_PICTURED = ("bare", "products")

Run = dict[str, Any]  # one of those that benchmarks/latency.py writes


def main() -> None:
    """Read and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--picture", type=Path, help="of the medians")
    options = parser.parse_args()
    files = [json.loads(file.read_text(encoding="utf-8")) for file in options.files]
    runs = [run for file in files for run in file["runs"]]
    print_tables(runs)
    if options.picture:
        draw(runs, f"{files[0]['processor']}, {files[0]['threads']} threads", options.picture)


def print_tables(runs: Sequence[Run]) -> None:
    """Medians over the runs of every side, and every ratio of each run beside its target."""
    found = medians(runs)
    shapes = list(dict.fromkeys(shape for by_shape in found.values() for shape in by_shape))
    print("| ms | " + " | ".join(shapes) + " |\n|---|" + "---|" * len(shapes))
    for side, by_shape in found.items():
        print(f"| {side} | " + " | ".join(f"{by_shape[shape]:.1f}" for shape in shapes) + " |")
    ratio, line = "ratio | " * len(runs), "---|" * len(runs)
    print(f"\n| measure | shape | {ratio}median | target | reached |\n|---|---|{line}---|---|---|")
    for (measure, shape), rows in by_name(runs, "targets", "measure").items():
        ratios = " | ".join(f"{row['ratio']['estimate']:.3f}" if row else "" for row in rows)
        there = [row for row in rows if row]
        reached = f"{sum(row['reached'] for row in there)} of {len(there)}"
        middle = median(row["ratio"]["estimate"] for row in there)
        print(f"| {measure} | {shape} | {ratios} | {middle:.3f} | {there[0]['limit']} | {reached} |")
    print(f"\n| floor | shape | {ratio}\n|---|---|{line}")
    for (name, shape), rows in by_name(runs, "floors", "ratio").items():
        ratios = " | ".join(f"{row['estimate']:.2f}" if row else "" for row in rows)
        print(f"| {name} | {shape} | {ratios} |")


def by_name(runs: Sequence[Run], kind: str, name: str) -> dict[tuple[str, str], list[Run | None]]:
    """The rows of each name and shape, one of each run; ``None`` where a run has none."""
    found = [{(row[name], row["shape"]): row for row in run[kind]} for run in runs]
    return {key: [rows.get(key) for rows in found] for key in dict.fromkeys(key for rows in found for key in rows)}


def draw(runs: Sequence[Run], where: str, file: Path) -> None:
    """A picture of the medians over the runs."""
    shown = {shape: {side: by_shape[shape] for side, by_shape in medians(runs).items()
                     if not side.startswith(NOT_PICTURED)} for shape in PICTURED}  # fmt: skip
    draw_bars(file, f"BERT-base-sized with adapters, {where}: milliseconds (median)", shown)


def medians(runs: Sequence[Run]) -> dict[str, dict[str, float]]:
    """Milliseconds by side, by shape."""
    found: dict[str, dict[str, list[float]]] = {}
    for run in runs:
        for row in run["latencies"]:
            found.setdefault(row["side"], {}).setdefault(row["shape"], []).append(row["p50_ms"])
    return {side: {shape: median(times) for shape, times in by_shape.items()} for side, by_shape in found.items()}


if __name__ == "__main__":
    main()

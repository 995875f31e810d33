"""Draws `docs/house.svg` from the package's own imports: the rooms on their floors, and what imports what.

An arrow that a longer way implies is left out, and so are those to `errors`, which everything imports.
`python docs/draw_house.py` writes the picture, `--check` says whether it is what the code would draw.
"""

from __future__ import annotations

import argparse
import ast
import sys
import tomllib
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "adakron_export"
PICTURE = Path(__file__).with_name("house.svg")
WIDTH, FLOOR, BOX = 1000, 62, 36
STYLE = """
text { font: 13px system-ui, sans-serif; fill: #1c2733 }
rect { fill: #e8eff6; stroke: #6b86a3 }
path { fill: none; stroke: #8aa2bb; stroke-width: 1.2 }
"""


def floors() -> list[list[str]]:
    """The rooms from the top floor to the ground, as the import rules have them."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    layers = settings["tool"]["importlinter"]["contracts"][0]["layers"]
    return [[name.strip().removeprefix("adakron_export.") for name in layer.split("|")] for layer in layers]


def room_of(module: str) -> str:
    """The room, or the file in the root, that a module is in."""
    return module.split(".")[1] if "." in module else ""


def imports() -> Counter[tuple[str, str]]:
    """How many imports lead from one room to another."""
    found: Counter[tuple[str, str]] = Counter()
    for path in PACKAGE.rglob("*.py"):
        room = room_of(".".join(path.relative_to(ROOT).with_suffix("").parts))
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("adakron_export."):
                other = room_of(str(node.module))
                if other != room:
                    found[room, other] += 1
    return found


def needed(arrows: Counter[tuple[str, str]]) -> set[tuple[str, str]]:
    """The arrows that no longer way implies."""
    below: dict[str, set[str]] = {}

    def reach(room: str) -> set[str]:
        if room not in below:
            below[room] = set()
            for start, end in arrows:
                if start == room:
                    below[room] |= {end} | reach(end)
        return below[room]

    ends = {room: {end for start, end in arrows if start == room} for room, _ in arrows}
    return {
        (room, end) for room, end in arrows if not any(end in reach(other) for other in ends[room] if other != end)
    }


def draw() -> str:
    """The picture."""
    places, boxes = {}, []
    for row, rooms in enumerate(floors()):
        for column, room in enumerate(rooms):
            x = WIDTH * (column + 0.5) / len(rooms) if len(rooms) > 1 else WIDTH / 2 + 150 * (-1) ** row
            y = 20 + FLOOR * row
            width = max(120, 9 * len(room) + 70)
            places[room] = (x, y)
            boxes.append(
                f'<rect x="{x - width / 2:.0f}" y="{y}" width="{width}" height="{BOX}" rx="6"/>'
                f'<text x="{x:.0f}" y="{y + 23}" text-anchor="middle">{room}</text>'
            )
    arrows = []
    known = Counter({pair: count for pair, count in imports().items() if {*pair} <= places.keys() - {"errors"}})
    for room, other in sorted(needed(known)):
        (x, y), (to_x, to_y) = places[room], places[other]
        bend = 90 if to_x == x else 0
        arrows.append(
            f'<path d="M{x:.0f} {y + BOX} C{x + bend:.0f} {y + BOX + 24} {to_x + bend:.0f} {to_y - 24} '
            f'{to_x:.0f} {to_y}"/>'
        )
    height = 20 + FLOOR * len(floors())
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        f'aria-label="The rooms of the package and their imports"><style>{STYLE}</style>'
        f'<rect width="{WIDTH}" height="{height}" style="fill:#fff;stroke:none"/>'
        f"{''.join(arrows)}{''.join(boxes)}</svg>\n"
    )


def main() -> None:
    """Write the picture, or compare it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="Exit with 1 unless the picture is the code's.")
    if not parser.parse_args().check:
        PICTURE.write_text(draw())
    elif not PICTURE.is_file() or PICTURE.read_text() != draw():
        sys.exit(f"{PICTURE} is out of date; run python docs/draw_house.py")


if __name__ == "__main__":
    main()

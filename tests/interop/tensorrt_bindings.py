"""Holds what is called of TensorRT against the names in its own bindings.

The full TensorRT cannot be imported without its libraries, but its bindings can be read: the name of every method,
property and enum value stands in the extension module, ended by a zero byte. So a typo cannot hide, and the options
that only TensorRT for RTX has are known to be missing.
"""

from __future__ import annotations

import ast
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ENGINES = Path(__file__).parents[2] / "adakron_export" / "engines"
BINDINGS = ("tensorrt-cu12-bindings==10.7.0", "tensorrt-cu13-bindings==11.4.0.106")
OBJECTS = {"trt", "builder", "network", "parser", "config", "cache", "error", "first", "found", "severity"}
OF_PYTHON = {"__name__", "__version__", *dir(str), *dir(list), *dir(dict)}
ONLY_RTX = {"ComputeCapability", "num_compute_capabilities", "set_compute_capability"}
OVERRIDDEN = {"log", "phase_start", "phase_finish", "step_complete"}


def called() -> set[str]:
    """Attributes of TensorRT's objects, names of flags, keywords, and methods that are overridden."""
    names = set(OVERRIDDEN)
    for file in (ENGINES / "builder.py", ENGINES / "checking.py"):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and root(node) in OBJECTS:
                names.add(node.attr)
            elif isinstance(node, ast.Constant) and str(node.value).isupper():
                names |= {str(node.value)} - {"ERROR", "SM"}
            elif isinstance(node, ast.Call) and root(node.func) in OBJECTS:
                names |= {keyword.arg for keyword in node.keywords if keyword.arg}
    return names - OF_PYTHON


def root(node: ast.AST) -> str | None:
    """The variable that a chain of attributes and calls begins with."""
    while isinstance(node, ast.Attribute | ast.Call):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node.id if isinstance(node, ast.Name) else None


def extension(requirement: str, folder: Path) -> bytes:
    """The extension module of a bindings wheel, which is not installed."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([*pip, "-d", str(folder), requirement], check=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return archive.read("tensorrt_bindings/tensorrt.so")


def main() -> None:
    """End with a message where a name is unknown."""
    names = called()
    for requirement in BINDINGS:
        with tempfile.TemporaryDirectory() as folder:
            content = extension(requirement, Path(folder))
        there = {name for name in names if name.encode() + b"\0" in content}
        if names - there != ONLY_RTX:
            sys.exit(f"{requirement} lacks {sorted(names - there - ONLY_RTX)}, has {sorted(ONLY_RTX & there)}")
        print(f"{requirement}: all {len(there)} names are there")


if __name__ == "__main__":
    main()

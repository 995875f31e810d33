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

PACKAGE = Path(__file__).parents[2] / "adakron_export"
FILES = (
    "engines/builder.py",
    "engines/checking.py",
    "engines/loading.py",
    "engines/logger.py",
    "runtimes/tensorrt.py",
)
BINDINGS = ("tensorrt-cu12-bindings==10.7.0", "tensorrt-cu13-bindings==11.4.0.106")
OBJECTS = {
    "trt",
    "builder",
    "network",
    "parser",
    "config",
    "cache",
    "error",
    "first",
    "found",
    "severity",
    "runtime",
    "engine",
    "context",
    "_context",
}
OF_PYTHON = {"__name__", "__version__", *dir(str), *dir(list), *dir(dict)}
ONLY_RTX = {
    "ComputeCapability", "CudaGraphStrategy", "WHOLE_GRAPH_CAPTURE", "cuda_graph_strategy", "num_compute_capabilities",
    "set_compute_capability",
}  # fmt: skip
ONLY_LATER = {"create_runtime_config"}  # used for TensorRT for RTX alone
OVERRIDDEN = {"log", "phase_start", "phase_finish", "step_complete"}


def called() -> set[str]:
    """Attributes of TensorRT's objects, names of flags, keywords, and methods that are overridden."""
    names = set(OVERRIDDEN)
    for file in FILES:
        tree = ast.parse((PACKAGE / file).read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and root(node) in OBJECTS:
                names.add(node.attr)
            elif isinstance(node, ast.Constant) and str(node.value).isupper():
                names |= {str(node.value)} - {"ERROR", "SM"}
            elif isinstance(node, ast.Call) and root(node.func) in OBJECTS:
                names |= {keyword.arg for keyword in node.keywords if keyword.arg}
    return names - OF_PYTHON - OBJECTS


def root(node: ast.AST) -> str | None:
    """The variable that a chain of attributes and calls begins with, or the attribute of ``self``."""
    while isinstance(node, ast.Attribute | ast.Call):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self":
            return node.attr
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
        if names - there - ONLY_LATER != ONLY_RTX:
            lacks = names - there - ONLY_RTX - ONLY_LATER
            sys.exit(f"{requirement} lacks {sorted(lacks)}, has {sorted(ONLY_RTX & there)}")
        print(f"{requirement}: all {len(there)} names are there")


if __name__ == "__main__":
    main()

"""A graph in ONNX Runtime without an artifact, and with the values inside it as outputs."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from adakron_export.artifacts.artifact import Artifact
from adakron_export.artifacts.manifest import Manifest, TensorInfo
from adakron_export.artifacts.onnx_file import write_model
from adakron_export.runtimes.ort import OrtRunner

if TYPE_CHECKING:
    from collections.abc import Sequence

    import onnx_ir as ir


def graph_runner(
    model: ir.Model, manifest: Manifest, *, watched: Sequence[str] = (), device: str = "cpu", optimize: bool = True
) -> OrtRunner:
    """A graph in ONNX Runtime.

    Args:
        model: The graph.
        manifest: Its inputs, and its outputs where none are named.
        watched: Names of the values to put out in their place, float32.
        device: A device of ONNX Runtime.
        optimize: Whether ONNX Runtime may rewrite the graph.
    """
    if watched:
        manifest = replace(manifest, outputs=tuple(TensorInfo(name, "float32", ()) for name in watched))
    with tempfile.TemporaryDirectory() as folder:
        write_model(model, Path(folder))
        return OrtRunner(Artifact(Path(folder), manifest), device=device, optimize=optimize)

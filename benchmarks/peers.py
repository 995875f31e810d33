"""Other runtimes, served to a benchmark as `adakron_export.worker` serves our own: one in a process of its own.

`RunnerSettings.path` is ``KIND:PATH``, and `backbone` an artifact of the same model, which says what it takes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from adakron_export.artifact import open_artifact
from adakron_export.input_space import exported_space
from adakron_export.runtimes.base import Array, Batch, Runner
from adakron_export.validation.batches import InputSpace
from adakron_export.worker import RunnerSettings, serve


class PlainRunner:
    """A function from arrays to arrays."""

    def __init__(self, name: str, names: tuple[str, ...], compute: Callable[[dict[str, Array]], Array]) -> None:
        self.name, self.input_names, self.output_names = name, names, ("logits",)
        self._compute = compute

    def run(self, batch: Batch) -> dict[str, Array]:
        """Run one batch."""
        return {"logits": self._compute(self._feed(batch))}

    def prepare(self, batch: Batch) -> Callable[[], float]:
        """A timed run."""
        feed = self._feed(batch)

        def once() -> float:
            start = time.perf_counter()
            self._compute(feed)
            return time.perf_counter() - start

        return once

    def _feed(self, batch: Batch) -> dict[str, Array]:
        return {name: np.ascontiguousarray(batch[name]) for name in self.input_names}


def open_peer(settings: RunnerSettings) -> tuple[Runner, InputSpace]:
    """Open one by its kind."""
    kind, _, path = settings.path.partition(":")
    space = exported_space(open_artifact(str(settings.backbone)))
    return PlainRunner(kind, space.names, OPENERS[kind](Path(path), settings)), space


def onnxruntime_default(path: Path, settings: RunnerSettings) -> Any:
    """A file in ONNX Runtime as it comes."""
    return onnxruntime(path, settings, [])


def onnxruntime_without_skip(path: Path, settings: RunnerSettings) -> Any:
    """A file in ONNX Runtime without the fused kernel that is slower than its parts."""
    return onnxruntime(path, settings, ["SkipLayerNormFusion"])


def onnxruntime(path: Path, settings: RunnerSettings, disabled: list[str]) -> Any:
    """A file in ONNX Runtime."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = settings.threads or 0
    providers = ["CUDAExecutionProvider" if settings.device == "cuda" else "CPUExecutionProvider"]
    session = ort.InferenceSession(path, options, providers=providers, disabled_optimizers=disabled)
    names = {value.name for value in session.get_inputs()}
    return lambda feed: session.run(["logits"], {name: feed[name] for name in names})[0]


def openvino(path: Path, settings: RunnerSettings) -> Any:
    """A file in OpenVINO, its own or ONNX, in fp32 as far as the file is."""
    import openvino as ov

    config: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    if settings.threads:
        config["INFERENCE_NUM_THREADS"] = settings.threads
    request = ov.compile_model(str(path), "CPU", config).create_infer_request()
    return lambda feed: request.infer(feed, share_inputs=True, share_outputs=True)["logits"]


def torch_compile(path: Path, settings: RunnerSettings) -> Any:
    """A checkpoint under torch.compile, with its adapters folded."""
    import torch

    from adakron_export import fold, load_model

    if settings.threads:
        torch.set_num_threads(settings.threads)
    model = fold(load_model(path)).eval().to(settings.device)
    compiled = torch.compile(model, dynamic=False)

    def compute(feed: dict[str, Array]) -> Array:
        with torch.inference_mode():
            tensors = {name: torch.from_numpy(array).to(settings.device) for name, array in feed.items()}
            array: Array = compiled(**tensors).logits.cpu().numpy()
            return array

    return compute


OPENERS = {
    "onnxruntime": onnxruntime_default,
    "onnxruntime-without-skip": onnxruntime_without_skip,
    "openvino": openvino,
    "torch.compile": torch_compile,
}

if __name__ == "__main__":
    serve(open_peer)

"""Other runtimes, served to a benchmark as `adakron_export.timing.process` serves our own: each in its own process.

`Subject.path` is ``KIND:PATH``, and `backbone` an artifact of the same model, which says what it takes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from adakron_export import open_runner
from adakron_export.artifacts.artifact import open_artifact
from adakron_export.runtimes.base import Array, Batch, Runner
from adakron_export.runtimes.huge_pages import huge_pages
from adakron_export.runtimes.space import InputSpace
from adakron_export.subjects.space import exported_space
from adakron_export.subjects.subject import Subject
from adakron_export.timing.process import serve


class PlainRunner:
    """A function from inputs to logits.

    Args:
        name: Of what computes.
        names: Of the inputs.
        compute: Takes what `place` returns, and waits for the logits.
        place: Brings the arrays to where they are computed with, which is not timed.
        on_gpu: Whether that is a GPU.
    """

    def __init__(
        self,
        name: str,
        names: tuple[str, ...],
        compute: Callable[[Any], Array],
        place: Callable[[Any], Any] = dict,
        on_gpu: bool = False,
    ) -> None:
        self.name, self.input_names, self.on_gpu = name, names, on_gpu
        self.output_names: tuple[str, ...] = ("logits",)
        self._compute, self._place = compute, place

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

    def _feed(self, batch: Batch) -> Any:
        return self._place({name: np.ascontiguousarray(batch[name]) for name in self.input_names})


class Peer(NamedTuple):
    """A runtime, opened, and what it takes."""

    runner: Runner
    space: InputSpace


def open_peer(subject: Subject) -> Peer:
    """Open one by its kind."""
    kind, _, path = str(subject.path).partition(":")
    space = exported_space(open_artifact(str(subject.backbone)))
    return Peer(OPENERS[kind](space.names, Path(path), subject), space)


def launched(names: tuple[str, ...], path: Path, subject: Subject) -> Runner:
    """Our own runner without CUDA graphs."""
    return open_runner(path, device=subject.device)


def artifact_in_openvino(names: tuple[str, ...], path: Path, subject: Subject) -> Runner:
    """Our own runner on OpenVINO."""
    return open_runner(path, device="openvino", threads=subject.threads)


def onnxruntime(names: tuple[str, ...], path: Path, subject: Subject, *disabled: str) -> Runner:
    """A file in ONNX Runtime as it comes, or without some of its optimisers."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = subject.threads or 0
    providers = ["CPUExecutionProvider"]
    session = ort.InferenceSession(path, options, providers=providers, disabled_optimizers=list(disabled))
    used = {value.name for value in session.get_inputs()}
    compute = lambda feed: session.run(["logits"], {name: feed[name] for name in used})[0]  # noqa: E731
    return PlainRunner("onnxruntime", names, compute)


def hand_built(names: tuple[str, ...], path: Path, subject: Subject) -> Runner:
    """A file in ONNX Runtime set up as our own are: what is compared is the graph."""
    with huge_pages() as moving:
        runner = onnxruntime(names, path, subject, "SkipLayerNormFusion")
    moving.wait()
    return runner


def openvino(names: tuple[str, ...], path: Path, subject: Subject) -> Runner:
    """A file in OpenVINO, its own or ONNX, in fp32 as far as the file is."""
    import openvino as ov

    config: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    if subject.threads:
        config["INFERENCE_NUM_THREADS"] = subject.threads
    request = ov.compile_model(str(path), "CPU", config).create_infer_request()
    compute = lambda feed: request.infer(feed, share_inputs=True, share_outputs=True)["logits"]  # noqa: E731
    return PlainRunner("openvino", names, compute)


def torch_model(
    names: tuple[str, ...], path: Path, subject: Subject, *, dtype: str = "float32", compiled: bool = False
) -> Runner:
    """A checkpoint with its adapters folded, eager or under torch.compile; on a GPU that records CUDA graphs."""
    import torch

    from adakron_export import fold, load_model

    if subject.threads:
        torch.set_num_threads(subject.threads)
    model: Any = fold(load_model(path)).eval().to(subject.device, getattr(torch, dtype))
    if compiled:
        model = torch.compile(model, mode="reduce-overhead" if subject.device == "cuda" else None, dynamic=False)

    def place(feed: dict[str, Array]) -> Any:
        return {name: torch.from_numpy(array).to(subject.device) for name, array in feed.items()}

    def compute(tensors: Any) -> Array:
        with torch.inference_mode():
            array: Array = model(**tensors).logits.float().cpu().numpy()
            return array

    return PlainRunner("torch.compile" if compiled else "torch", names, compute, place, subject.device == "cuda")


OPENERS: dict[str, Callable[..., Runner]] = {
    "artifact-openvino": artifact_in_openvino,
    "launched": launched,
    "onnxruntime": onnxruntime,
    "onnxruntime-as-ours": hand_built,
    "openvino": openvino,
    "torch fp16": partial(torch_model, dtype="float16"),
    "torch.compile fp32": partial(torch_model, compiled=True),
    "torch.compile fp16": partial(torch_model, dtype="float16", compiled=True),
}

if __name__ == "__main__":
    serve(open_peer)

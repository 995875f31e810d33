"""ONNX Runtime."""

from __future__ import annotations

import contextlib
import sys
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np

from adakron_export.artifact import Artifact, Manifest
from adakron_export.errors import RunnerError
from adakron_export.extras import require
from adakron_export.runtimes.base import Array, Batch, check_batch


class Device(StrEnum):
    """Where a session runs."""

    CPU = "cpu"
    CUDA = "cuda"

    @classmethod
    def named(cls, name: str) -> Device:
        """The device of a name.

        Raises:
            RunnerError: There is no such device.
        """
        try:
            return cls(name)
        except ValueError as error:
            raise RunnerError(f"device {name!r} is unknown; choose cpu or cuda") from error

    @property
    def provider(self) -> str:
        """ONNX Runtime's name of it."""
        return {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}[self.value]

    @property
    def settings(self) -> dict[str, str]:
        """The provider's options: fp32 is fp32, where CUDA would by default round products to TF32's 10 bits."""
        return {"use_tf32": "0"} if self is Device.CUDA else {}


class OrtRunner:
    """An artifact in an ONNX Runtime session.

    Args:
        artifact: The opened folder, or the manifest and file of one that is being made.
        device: Where to run; another provider is never used in its place.
        threads: Of one operator; ONNX Runtime's choice by default.

    Raises:
        RunnerError: The device is not available, or ONNX Runtime refuses the graph.
        MissingPackageError: ONNX Runtime is not installed.
    """

    def __init__(self, artifact: Artifact, *, device: Device = Device.CPU, threads: int | None = None) -> None:
        self.manifest = artifact.manifest
        self.session = _open_session(artifact.model, self.manifest, device, threads)
        self.name = f"onnxruntime {device.provider}"
        self.input_names = tuple(info.name for info in self.manifest.inputs)
        self.output_names = tuple(info.name for info in self.manifest.outputs)

    def run(self, batch: Batch) -> dict[str, Array]:
        """Run one batch; see `Runner.run`."""
        check_batch(batch, self.input_names)
        feed = {info.name: np.asarray(batch[info.name], dtype=info.dtype) for info in self.manifest.inputs}
        longest = self.manifest.max_length
        tokens = next(iter(feed.values())).shape[1]
        if longest is not None and "input_ids" in feed and tokens > longest:
            raise RunnerError(f"the batch is {tokens} tokens long, the model takes {longest}; truncate the texts")
        return dict(zip(self.output_names, self.session.run(list(self.output_names), feed), strict=True))


def _open_session(model: Path, manifest: Manifest, device: Device, threads: int | None) -> Any:
    if manifest.dtype == "bf16" and device is Device.CPU:
        raise RunnerError("ONNX Runtime has no bf16 on the CPU; open it with device cuda, or export fp32 for the CPU")
    ort = require("onnxruntime", extra="cpu' or 'adakron-export[gpu")
    if device.provider not in ort.get_available_providers():
        raise RunnerError(
            f"this onnxruntime has no {device.provider} (it has {', '.join(ort.get_available_providers())}); "
            "for CUDA install adakron-export[gpu] instead of adakron-export[cpu]"
        )
    if device is Device.CUDA:
        with contextlib.redirect_stdout(sys.stderr):  # it prints, and our stdout is the result
            ort.preload_dlls()  # CUDA and cuDNN of NVIDIA's pip packages, which torch brings along
    options = ort.SessionOptions()
    options.log_severity_level = 3  # errors; warnings of its optimisers are no news to our users
    if threads is not None:
        options.intra_op_num_threads = threads
    try:
        session = ort.InferenceSession(
            model,
            options,
            providers=[(device.provider, device.settings)],
            disabled_optimizers=list(manifest.disabled_optimizers),
        )
    except Exception as error:  # its exceptions share no base class
        raise RunnerError(f"ONNX Runtime {ort.__version__} refuses {model}: {str(error)[:400]}") from error
    if session.get_providers()[0] != device.provider:
        raise RunnerError(f"ONNX Runtime fell back from {device.provider} to {session.get_providers()[0]}")
    return session

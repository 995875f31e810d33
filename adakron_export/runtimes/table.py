"""The table of runtimes: what can run an artifact, what to install for it, and what it can do.

A new runtime is one file and one row. Every list of devices in help, errors and `doctor` is made from this table.
Reading it imports no runtime.
"""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adakron_export.errors import RunnerError
from adakron_export.machine.gpu import has_gpu

if TYPE_CHECKING:
    from collections.abc import Collection

    from adakron_export.artifacts.artifact import Artifact
    from adakron_export.runtimes.base import HoldingRunner


@dataclass(frozen=True, slots=True)
class Runtime:
    """A row.

    Attributes:
        device: Name that ``--device`` takes.
        title: What it is, for `doctor` and the docs.
        opener: Module and function, ``module:function``; see `open`.
        package: What must be importable.
        extra: The extras that install it, one of them.
        provider: The execution provider, where it is ONNX Runtime.
        on_gpu: Whether it needs an NVIDIA GPU.
        emulated: Whether half precision is emulated in a comparison, because it would be computed in fp32.
        traced_on: The device on which a graph's inner values are looked at; not every runtime shows them.
    """

    device: str
    title: str
    opener: str
    package: str
    extra: tuple[str, ...]
    provider: str | None = None
    on_gpu: bool = False
    emulated: bool = False
    traced_on: str = "cpu"

    def open(self, artifact: Artifact, *, threads: int | None = None, record_launches: bool = False) -> HoldingRunner:
        """Open an artifact with it.

        Args:
            artifact: An opened folder.
            threads: Threads per operator; the runtime's choice by default.
            record_launches: Whether launches are recorded once per batch of `prepare` and replayed; only for timing.

        Raises:
            RunnerError: The runtime is not available here, or refuses the artifact.
            MissingPackageError: The runtime is not installed.
        """
        module, _, name = self.opener.partition(":")
        opener = getattr(importlib.import_module(module), name)
        runner: HoldingRunner = opener(
            artifact, device=self.device, threads=threads, record_launches=record_launches and self.on_gpu
        )
        return runner

    def missing(self, providers: Collection[str], *, has_gpu: bool) -> str | None:
        """What to do before it works here; ``None`` where it does.

        Args:
            providers: The execution providers of the ONNX Runtime that is installed.
            has_gpu: Whether there is an NVIDIA GPU with a driver.
        """
        if self.on_gpu and not has_gpu:
            return "this machine has no NVIDIA GPU, or no driver for it"
        there = importlib.util.find_spec(self.package) is not None
        built_in = self.provider is not None and self.package == "onnxruntime"
        if there and (not built_in or self.provider in providers):
            return None
        install = " or ".join(f"pip install 'adakron-export[{name}]'" for name in self.extra)
        return f"pip uninstall onnxruntime; {install}" if there and self.extra == ("gpu",) else install


_ORT = "adakron_export.runtimes.ort:OrtRunner"
RUNTIMES: dict[str, Runtime] = {
    row.device: row
    for row in (
        Runtime(
            "cpu",
            "ONNX Runtime on the CPU",
            _ORT,
            "onnxruntime",
            ("cpu",),
            provider="CPUExecutionProvider",
            emulated=True,
        ),
        Runtime(
            "openvino",
            "OpenVINO on the CPU",
            "adakron_export.runtimes.openvino:OpenVinoRunner",
            "openvino",
            ("openvino",),
        ),
        Runtime(
            "cuda",
            "ONNX Runtime on a GPU, with CUDA",
            _ORT,
            "onnxruntime",
            ("gpu",),
            provider="CUDAExecutionProvider",
            on_gpu=True,
            traced_on="cuda",
        ),
        Runtime(
            "tensorrt",
            "ONNX Runtime on a GPU, with TensorRT",
            _ORT,
            "onnxruntime",
            ("gpu",),
            provider="TensorrtExecutionProvider",
            on_gpu=True,
            traced_on="tensorrt",
        ),
        Runtime(
            "tensorrt-rtx",
            "ONNX Runtime on a GPU, with TensorRT for RTX",
            _ORT,
            "onnxruntime_ep_nv_tensorrt_rtx",
            ("ort-rtx",),
            provider="NvTensorRTRTXExecutionProvider",
            on_gpu=True,
            traced_on="tensorrt-rtx",
        ),
    )
}


def runtime_on(device: str) -> Runtime:
    """A row of `RUNTIMES`.

    Raises:
        RunnerError: There is no such device.
    """
    if device not in RUNTIMES:
        raise RunnerError(f"device {device!r} is unknown; choose {', '.join(RUNTIMES)}")
    return RUNTIMES[device]


def check_available(device: str) -> None:
    """Raise unless a device is here to run artifacts on; nothing is opened.

    Raises:
        RunnerError: There is no such device, or something is missing for it.
    """
    row = runtime_on(device)
    missing = row.missing(installed_providers(), has_gpu=has_gpu())
    if missing is not None:
        raise RunnerError(f"device {device} is not available here: {missing}")


def installed_providers() -> tuple[str, ...]:
    """Execution providers of the ONNX Runtime that is installed; none without one."""
    if importlib.util.find_spec("onnxruntime") is None:
        return ()
    import onnxruntime as ort  # noqa: TID253, RUF100

    return tuple(ort.get_available_providers())


def eager_beside(device: str) -> str:
    """Where eager PyTorch runs beside a runtime: on the CPU or on the same GPU."""
    return "cuda" if runtime_on(device).on_gpu else "cpu"

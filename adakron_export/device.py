"""Where an artifact runs."""

from __future__ import annotations

from enum import StrEnum

from adakron_export.errors import RunnerError


class Device(StrEnum):
    """A processor, and what computes on it."""

    CPU = "cpu"  # ONNX Runtime's own kernels
    OPENVINO = "openvino"  # OpenVINO on the CPU
    CUDA = "cuda"
    TENSORRT = "tensorrt"
    TENSORRT_RTX = "tensorrt-rtx"

    @classmethod
    def named(cls, name: str) -> Device:
        """The device of a name.

        Raises:
            RunnerError: There is no such device.
        """
        try:
            return cls(name)
        except ValueError as error:
            raise RunnerError(f"device {name!r} is unknown; choose {', '.join(cls)}") from error

    @property
    def on_cpu(self) -> bool:
        """Whether it is the CPU."""
        return self in (Device.CPU, Device.OPENVINO)

    @property
    def of_eager(self) -> str:
        """Where eager PyTorch runs beside it."""
        return "cpu" if self.on_cpu else "cuda"

"""The machine's GPU, asked of the driver itself: a CPU build of torch knows of none."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR


@dataclass(frozen=True, slots=True)
class Gpu:
    """An NVIDIA GPU.

    Attributes:
        name: Name that the driver gives it.
        compute_capability: Compute capability, such as ``8.9``.
        driver_cuda: The latest CUDA that the driver serves.
    """

    name: str
    compute_capability: str
    driver_cuda: str


def has_gpu() -> bool:
    """Whether there is an NVIDIA GPU."""
    return _driver() is not None


def first_gpu() -> Gpu | None:
    """The first GPU; ``None`` where there is none."""
    driver = _driver()
    if driver is None:
        return None
    device, version, major, minor = (ctypes.c_int() for _ in range(4))
    name = ctypes.create_string_buffer(256)
    driver.cuDeviceGet(ctypes.byref(device), 0)
    driver.cuDeviceGetName(name, len(name), device)
    driver.cuDeviceGetAttribute(ctypes.byref(major), _MAJOR, device)
    driver.cuDeviceGetAttribute(ctypes.byref(minor), _MINOR, device)
    driver.cuDriverGetVersion(ctypes.byref(version))
    cuda = f"{version.value // 1000}.{version.value % 1000 // 10}"
    return Gpu(name.value.decode(), f"{major.value}.{minor.value}", cuda)


def _driver() -> Any:
    """The driver's library, where it knows of a GPU."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    count = ctypes.c_int()
    there = driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0
    return driver if there else None

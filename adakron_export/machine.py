"""What a measurement was taken on."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path

from adakron_export.device import Device


def describe_machine(*, device: str, threads: int | None) -> dict[str, str | int | None]:
    """Processor, cores, GPU where one is measured, and threads: what makes two measurements comparable.

    Args:
        device: ``cpu``, ``cuda``, ``tensorrt`` or ``tensorrt-rtx``.
        threads: As asked for; ``None`` is the runtime's choice.
    """
    machine: dict[str, str | int | None] = {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": threads,
        "device": device,
    }
    if not Device.named(device).on_cpu:
        import torch

        machine["gpu"] = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return machine


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*: (.*)$", info.read_text(), re.MULTILINE) if info.is_file() else None
    return found[1] if found else platform.processor() or platform.machine()

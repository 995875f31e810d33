"""What a measurement was taken on."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path


def describe_machine(
    *, device: str = "cpu", threads: int | None = None, on_gpu: bool = False
) -> dict[str, str | int | None]:
    """Processor, cores, GPU where one is measured, and threads: what makes two measurements comparable.

    Args:
        device: Where it is measured.
        threads: Threads that were asked for; ``None`` is the runtime's choice.
        on_gpu: Whether that is a GPU, which is then named.
    """
    machine: dict[str, str | int | None] = {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": threads,
        "device": device,
    }
    if on_gpu:
        import torch

        machine["gpu"] = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return machine


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*: (.*)$", info.read_text(), re.MULTILINE) if info.is_file() else None
    return found[1] if found else platform.processor() or platform.machine()

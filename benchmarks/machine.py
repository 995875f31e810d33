"""What a measurement was taken on."""

from __future__ import annotations

import os
from typing import Any

import torch

from adakron_export.extras import package_versions
from adakron_export.machine.description import describe_machine
from adakron_export.runtimes.integer_sums import saturates


def describe() -> dict[str, Any]:
    """Processor, cores, widest instructions, whether it has VNNI, memory and versions."""
    machine = describe_machine(device="cpu", threads=None)
    return {
        "processor": machine["processor"],
        "cores": machine["cores"],
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "vnni": not saturates(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9),
        "versions": package_versions(),
    }

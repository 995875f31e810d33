"""What this machine has, what will work on it, and what to install."""

from __future__ import annotations

import importlib.util
from dataclasses import asdict, dataclass
from typing import Any

from adakron_export.errors import AdaKronError
from adakron_export.extras import package_versions
from adakron_export.graph.keys import EXACT_SUMS
from adakron_export.machine.description import describe_machine
from adakron_export.machine.flavors import FLAVORS
from adakron_export.machine.gpu import Gpu, first_gpu
from adakron_export.runtimes.table import RUNTIMES, Runtime, installed_providers

_EXPORT = ("onnxscript", "optimum", "peft", "requests", "safetensors", "torch", "transformers")
_TRAIN = ("accelerate", "datasets", "matplotlib", "sklearn", "seqeval", "tensorboard", "tqdm", "yaml")
_BROKEN = "broken"


@dataclass(frozen=True, slots=True)
class Ability:
    """Something that one may want to do here.

    Attributes:
        what: Description.
        works: Whether it will.
        remedy: What to do where it will not.
    """

    what: str
    works: bool
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class Examination:
    """What was found.

    Attributes:
        machine: Processor, cores, GPU and driver.
        versions: Versions of the packages, builders included.
        providers: Execution providers of ONNX Runtime.
        abilities: What works and what does not.
    """

    machine: dict[str, Any]
    versions: dict[str, str]
    providers: tuple[str, ...]
    abilities: tuple[Ability, ...]

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return {"format_version": 1, **asdict(self)}


def examine() -> Examination:
    """Look at the machine; nothing is changed, and no model is loaded."""
    gpu = first_gpu()
    machine = {**describe_machine(), "gpu": None}
    if gpu is not None:
        machine |= {"gpu": gpu.name, "compute_capability": gpu.compute_capability, "driver_cuda": gpu.driver_cuda}
    for name in ("device", "threads"):
        machine.pop(name)
    providers = installed_providers()
    machine["integer_products"] = _integer_products() if providers else None
    versions = {**package_versions(), **_builders()}
    return Examination(machine, versions, providers, tuple(_abilities(providers, versions, gpu)))


def _integer_products() -> str:
    from adakron_export.runtimes.integer_sums import saturates

    if not saturates():
        return "exact"
    return f"saturate in 16 bits (no VNNI); open_runner sets {EXACT_SUMS} = 1, other sessions must"


def _builders() -> dict[str, str]:
    found = {}
    for flavor in FLAVORS.values():
        if flavor.installed:
            try:
                found[flavor.module] = str(flavor.load().__version__)
            except AdaKronError as error:
                found[flavor.module] = f"{_BROKEN}: {error}"
    return found


def _abilities(providers: tuple[str, ...], versions: dict[str, str], card: Gpu | None) -> list[Ability]:
    gpu = card is not None
    trt, rtx = (not versions.get(name, _BROKEN).startswith(_BROKEN) for name in ("tensorrt", "tensorrt_rtx"))
    rtx_runs = card is not None and FLAVORS["rtx"].runs_on(card.compute_capability)
    export, train = _have(_EXPORT), _have(_TRAIN)
    get_export = "pip install 'adakron-export[export]'"
    cpu = "CPUExecutionProvider" in providers
    no_gpu = "this machine has no NVIDIA GPU, or no driver for it"
    no_cuda = "install a CUDA build of torch" if gpu else no_gpu
    return [
        *(_runs(row, providers, has_gpu=gpu) for row in RUNTIMES.values()),
        Ability("export to ONNX (without validation)", export, get_export),
        Ability(
            "export, and validate against checkpoints", export and cpu,
            get_export if not export else "pip install 'adakron-export[cpu]'",
        ),
        Ability("train", export and train, "pip install 'adakron-export[train]'"),
        Ability(
            "run engines on this GPU", (trt or (rtx and rtx_runs)) and gpu and _torch_has_cuda(),
            f"{no_cuda}, and adakron-export[tensorrt]{' or [tensorrt-rtx]' if rtx_runs else ''}" if gpu else no_gpu,
        ),
        Ability("eager PyTorch on the GPU", gpu and _torch_has_cuda(), no_cuda),
        Ability(
            "build engines for RTX GPUs (tensorrt --flavor rtx)", rtx, "pip install 'adakron-export[tensorrt-rtx]'"
        ),
        Ability(
            "build engines for this GPU (tensorrt --flavor tensorrt)", gpu and trt,
            "pip install 'adakron-export[tensorrt]'" if gpu else no_gpu,
        ),
    ]  # fmt: skip


def _runs(row: Runtime, providers: tuple[str, ...], *, has_gpu: bool) -> Ability:
    missing = row.missing(providers, has_gpu=has_gpu)
    return Ability(f"run artifacts in {row.title} (--device {row.device})", missing is None, missing or "")


def _have(packages: tuple[str, ...]) -> bool:
    return all(importlib.util.find_spec(name) for name in packages)


def _torch_has_cuda() -> bool:
    if not _have(("torch",)):
        return False
    import torch

    return bool(torch.cuda.is_available())

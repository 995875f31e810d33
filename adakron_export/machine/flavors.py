"""TensorRT and TensorRT for RTX: what differs between them, in one table."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import ModuleType

from adakron_export.errors import EngineError
from adakron_export.extras import require
from adakron_export.machine.gpu import has_gpu


@dataclass(frozen=True, slots=True)
class Flavor:
    """A builder.

    Attributes:
        name: Name that ``--flavor`` takes.
        module: What is imported.
        extra: What installs it.
        tool: The command line program that does the same.
        needs_gpu: Whether it builds only where a GPU is.
        refused: Options that it cannot do, and why.
        refused_without_gpu: Options that it can do only where a GPU is, and why.
        other_gpus: Compute capabilities of GPUs that its engines do not run on.
    """

    name: str
    module: str
    extra: str
    tool: str
    needs_gpu: bool
    refused: Mapping[str, str] = field(default_factory=dict)
    refused_without_gpu: Mapping[str, str] = field(default_factory=dict)
    other_gpus: tuple[str, ...] = ()

    @property
    def installed(self) -> bool:
        """Whether its package is there."""
        return importlib.util.find_spec(self.module) is not None

    def runs_on(self, compute_capability: str) -> bool:
        """Whether its engines run on GPUs of a compute capability, such as ``8.9``."""
        return compute_capability not in self.other_gpus

    def load(self) -> ModuleType:
        """Import it.

        Raises:
            MissingPackageError: The package is not installed.
            EngineError: Its libraries cannot be loaded.
        """
        try:
            return require(self.module, extra=self.extra)
        except OSError as error:
            raise EngineError(f"{self.module} is installed, and its libraries cannot be loaded: {error}") from error


_ON_USERS_MACHINE = "its engines are compiled for the GPU when they are first loaded"
_NEEDS_GPU = "it needs a GPU while it builds, and this machine has none"
FLAVORS = {
    flavor.name: flavor
    for flavor in (
        Flavor(
            "tensorrt", "tensorrt", "tensorrt", "trtexec", needs_gpu=True,
            refused={"compute_capability": "it builds for the GPU it runs on; --hardware-compatible widens that"},
        ),
        Flavor(
            "rtx", "tensorrt_rtx", "tensorrt-rtx", "tensorrt_rtx", needs_gpu=False,
            refused={
                "timing_cache": f"it times nothing: {_ON_USERS_MACHINE}",
                "hardware_compatible": f"{_ON_USERS_MACHINE}; --compute-capability says which may",
                "version_compatible": f"{_ON_USERS_MACHINE} by the version that is there",
            },
            refused_without_gpu={"strip_weights": _NEEDS_GPU, "refittable": _NEEDS_GPU},
            other_gpus=("8.7", "9.0", "10.0", "10.3", "11.0"),  # of data centres and Jetson, by tensorrt_rtx 1.7.1
        ),
    )
}  # fmt: skip


def flavor_named(name: str) -> Flavor:
    """A row of `FLAVORS`; ``auto`` is TensorRT where it is installed beside a GPU, and TensorRT for RTX elsewhere.

    Raises:
        EngineError: There is no such flavor.
    """
    if name == "auto":
        return FLAVORS["tensorrt" if FLAVORS["tensorrt"].installed and has_gpu() else "rtx"]
    if name not in FLAVORS:
        raise EngineError(f"flavor {name!r} is unknown; choose auto, {', '.join(FLAVORS)}")
    return FLAVORS[name]


def parser_named(name: str) -> Flavor:
    """The flavor whose parser is asked about a graph, which needs no GPU; the other one where only that is there.

    Raises:
        EngineError: There is no such flavor.
    """
    wanted = flavor_named(name)
    others = [flavor for flavor in FLAVORS.values() if flavor.installed]
    return wanted if wanted.installed or name == "rtx" or not others else others[0]

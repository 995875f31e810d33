"""How an engine is built. Reading this costs nothing: the command line's options are made from it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from adakron_export.errors import EngineError
from adakron_export.machine.flavors import Flavor
from adakron_export.machine.gpu import has_gpu
from adakron_export.options.fields import check_record, option
from adakron_export.quantities import parse_names


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """How an engine is built."""

    compute_capability: tuple[str, ...] | None = option(
        None, "GPUs to build for, such as 8.6,8.9,12.0; rtx only.", shown="the flavor's choice", metavar="LIST",
        read=parse_names,
    )  # fmt: skip
    timing_cache: Path | None = option(
        None, "Cache of kernel times, read where it is there and written at the end; not rtx.", metavar="FILE",
        read=Path,
    )  # fmt: skip
    workspace_mb: int | None = option(
        None, "Memory that a kernel may use beside its tensors, in MB.", flag="workspace", shown="no limit",
        metavar="MB", least=1,
    )  # fmt: skip
    version_compatible: bool = option(False, "Let later versions of TensorRT load the engine; not rtx.")
    hardware_compatible: bool = option(False, "Let other GPUs from Ampere on load the engine; not rtx.")
    strip_weights: bool = option(False, "Leave the weights out; needs a GPU.")
    refittable: bool = option(False, "Let the weights be changed afterwards; needs a GPU.")

    def __post_init__(self) -> None:
        """Refuse values that make no sense."""
        check_record(self, EngineError)

    def check(self, flavor: Flavor) -> None:
        """Raise where a flavor cannot do what is asked for.

        Raises:
            EngineError: The builder cannot, or not on this machine.
        """
        refused = {**flavor.refused, **({} if has_gpu() else flavor.refused_without_gpu)}
        for name, reason in refused.items():
            if getattr(self, name):
                raise EngineError(f"{flavor.name} does not take --{name.replace('_', '-')}: {reason}")

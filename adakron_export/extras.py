"""Optional packages: imported where they are used, and named with the extra that brings them."""

from __future__ import annotations

import importlib
import importlib.util
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType

from adakron_export.errors import MissingPackageError

_RECORDED = (
    "adakron-export", "torch", "transformers", "peft", "onnx", "onnx-ir", "onnxscript", "onnxruntime",
    "onnxruntime-gpu", "openvino",
)  # fmt: skip


def package_versions() -> dict[str, str]:
    """The versions of Python and of the packages that results depend on, as far as they are installed."""
    versions = {"python": platform.python_version()}
    for package in _RECORDED:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


# Packages that are imported where they are needed, and what brings them.
_EXTRA_OF = {
    **dict.fromkeys(("huggingface_hub", "onnxscript", "optimum", "peft", "safetensors", "torch", "transformers"),
                    "export"),
    **dict.fromkeys(("accelerate", "datasets", "matplotlib", "pyarrow", "scipy", "seqeval", "sklearn", "tqdm", "yaml"),
                    "train"),
    "onnxruntime": "cpu' or 'adakron-export[gpu",
    "openvino": "openvino",
    "PIL": "images",
    **dict.fromkeys(("ray", "starlette", "prometheus_client"), "serve"),
}  # fmt: skip


def missing_package(error: ModuleNotFoundError) -> MissingPackageError | None:
    """What to install for an import that failed; ``None`` where no extra brings it."""
    package = (error.name or "").partition(".")[0]
    return _missing(package, _EXTRA_OF[package]) if package in _EXTRA_OF else None


def _missing(package: str, extra: str) -> MissingPackageError:
    return MissingPackageError(
        f"this needs the package {package!r}, which is not installed; run: pip install 'adakron-export[{extra}]'"
    )


def require(module: str, *, extra: str) -> ModuleType:
    """Import an optional package.

    Args:
        module: The name to import, such as ``onnxruntime``.
        extra: The extra, or a choice of extras as the user should read it, such as ``cpu``.

    Raises:
        MissingPackageError: The package is not installed; the message holds the pip command.
    """
    check_installed(module.partition(".")[0], extra=extra)
    return importlib.import_module(module)


def check_installed(*packages: str, extra: str) -> None:
    """Raise unless all packages are there, without importing them; arguments and error as for `require`."""
    for package in packages:
        if sys.modules.get(package, package) is None or importlib.util.find_spec(package) is None:
            raise _missing(package, extra)

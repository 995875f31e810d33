"""Optional packages: imported where they are used, and named with the extra that brings them."""

from __future__ import annotations

import importlib
from types import ModuleType

from adakron_export.errors import MissingPackageError


def require(module: str, *, extra: str) -> ModuleType:
    """Import an optional package.

    Args:
        module: The name to import, such as ``onnxruntime``.
        extra: The extra, or a choice of extras as the user should read it, such as ``cpu``.

    Raises:
        MissingPackageError: It is not installed; the message holds the pip command.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module.partition(".")[0]:
            raise
        raise MissingPackageError(
            f"this needs the package {module!r}, which is not installed; run: pip install 'adakron-export[{extra}]'"
        ) from error

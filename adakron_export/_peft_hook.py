"""Registers AdaKron with PEFT without importing PEFT.

`import adakron_export` must make `PeftModel.from_pretrained` work, and `adakron-export --help` and a box without
torch must not pay the seconds that importing PEFT takes. So: registered at once where PEFT is loaded already,
else right after somebody imports it.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from types import ModuleType


def _register() -> None:
    # Importing the room registers; where it is being imported already, it is what imported PEFT.
    if "adakron_export.adapter" not in sys.modules:
        importlib.import_module("adakron_export.adapter")


class _RegisteringLoader(importlib.abc.Loader):
    """Runs PEFT's own loader, then registers."""

    def __init__(self, inner: importlib.abc.Loader) -> None:
        self._inner = inner

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._inner.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        if module.__spec__ is not None:
            module.__spec__.loader = self._inner
        module.__loader__ = self._inner
        self._inner.exec_module(module)
        _register()


class _PeftFinder(importlib.abc.MetaPathFinder):
    """Wraps the loader of `peft` once, then takes itself away."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != "peft":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec("peft")
        if spec is not None and spec.loader is not None:
            spec.loader = _RegisteringLoader(spec.loader)
        return spec


def install() -> None:
    """Register now, or as soon as `peft` is imported."""
    if sys.modules.get("peft") is not None:
        _register()
    elif not any(isinstance(finder, _PeftFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _PeftFinder())

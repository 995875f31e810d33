"""adakron-export: transformers with AdaKron adapters, taken to the machine where they have to run.

The public names load on first use, so that importing the package costs nothing. Importing it also makes PEFT
know the method ``ADAKRON``.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from adakron_export import _peft_hook
from adakron_export._version import __version__
from adakron_export.extras import missing_package

if TYPE_CHECKING:
    from adakron_export.adapter.config import AdaKronConfig
    from adakron_export.adapter.folding import fold
    from adakron_export.adapter.loading import load_model
    from adakron_export.adapter.tuner import AdaKronModel, rescale_adapter_scale
    from adakron_export.artifact import Artifact, open_artifact
    from adakron_export.benchmarking import BenchReport, bench
    from adakron_export.conversion import convert
    from adakron_export.errors import AdaKronError
    from adakron_export.export import ExportResult, export_onnx
    from adakron_export.inspection import inspect
    from adakron_export.prediction import predict
    from adakron_export.publishing import push_to_hub
    from adakron_export.runtimes.base import Runner
    from adakron_export.runtimes.batching import run_texts
    from adakron_export.runtimes.opening import open_runner
    from adakron_export.runtimes.transformers_model import OnnxModel
    from adakron_export.training.recipe import Recipe
    from adakron_export.training.run import TrainingResult, train
    from adakron_export.tuning import TuneReport, tune
    from adakron_export.validation.parity import ParityReport
    from adakron_export.verify import validate

_HOMES = {
    "AdaKronConfig": "adapter.config",
    "AdaKronError": "errors",
    "AdaKronModel": "adapter.tuner",
    "Artifact": "artifact",
    "BenchReport": "benchmarking",
    "ExportResult": "export",
    "OnnxModel": "runtimes.transformers_model",
    "ParityReport": "validation.parity",
    "Recipe": "training.recipe",
    "Runner": "runtimes.base",
    "TrainingResult": "training.run",
    "TuneReport": "tuning",
    "bench": "benchmarking",
    "convert": "conversion",
    "export_onnx": "export",
    "fold": "adapter.folding",
    "inspect": "inspection",
    "load_model": "adapter.loading",
    "open_artifact": "artifact",
    "open_runner": "runtimes.opening",
    "predict": "prediction",
    "push_to_hub": "publishing",
    "rescale_adapter_scale": "adapter.tuner",
    "run_texts": "runtimes.batching",
    "train": "training.run",
    "tune": "tuning",
    "validate": "verify",
}

__all__ = [
    "AdaKronConfig",
    "AdaKronError",
    "AdaKronModel",
    "Artifact",
    "BenchReport",
    "ExportResult",
    "OnnxModel",
    "ParityReport",
    "Recipe",
    "Runner",
    "TrainingResult",
    "TuneReport",
    "__version__",
    "bench",
    "convert",
    "export_onnx",
    "fold",
    "inspect",
    "load_model",
    "open_artifact",
    "open_runner",
    "predict",
    "push_to_hub",
    "rescale_adapter_scale",
    "run_texts",
    "train",
    "tune",
    "validate",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    except ModuleNotFoundError as error:
        raise missing_package(error) or error from error


def __dir__() -> list[str]:
    return __all__


_peft_hook.install()

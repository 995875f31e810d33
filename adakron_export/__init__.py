"""adakron-export: transformers with adapters, taken to the machine where they have to run.

The public names load on first use, so that importing the package costs nothing. Importing it also makes PEFT
know the methods ``ADAKRON`` and ``BOTTLENECK``.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from adakron_export import _peft_hook
from adakron_export._version import __version__
from adakron_export.extras import missing_package

if TYPE_CHECKING:
    from adakron_export.adapter.bottleneck.config import BottleneckConfig
    from adakron_export.adapter.config import AdaKronConfig
    from adakron_export.adapter.tuner import AdaKronModel, rescale_adapter_scale
    from adakron_export.artifacts.artifact import Artifact, open_artifact
    from adakron_export.artifacts.shapes import EngineShapes
    from adakron_export.checkpoints.kinds import fold
    from adakron_export.checkpoints.loading import load_model
    from adakron_export.data.settings import TextSettings
    from adakron_export.engines.settings import EngineOptions
    from adakron_export.errors import AdaKronError
    from adakron_export.runtimes.bank import BankRunner
    from adakron_export.runtimes.base import Runner
    from adakron_export.runtimes.batching import run_texts
    from adakron_export.serving.settings import BulkSettings, PredictOptions, ServeSettings, TritonSettings
    from adakron_export.subjects.opening import open_bank, open_runner
    from adakron_export.subjects.subject import Subject
    from adakron_export.subjects.transformers_model import OnnxModel
    from adakron_export.timing.settings import Guard, Timing
    from adakron_export.training.recipe import Recipe
    from adakron_export.validation.limits import Batches, Limits
    from adakron_export.validation.parity import ParityReport
    from adakron_export.verbs.bank import (
        BankResult,
        add_to_bank,
        create_bank,
        remove_from_bank,
    )
    from adakron_export.verbs.bank_contents import ListedAdapter, export_adapter, list_bank
    from adakron_export.verbs.bank_proof import validate_bank
    from adakron_export.verbs.bench import BenchReport, bench
    from adakron_export.verbs.convert import convert
    from adakron_export.verbs.inspect import inspect
    from adakron_export.verbs.onnx import ExportResult, export_onnx
    from adakron_export.verbs.predict import predict
    from adakron_export.verbs.predict_files import predict_files
    from adakron_export.verbs.publish import push_to_hub
    from adakron_export.verbs.serve import serve, write_serve_config
    from adakron_export.verbs.settings import BankSettings, ExportSettings, MakingSettings
    from adakron_export.verbs.tensorrt import EngineResult, export_engine
    from adakron_export.verbs.train import TrainingResult, train
    from adakron_export.verbs.triton import triton
    from adakron_export.verbs.tune import TuneReport, tune
    from adakron_export.verbs.validate import validate

_HOMES = {
    "AdaKronConfig": "adapter.config",
    "AdaKronError": "errors",
    "BottleneckConfig": "adapter.bottleneck.config",
    "AdaKronModel": "adapter.tuner",
    "Artifact": "artifacts.artifact",
    "BankResult": "verbs.bank",
    "BankRunner": "runtimes.bank",
    "BankSettings": "verbs.settings",
    "Batches": "validation.limits",
    "BenchReport": "verbs.bench",
    "BulkSettings": "serving.settings",
    "EngineOptions": "engines.settings",
    "EngineResult": "verbs.tensorrt",
    "EngineShapes": "artifacts.shapes",
    "ExportResult": "verbs.onnx",
    "ExportSettings": "verbs.settings",
    "Guard": "timing.settings",
    "Limits": "validation.limits",
    "ListedAdapter": "verbs.bank_contents",
    "MakingSettings": "verbs.settings",
    "OnnxModel": "subjects.transformers_model",
    "ParityReport": "validation.parity",
    "PredictOptions": "serving.settings",
    "Recipe": "training.recipe",
    "Runner": "runtimes.base",
    "ServeSettings": "serving.settings",
    "Subject": "subjects.subject",
    "TextSettings": "data.settings",
    "Timing": "timing.settings",
    "TrainingResult": "verbs.train",
    "TritonSettings": "serving.settings",
    "TuneReport": "verbs.tune",
    "add_to_bank": "verbs.bank",
    "bench": "verbs.bench",
    "convert": "verbs.convert",
    "create_bank": "verbs.bank",
    "export_adapter": "verbs.bank_contents",
    "export_engine": "verbs.tensorrt",
    "export_onnx": "verbs.onnx",
    "fold": "checkpoints.kinds",
    "inspect": "verbs.inspect",
    "list_bank": "verbs.bank_contents",
    "load_model": "checkpoints.loading",
    "open_artifact": "artifacts.artifact",
    "open_bank": "subjects.opening",
    "open_runner": "subjects.opening",
    "predict": "verbs.predict",
    "predict_files": "verbs.predict_files",
    "push_to_hub": "verbs.publish",
    "remove_from_bank": "verbs.bank",
    "rescale_adapter_scale": "adapter.tuner",
    "run_texts": "runtimes.batching",
    "serve": "verbs.serve",
    "train": "verbs.train",
    "triton": "verbs.triton",
    "tune": "verbs.tune",
    "validate": "verbs.validate",
    "validate_bank": "verbs.bank_proof",
    "write_serve_config": "verbs.serve",
}

__all__ = [
    "AdaKronConfig",
    "AdaKronError",
    "AdaKronModel",
    "Artifact",
    "BankResult",
    "BottleneckConfig",
    "BankRunner",
    "BankSettings",
    "Batches",
    "BenchReport",
    "BulkSettings",
    "EngineOptions",
    "EngineResult",
    "EngineShapes",
    "ExportResult",
    "ExportSettings",
    "Guard",
    "Limits",
    "ListedAdapter",
    "MakingSettings",
    "OnnxModel",
    "ParityReport",
    "PredictOptions",
    "Recipe",
    "Runner",
    "ServeSettings",
    "Subject",
    "TextSettings",
    "Timing",
    "TrainingResult",
    "TritonSettings",
    "TuneReport",
    "__version__",
    "add_to_bank",
    "bench",
    "convert",
    "create_bank",
    "export_adapter",
    "export_engine",
    "export_onnx",
    "fold",
    "inspect",
    "list_bank",
    "load_model",
    "open_artifact",
    "open_bank",
    "open_runner",
    "predict",
    "predict_files",
    "push_to_hub",
    "remove_from_bank",
    "rescale_adapter_scale",
    "run_texts",
    "serve",
    "train",
    "triton",
    "tune",
    "validate",
    "validate_bank",
    "write_serve_config",
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

"""Loads an engine after checking that it belongs here. Loading runs code that is in the file: it must be trusted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from adakron_export.artifacts.engine import EngineFolder, EngineManifest
from adakron_export.engines.logger import CollectingLogger, collecting_logger
from adakron_export.errors import EngineError
from adakron_export.machine.flavors import FLAVORS
from adakron_export.machine.gpu import Gpu, first_gpu


@dataclass(frozen=True, slots=True)
class LoadedEngine:
    """An engine on the GPU.

    Attributes:
        trt: The flavor's module.
        engine: Its ``ICudaEngine``.
        logger: What it says; the engine needs it for as long as it lives.
        runtime: What loaded it; likewise.
    """

    trt: Any
    engine: Any
    logger: CollectingLogger
    runtime: Any

    def last_words(self) -> str:
        """The last errors that TensorRT told of."""
        return self.logger.last_words()


def load_engine(folder: EngineFolder) -> LoadedEngine:
    """Load an engine whose folder was opened, which checks its files.

    Raises:
        EngineError: The engine is of another version, for another GPU, without weights, or there is no GPU.
        MissingPackageError: Its flavor is not installed.
    """
    trt = check_loadable(folder)
    logger = collecting_logger(trt)
    runtime = trt.Runtime(logger)
    runtime.engine_host_code_allowed = folder.allow_code
    engine = runtime.deserialize_cuda_engine(folder.engine.read_bytes())
    if engine is None:
        raise EngineError(f"{folder.folder}: {trt.__name__} {trt.__version__} refuses it: {logger.last_words()}")
    return LoadedEngine(trt, engine, logger, runtime)


def check_loadable(folder: EngineFolder) -> Any:
    """Raise where an engine cannot be loaded, without loading it; arguments and errors as for `load_engine`.

    Returns:
        The module of its flavor.
    """
    gpu = first_gpu()
    if gpu is None:
        raise EngineError(f"{folder.folder}: this machine has no NVIDIA GPU, or no driver for it, to run an engine on")
    trt = FLAVORS[folder.manifest.flavor].load()
    if folder.manifest.options.get("version_compatible") and not folder.allow_code:
        raise EngineError(
            f"{folder.folder}: its plan is version compatible: it brings a runtime of its own, host code that has all "
            "your rights; if you trust who built it, pass --allow-engine-code (allow_engine_code=True)"
        )
    problem = misfit(folder.manifest, version=str(trt.__version__), gpu=gpu)
    if problem:
        raise EngineError(f"{folder.folder}: {problem}")
    return trt


def misfit(manifest: EngineManifest, *, version: str, gpu: Gpu) -> str | None:
    """Why an engine cannot be loaded; ``None`` where it can.

    Args:
        manifest: What the engine's manifest says.
        version: Version of the builder that is installed.
        gpu: What it would run on.
    """
    options = manifest.options
    if options.get("strip_weights"):
        return "it holds no weights; put them in with TensorRT's refitter, or build it without --strip-weights"
    if version != manifest.version and not options.get("version_compatible"):
        return f"built by {manifest.flavor} {manifest.version}, here is {version}; build it again"
    here = gpu.compute_capability
    if manifest.compute_capability and here not in manifest.compute_capability:
        return f"built for compute capability {', '.join(manifest.compute_capability)}, the {gpu.name} has {here}"
    alike = manifest.built_on in (None, here) or options.get("hardware_compatible")
    if FLAVORS[manifest.flavor].needs_gpu and not alike:
        return (
            f"built on a GPU of compute capability {manifest.built_on}, the {gpu.name} has {here}; build it here, or "
            "with --hardware-compatible"
        )
    return None

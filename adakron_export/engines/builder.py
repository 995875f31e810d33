"""Builds an engine from an artifact; one builder for both flavors, whose Python interfaces are nearly the same."""

from __future__ import annotations

import contextlib
import logging
import re
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adakron_export.artifacts.artifact import Artifact
from adakron_export.artifacts.shapes import DEFAULT_ADAPTERS, Profile, bank_shapes, tensor_shape
from adakron_export.engines.logger import collecting_logger
from adakron_export.engines.settings import EngineOptions
from adakron_export.errors import BuildError, EngineError, first_few
from adakron_export.graph.keys import MODULE_KEY
from adakron_export.machine.flavors import Flavor
from adakron_export.machine.gpu import has_gpu

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class BuiltEngine:
    """An engine in memory.

    Attributes:
        plan: Its bytes.
        version: Version of the library that built it.
        layers: Layers of the network as it was parsed.
        seconds: What the build took, parsing included.
    """

    plan: memoryview
    version: str
    layers: int
    seconds: float


def build_engine(
    artifact: Artifact, profiles: Sequence[Profile], flavor: Flavor, options: EngineOptions, *, log: Path,
    max_adapters: int = DEFAULT_ADAPTERS,
) -> BuiltEngine:  # fmt: skip
    """Parse an artifact and build its engine. The precision is the graph's own.

    Args:
        artifact: An artifact of any target and dtype.
        profiles: The shapes it shall take.
        flavor: The builder.
        options: How.
        log: Where everything goes that the builder says.
        max_adapters: The most adapters, of a bank.

    Raises:
        EngineError: An option is refused, or there is no GPU where one is needed.
        BuildError: A node is refused, or the build fails; the log says more.
        MissingPackageError: The flavor is not installed.
        KeyboardInterrupt: Ctrl-C was pressed; the builder has stopped.
    """
    options.check(flavor)
    trt = flavor.load()
    if flavor.needs_gpu and not has_gpu():
        raise EngineError("TensorRT builds only where an NVIDIA GPU is; --flavor rtx builds on any machine")
    start = time.perf_counter()
    with log.open("w", encoding="utf-8") as stream, _interruptible() as interrupted:
        logger = collecting_logger(trt, stream)
        builder = trt.Builder(logger)
        network = builder.create_network(strongly_typed(trt))
        parser = trt.OnnxParser(network, logger)
        _log.info("parse the graph")
        if not parser.parse_from_file(str(artifact.model)):
            raise BuildError(f"{flavor.tool} refuses {artifact.model}: {_parser_errors(parser, artifact)}")
        config = builder.create_builder_config()
        for profile in profiles:
            config.add_optimization_profile(_profile(builder, artifact, profile, max_adapters))
        cache = _configure(trt, config, options)
        config.progress_monitor = _monitor(trt, interrupted)
        plan = builder.build_serialized_network(network, config)
        if interrupted.is_set():
            raise KeyboardInterrupt
        if plan is None:
            said = logger.last_words()
            raise BuildError(f"{flavor.tool} cannot build {artifact.model}: {said}{modules_named(artifact, said)}")
        if cache is not None and options.timing_cache is not None:
            options.timing_cache.write_bytes(bytes(config.get_timing_cache().serialize()))
        return BuiltEngine(memoryview(plan), trt.__version__, network.num_layers, time.perf_counter() - start)


@contextlib.contextmanager
def _interruptible() -> Iterator[threading.Event]:
    """Ctrl-C sets the event: an exception must not pass through the builder, which asks at every step."""
    interrupted = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield interrupted
        return
    before = signal.signal(signal.SIGINT, lambda *_: interrupted.set())
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, before)


def strongly_typed(trt: Any) -> int:
    """The flag by which the graph decides on precision; TensorRT 10 must be told, others know no other way."""
    if trt.__name__ == "tensorrt" and int(trt.__version__.partition(".")[0]) < 11:
        return 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    return 0


def _profile(builder: Any, artifact: Artifact, profile: Profile, max_adapters: int) -> Any:
    found = builder.create_optimization_profile()
    for info in artifact.manifest.inputs:
        sizes = zip(profile.shapes, profile.pasts, strict=True)
        found.set_shape(info.name, *(tensor_shape(info, shape, past) for shape, past in sizes))
    bank = artifact.manifest.bank
    for name, shapes in bank_shapes(bank, profile, max_adapters).items() if bank is not None else ():
        found.set_shape(name, *shapes)
    return found


def _configure(trt: Any, config: Any, options: EngineOptions) -> Any:
    """Set the options; the timing cache, where there is one."""
    _set_capabilities(trt, config, options.compute_capability or ())
    if options.workspace_mb is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mb * 2**20)
    for wanted, flag in (
        (options.version_compatible, "VERSION_COMPATIBLE"),
        (options.strip_weights, "STRIP_PLAN"),
        (options.refittable, "REFIT"),
    ):
        if wanted:
            config.set_flag(getattr(trt.BuilderFlag, flag))
    if options.hardware_compatible:
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    return None if options.timing_cache is None else _set_timing_cache(config, options.timing_cache)


def _set_timing_cache(config: Any, file: Path) -> Any:
    cache = config.create_timing_cache(file.read_bytes() if file.is_file() else b"")
    if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
        raise EngineError(f"{file} is no timing cache of this GPU and version; name another file")
    return cache


def _set_capabilities(trt: Any, config: Any, names: Sequence[str]) -> None:
    capabilities = [_capability(trt, name) for name in names]
    if capabilities:
        config.num_compute_capabilities = len(capabilities)
    for index, capability in enumerate(capabilities):
        config.set_compute_capability(capability, index)


def _capability(trt: Any, text: str) -> Any:
    name = f"SM{text.replace('.', '')}"
    known = {each: getattr(trt.ComputeCapability, each) for each in dir(trt.ComputeCapability) if each[:2] == "SM"}
    if name not in known:
        there = sorted(((each[2:-1] + "." + each[-1]) for each in known), key=float)
        raise EngineError(f"compute capability {text!r} is unknown to {trt.__name__} {trt.__version__}; it has "
                          f"{', '.join(there)}")  # fmt: skip
    return known[name]


def _monitor(trt: Any, interrupted: threading.Event) -> Any:
    """Tells of the outermost phases, and stops the build when it was interrupted."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc,unused-ignore]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, name: str, parent: str | None, steps: int) -> None:  # noqa: ARG002, RUF100
            if not parent:
                _log.info("build: %s", name)

        def step_complete(self, name: str, step: int) -> bool:  # noqa: ARG002, RUF100
            return not interrupted.is_set()

        def phase_finish(self, name: str) -> None:
            pass

    return Monitor()


def _parser_errors(parser: Any, artifact: Artifact) -> str:
    """What is wrong, at which node, and what that is in the model."""
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    if not errors:
        return "without a word"
    first = errors[0]
    node = f" at node {first.node_name()} ({first.node_operator()})" if first.node_name() else ""
    place = modules_named(artifact, first.node_name())
    return f"{first.desc().strip()}{node}{place}; export it with --target tensorrt, or with another opset"


def modules_named(artifact: Artifact, message: str) -> str:
    """Which modules of the model the nodes are that a message names, as its continuation; empty if it names none."""
    import onnx_ir as ir

    words = set(re.findall(r"[\w./]+", message))
    found = [
        f"{node.name} is in {node.metadata_props[MODULE_KEY]}"
        for node in ir.load(artifact.model).graph
        if node.name in words and MODULE_KEY in node.metadata_props
    ]
    return f" ({first_few(found, 3)})" if found else ""

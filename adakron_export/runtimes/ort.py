"""ONNX Runtime."""

from __future__ import annotations

import contextlib
import itertools
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from adakron_export.artifacts.artifact import Artifact
from adakron_export.artifacts.manifest import Manifest, Tuning
from adakron_export.errors import RunnerError, first_few
from adakron_export.extras import require
from adakron_export.graph.dtypes import dtype_named
from adakron_export.graph.keys import EXACT_SUMS, FLOAT_PRODUCTS
from adakron_export.machine.description import describe_machine
from adakron_export.runtimes.base import Array, GraphRunner
from adakron_export.runtimes.huge_pages import Moving, huge_pages
from adakron_export.runtimes.integer_sums import saturates
from adakron_export.runtimes.table import RUNTIMES

# What a model spends its time on; ONNX Runtime may well compute shapes on the CPU while these run on a GPU.
_HEAVY = {
    "Attention", "BiasGelu", "BiasSoftmax", "Conv", "DynamicQuantizeMatMul", "EmbedLayerNormalization", "Erf",
    "FastGelu", "FusedGemm", "FusedMatMul", "Gelu", "Gemm", "LayerNormalization", "MatMul", "MatMulInteger",
    "MatMulNBits", "MultiHeadAttention", "QLinearMatMul", "QuickGelu", "SkipLayerNormalization", "Softmax",
}  # fmt: skip

_UNRECORDED = -1  # in the place of a recorded launch's number

_PROVIDERS = {row.device: row.provider for row in RUNTIMES.values() if row.provider is not None}


class OrtRunner(GraphRunner[Manifest]):
    """An artifact in an ONNX Runtime session.

    Args:
        artifact: The opened folder, or the manifest and file of one that is being made.
        device: A device of ONNX Runtime; another provider is never used in its place.
        threads: Threads per operator; by default what `tune` found on this machine, or else ONNX Runtime's choice.
        optimize: Whether ONNX Runtime may rewrite the graph; without, every value can be looked at.
        record_launches: Whether launches are recorded once per batch of `prepare` and replayed; only for timing.

    Raises:
        RunnerError: The device is not available, does not compute all of the graph, or ONNX Runtime refuses it.
        MissingPackageError: ONNX Runtime is not installed.
    """

    def __init__(
        self, artifact: Artifact, *, device: str = "cpu", threads: int | None = None, optimize: bool = True,
        record_launches: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(artifact.manifest, artifact.folder)
        self.device = device
        self.on_gpu = device != "cpu"
        tuning = _tuning_here(self.manifest) if device == "cpu" else None
        options = _session_options(threads, tuning, optimize=optimize)
        if device == "cpu" and saturates():
            # Of fixed scales, which an emulated graph may have too, it cannot make exact sums (1.32).
            spec = self.manifest.spec
            sums = dtype_named(spec.dtype).quantised and not spec.needs_text
            options.add_session_config_entry(EXACT_SUMS if sums else FLOAT_PRODUCTS, "1")
        settings, provider = _settings(device, record_launches=record_launches), _PROVIDERS[device]
        disabled = tuning.disabled_optimizers if tuning else self.manifest.disabled_optimizers
        model = _with_attention(artifact, tuning.attention, options) if tuning and tuning.attention else artifact.model
        with huge_pages() if device == "cpu" else contextlib.nullcontext(Moving()) as self._moving:
            self.session = _open_session(artifact, model, device, settings, options, disabled)
        _check_placement(self.session, provider)
        self.name = f"onnxruntime {provider}"
        self._graph_ids = itertools.count(1) if record_launches else itertools.repeat(_UNRECORDED)

    def hold(self, stacks: Mapping[str, Array]) -> dict[str, Any]:
        """Inputs that stay; see `HoldingRunner`. On the CPU they share the memory of what is handed over."""
        import onnxruntime as ort  # noqa: TID253, RUF100

        device = "cuda" if self.device in ("cuda", "tensorrt") else "cpu"
        return {name: ort.OrtValue.ortvalue_from_numpy(array, device, 0) for name, array in stacks.items()}

    def run_feed(
        self, feed: Mapping[str, Array], held: Mapping[str, Any], names: Sequence[str] | None = None
    ) -> dict[str, Array]:
        """Run what `feed` made, beside what `hold` holds; see `HoldingRunner`."""
        options, wanted = self._run_options(_UNRECORDED), list(names or self.output_names)
        outputs = self._guarded(lambda: self.session.run(wanted, {**feed, **held}, options))
        return dict(zip(wanted, outputs, strict=True))

    def run_values(self, names: Sequence[str], values: Mapping[str, Any]) -> dict[str, Any]:
        """Run on values that ONNX Runtime holds on the CPU, where the outputs stay too: nothing is copied."""
        found = self._guarded(lambda: self.session.run_with_ort_values(list(names), dict(values)))
        return dict(zip(names, found, strict=True))

    def run_bound(self, binding: Any) -> None:
        """Run what is bound to its places."""
        options = self._run_options(_UNRECORDED)
        self._guarded(lambda: self.session.run_with_iobinding(binding, options))
        if self.on_gpu:
            binding.synchronize_outputs()

    def prepare_feed(self, feed: Mapping[str, Array], held: Mapping[str, Any]) -> Callable[[], float]:
        """A timed run of the same; see `HoldingRunner`."""
        self._moving.wait()
        names = list(self.output_names)
        if self.device in ("cpu", "tensorrt-rtx"):  # the plugin takes its inputs from the host
            every = {**feed, **held}
            return lambda: _seconds(lambda: self._guarded(lambda: self.session.run(names, every)))
        import onnxruntime as ort  # noqa: TID253, RUF100

        binding = self.session.io_binding()
        for name, array in feed.items():
            binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array, "cuda", 0))
        for name, value in held.items():
            binding.bind_ortvalue_input(name, value)
        for name, array in self.run_feed(
            feed, held
        ).items():  # a recorded launch needs outputs that stay where they are
            binding.bind_ortvalue_output(
                name, ort.OrtValue.ortvalue_from_shape_and_type(array.shape, array.dtype, "cuda", 0)
            )
        options = self._run_options(next(self._graph_ids))

        def once() -> None:
            self.session.run_with_iobinding(binding, options)
            binding.synchronize_outputs()

        return lambda: _seconds(lambda: self._guarded(once))

    def _run_options(self, graph_id: int) -> Any:
        """Of a run whose launches are recorded under this number, and replayed when it comes again."""
        import onnxruntime as ort  # noqa: TID253, RUF100

        options = ort.RunOptions()
        if self.device == "cuda":
            options.add_run_config_entry("gpu_graph_id", str(graph_id))
        return options

    def _guarded(self, run: Callable[[], Any]) -> Any:
        try:
            return run()
        except Exception as error:  # its exceptions share no base class
            raise RunnerError(f"{self.name} cannot run this batch: {_first_line(error)}") from error


def _seconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:400]


def _settings(device: str, *, record_launches: bool) -> dict[str, str]:
    """The provider's options: fp32 is fp32, where CUDA would by default round products to TF32's 10 bits."""
    if device == "cuda":
        return {"use_tf32": "0", **({"enable_cuda_graph": "1"} if record_launches else {})}
    if device == "tensorrt":
        return {"trt_cuda_graph_enable": "1"} if record_launches else {}
    return {}


def _tuning_here(manifest: Manifest) -> Tuning | None:
    machine = describe_machine(device="cpu", threads=None)
    tuning = manifest.tuning
    same = tuning is not None and (tuning.processor, tuning.cores) == (machine["processor"], machine["cores"])
    return tuning if same else None


def _session_options(threads: int | None, tuning: Tuning | None, *, optimize: bool) -> Any:
    ort = require("onnxruntime", extra="cpu' or 'adakron-export[gpu")
    options = ort.SessionOptions()
    options.log_severity_level = 4  # fatal; its errors come as exceptions too, which we show
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    if threads is not None:
        if threads < 1:
            raise RunnerError(f"threads is {threads}; it must be at least 1")
        options.intra_op_num_threads = threads
    elif tuning is not None and tuning.threads is not None:
        options.intra_op_num_threads = tuning.threads
    if tuning is not None and not tuning.spinning:
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return options


def _with_attention(artifact: Artifact, form: str, options: Any) -> bytes:
    """The graph with its attention in another form; weights of a file of their own stay there."""
    import onnx_ir as ir

    from adakron_export.graph.passes.attention_forms import AttentionFormPass

    model = AttentionFormPass(form)(ir.load(artifact.model)).model
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", str(artifact.model.parent)
    )
    return bytes(ir.serde.serialize_model(model).SerializeToString())


def _open_session(
    artifact: Artifact, model: Path | bytes, device: str, settings: dict[str, str], options: Any,
    disabled: Sequence[str],
) -> Any:  # fmt: skip
    file, manifest, name = artifact.model, artifact.manifest, _PROVIDERS[device]
    if manifest.spec.dtype == "bf16" and device == "cpu":
        raise RunnerError("ONNX Runtime has no bf16 on the CPU; open it with device cuda, or export fp32 for the CPU")
    import onnxruntime as ort  # noqa: TID253, RUF100

    providers: list[Any] = [(name, settings)]
    if device == "tensorrt-rtx":
        _add_plugin(options, name)
        providers = []
    elif name not in ort.get_available_providers():
        raise RunnerError(
            f"this onnxruntime has no {name} (it has {', '.join(ort.get_available_providers())}); "
            "for a GPU install adakron-export[gpu] instead of adakron-export[cpu]"
        )
    if device in ("cuda", "tensorrt"):
        with contextlib.redirect_stdout(sys.stderr):  # it prints, and our stdout is the result
            ort.preload_dlls()  # CUDA and cuDNN of NVIDIA's pip packages, which torch brings along
    try:
        session = ort.InferenceSession(
            model,
            options,
            providers=providers,
            disabled_optimizers=list(disabled),
            enable_fallback=0,  # to another provider, with lines on stdout
        )
    except Exception as error:  # its exceptions share no base class
        raise RunnerError(f"ONNX Runtime {ort.__version__} refuses {file}: {_first_line(error)}") from error
    if session.get_providers()[0] != name:
        raise RunnerError(f"ONNX Runtime fell back from {name} to {session.get_providers()[0]}")
    _check_signature(session, manifest, file)
    return session


def _add_plugin(options: Any, name: str) -> None:
    """Let a session use TensorRT for RTX, which is no part of ONNX Runtime and is loaded beside it."""
    plugin = require("onnxruntime_ep_nv_tensorrt_rtx", extra="ort-rtx")
    import onnxruntime as ort  # noqa: TID253, RUF100

    try:
        if not any(device.ep_name == name for device in ort.get_ep_devices()):
            ort.register_execution_provider_library(name, plugin.get_library_path())
        devices = [device for device in ort.get_ep_devices() if device.ep_name == name]
    except Exception as error:  # its exceptions share no base class
        raise RunnerError(
            f"ONNX Runtime cannot load {name}, which needs an NVIDIA driver with CUDA 13: {_first_line(error)}"
        ) from error
    if not devices:
        raise RunnerError(f"{name} finds no GPU that it can run on; it needs one of Ampere or later")
    options.add_provider_for_devices(devices[:1], {})


def _check_signature(session: Any, manifest: Manifest, model: Path) -> None:
    for kind, infos, values in (
        ("inputs", manifest.inputs, session.get_inputs()),
        ("outputs", manifest.outputs, session.get_outputs()),
    ):
        said, found = {info.name for info in infos}, {value.name for value in values}
        if not said <= found or (kind == "inputs" and not found <= {*said, *manifest.bank_inputs}):
            raise RunnerError(f"{model} has the {kind} {', '.join(sorted(found))}, its manifest says {sorted(said)}")


def _check_placement(session: Any, provider: str) -> None:
    """Refuse a session that computes on the CPU what was meant for another device, whatever its providers say."""
    if provider == _PROVIDERS["cpu"] or not hasattr(session, "get_provider_graph_assignment_info"):
        return
    elsewhere = misplaced(session.get_provider_graph_assignment_info(), provider)
    if elsewhere:
        raise RunnerError(
            f"{provider} leaves {len(elsewhere)} operators to the CPU ({first_few(elsewhere, 3)}); it would be slow "
            "without a word: export with another dtype or target, or run on device cpu"
        )


def misplaced(assignments: Iterable[Any], provider: str) -> list[str]:
    """Operators that take time and were not given to a provider.

    Args:
        assignments: ONNX Runtime's own account of its sub-graphs, each with a provider and nodes.
        provider: Where they should be.
    """
    return [
        f"{node.name} ({node.op_type})"
        for part in assignments
        if part.ep_name != provider
        for node in part.get_nodes()
        if node.op_type in _HEAVY
    ]

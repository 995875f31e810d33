"""TensorRT engines, of both flavors, on a GPU."""

from __future__ import annotations

import itertools
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from adakron_export.artifacts.engine import EngineFolder, EngineManifest
from adakron_export.artifacts.manifest import TensorInfo
from adakron_export.artifacts.shapes import Shape, bounds_text, choose_profile, shape_text
from adakron_export.engines.loading import LoadedEngine, load_engine
from adakron_export.errors import RunnerError
from adakron_export.runtimes.base import Array, GraphRunner

_RECORDED_SHAPES = 16  # each keeps a context, with memory for its activations


class TensorRTRunner(GraphRunner[EngineManifest]):
    """An engine.

    Args:
        folder: Its opened folder.
        record_launches: Whether launches are recorded once per shape and replayed. TensorRT for RTX does that itself;
            for TensorRT each shape keeps a context of its own, of the last 16 shapes.

    Raises:
        EngineError: The engine does not belong to this GPU or version, or there is no GPU.
        MissingPackageError: Its flavor is not installed.
        RunnerError: This PyTorch has no CUDA, which holds the tensors.
    """

    device = "cuda"
    on_gpu = True

    def __init__(self, folder: EngineFolder, *, record_launches: bool = False) -> None:
        super().__init__(folder.manifest, folder.folder)
        self._loaded = load_engine(folder)
        self._memory = _GpuMemory()
        self._by_itself = record_launches and self.manifest.flavor == "rtx"
        self._recording = record_launches and not self._by_itself
        self._contexts = {index: self._new_context(index) for index in range(len(self.manifest.bounds))}
        self._recorded: OrderedDict[tuple[Any, ...], _Launch] = OrderedDict()
        self._turn = threading.Lock()  # a context computes one batch at a time
        self.name = f"{self._loaded.trt.__name__} {self.manifest.version} on {self._memory.device_name}"

    def hold(self, stacks: Mapping[str, Array]) -> dict[str, Any]:
        """Inputs that stay on the GPU; see `HoldingRunner`.

        Raises:
            RunnerError: There are more adapters than the engine was built for.
        """
        most, count = self.manifest.max_adapters, len(next(iter(stacks.values()), ()))
        if most is not None and count > most:
            raise RunnerError(
                f"the engine takes {most} adapters, and {count} are needed; build it with --max-adapters"
            )
        with self._turn, self._memory.on_stream():
            held = {name: self._memory.zeros(array.shape, array.dtype.name) for name, array in stacks.items()}
            for name, array in stacks.items():
                self._memory.upload(array, held[name])
            self._memory.synchronize()
        return held

    def run_feed(
        self, feed: Mapping[str, Array], held: Mapping[str, Any], names: Sequence[str] | None = None
    ) -> dict[str, Array]:
        """Run what `feed` made, beside what `hold` holds; see `HoldingRunner`."""
        with self._turn, self._memory.on_stream():
            launch = self._launch(feed, held)
            launch.put(feed)
            launch.start()
            found = launch.get()
        return {name: found[name] for name in names or self.output_names}

    def prepare_feed(self, feed: Mapping[str, Array], held: Mapping[str, Any]) -> Callable[[], float]:
        """A timed run of the same; see `HoldingRunner`."""
        with self._turn, self._memory.on_stream():
            launch = self._new_launch(feed, held)
            launch.put(feed)
            self._memory.synchronize()

        def once() -> float:
            with self._turn, self._memory.on_stream():
                start = time.perf_counter()
                launch.start()
                self._memory.synchronize()
                return time.perf_counter() - start

        return once

    def _shape(self, feed: Mapping[str, Array]) -> Shape:
        """Texts and tokens; images have no tokens, and those of a profile mean nothing to them."""
        array = feed[self.input_names[0]]
        return len(array), array.shape[1] if array.ndim == 2 else self.manifest.bounds[0][0][1]

    def _launch(self, feed: Mapping[str, Array], held: Mapping[str, Any]) -> _Launch:
        """One that was recorded for the shapes, or one for this batch alone."""
        if not self._recording:
            return self._new_launch(feed, held)
        key = (*(array.shape for array in feed.values()), *(tensor.data_ptr() for tensor in held.values()))
        launch = self._recorded.pop(key, None) or self._new_launch(feed, held)
        self._recorded[key] = launch
        while len(self._recorded) > _RECORDED_SHAPES:
            self._recorded.popitem(last=False)
        return launch

    def _new_launch(self, feed: Mapping[str, Array], held: Mapping[str, Any]) -> _Launch:
        shape = self._shape(feed)
        profile = choose_profile(self.manifest.bounds, shape)
        if profile is None:
            raise RunnerError(
                f"the batch is {shape_text(shape)} (texts x tokens), the engine takes "
                f"{bounds_text(self.manifest.bounds)}; split the batch, or build it with another --max-shape"
            )
        context = self._new_context(profile) if self._recording else self._contexts[profile]
        own = {name: self._memory.zeros(array.shape, array.dtype.name) for name, array in feed.items()}
        launch = _Launch(self._loaded, context, self._memory, {**own, **held}, self.manifest.outputs)
        if self._recording:
            launch.record()
        return launch

    def _new_context(self, profile: int) -> Any:
        engine, trt = self._loaded.engine, self._loaded.trt
        if self._by_itself:
            config = engine.create_runtime_config()
            config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
            context = engine.create_execution_context(config)
        else:
            context = engine.create_execution_context()
        if context is None:
            raise RunnerError(f"the engine gets no context, perhaps for want of memory: {self._loaded.last_words()}")
        if not context.set_optimization_profile_async(profile, self._memory.stream_handle):
            raise RunnerError(f"the engine refuses its profile {profile}: {self._loaded.last_words()}")
        self._memory.synchronize()
        return context


class _Launch:
    """One set of shapes in one context: where its inputs and outputs lie, and how it is started."""

    def __init__(
        self, loaded: LoadedEngine, context: Any, memory: _GpuMemory, inputs: Mapping[str, Any],
        outputs: tuple[TensorInfo, ...],
    ) -> None:  # fmt: skip
        self._loaded, self._context, self._memory = loaded, context, memory
        self._inputs = inputs
        self._set_shapes()
        missing = context.infer_shapes()
        if missing:
            shapes = ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in inputs.items())
            raise RunnerError(f"the engine's shapes of {', '.join(missing)} stay open at {shapes:.400}")
        self._outputs = {
            info.name: memory.zeros(tuple(context.get_tensor_shape(info.name)), info.dtype) for info in outputs
        }
        self._graph: Any = None

    def put(self, feed: Mapping[str, Array]) -> None:
        """Bring a batch to the GPU."""
        for name, array in feed.items():
            self._memory.upload(array, self._inputs[name])

    def record(self) -> None:
        """Record the launch; the first one is not recorded, for it may still allocate."""
        self._enqueue()
        self._graph = self._memory.record(self._enqueue)

    def start(self) -> None:
        """Begin to compute."""
        if self._graph is not None:
            self._graph.replay()
            return
        self._set_shapes()
        self._enqueue()

    def get(self) -> dict[str, Array]:
        """Wait for the outputs."""
        found = {name: self._memory.download(tensor) for name, tensor in self._outputs.items()}
        self._memory.synchronize()
        return found

    def _set_shapes(self) -> None:
        """A context that others use too has forgotten them."""
        for name, tensor in self._inputs.items():
            if not self._context.set_input_shape(name, tuple(tensor.shape)):
                raise RunnerError(f"the engine refuses {name} {list(tensor.shape)}: {self._loaded.last_words()}")

    def _enqueue(self) -> None:
        for name, tensor in itertools.chain(self._inputs.items(), self._outputs.items()):
            self._context.set_tensor_address(name, tensor.data_ptr())
        if not self._context.execute_async_v3(self._memory.stream_handle):
            raise RunnerError(f"the engine cannot run this batch: {self._loaded.last_words()}")


class _GpuMemory:
    """Tensors on the GPU, through PyTorch, whose allocators keep what they once had, page-locked memory included."""

    def __init__(self) -> None:
        import torch

        if not torch.cuda.is_available():
            raise RunnerError(
                f"this PyTorch ({torch.__version__}) sees no CUDA device, which an engine needs; "
                "`adakron-export doctor` says what is missing"
            )
        self._torch = torch
        self._stream = torch.cuda.Stream()
        self.stream_handle: int = self._stream.cuda_stream
        self.device_name: str = torch.cuda.get_device_name()

    def on_stream(self) -> Any:
        """All that follows goes to the stream."""
        return self._torch.cuda.stream(self._stream)

    def zeros(self, shape: tuple[int, ...], dtype: str) -> Any:
        """A tensor of a dtype as numpy names it; a recording runs on it first, and no token may be out of range."""
        return self._torch.zeros(shape, dtype=getattr(self._torch, dtype), device="cuda")

    def upload(self, array: Array, tensor: Any) -> None:
        """Copy without waiting."""
        tensor.copy_(self._torch.from_numpy(array).pin_memory(), non_blocking=True)

    def download(self, tensor: Any) -> Array:
        """Copy without waiting: read it after `synchronize`."""
        host = self._torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        host.copy_(tensor, non_blocking=True)
        array: Array = host.numpy()
        return array

    def record(self, launch: Callable[[], None]) -> Any:
        """A CUDA graph of what is launched."""
        self.synchronize()
        graph = self._torch.cuda.CUDAGraph()
        with self._torch.cuda.graph(graph, stream=self._stream):
            launch()
        return graph

    def synchronize(self) -> None:
        """Wait for the stream."""
        self._stream.synchronize()

"""Eager PyTorch: the reference that every other runtime is compared with."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adakron_export.checkpoints.task_model import TaskModel
from adakron_export.errors import RunnerError
from adakron_export.runtimes.base import Array, Batch, check_batch, check_values, past_of
from adakron_export.runtimes.decoding import Decoder, Kept
from adakron_export.tasks import without_cache


class EagerRunner:
    """A `TaskModel`, folded or not.

    Args:
        model: Moved to the device and put into eval mode.
        device: ``cpu`` or ``cuda``.

    Raises:
        RunnerError: There is no such device here.
    """

    def __init__(self, model: TaskModel, *, device: str = "cpu") -> None:
        if device not in ("cpu", "cuda"):
            raise RunnerError(f"eager PyTorch runs on cpu or cuda, not on {device!r}")
        if device == "cuda" and not torch.cuda.is_available():
            raise RunnerError(f"this PyTorch ({torch.__version__}) sees no CUDA device; use device cpu")
        self.model = model.eval().to(device)
        self.device = device
        self.on_gpu = device == "cuda"
        kind = {torch.float32: "fp32", torch.float64: "fp64"}.get(self._floating, str(self._floating)[6:])
        self.name = f"eager PyTorch {kind}" + (" on CUDA" if device == "cuda" else "")
        self.input_names = model.signature.texts
        self.output_names = without_cache(model.signature.outputs)

    def decoder(self) -> Decoder:
        """Steps that keep PyTorch's own tensors."""
        return _EagerDecoder(self)

    @property
    def _floating(self) -> torch.dtype:
        return next(self.model.parameters()).dtype

    def run(self, batch: Batch) -> dict[str, Array]:
        """Run one batch; see `Runner.run`."""
        found = self.run_cached(batch)
        return {name: found[name] for name in self.output_names}

    def run_cached(self, batch: Batch) -> dict[str, Array]:
        """Run one batch; see `CachedRunner`."""
        outputs = self._forward(self._tensors(batch))
        return {name: out.cpu().numpy() for name, out in zip(self.model.signature.outputs, outputs, strict=True)}

    def step(self, batch: Batch, kept: Kept | None) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Read more tokens of a model with a cache.

        Returns:
            The logits, and the keys and values that are kept now.
        """
        held = kept.values if kept is not None else {}
        tensors = self._tensors(batch, held)
        logits, *values = self._forward(tensors)
        return logits, tuple(values)

    def prepare(self, batch: Batch) -> Callable[[], float]:
        """A timed run; see `Runner.prepare`. On CUDA the batch is there already, and events take the time."""
        tensors = self._tensors(batch)
        return (lambda: self._timed_on_cuda(tensors)) if self.device == "cuda" else (lambda: self._timed(tensors))

    def _timed(self, tensors: list[Tensor]) -> float:
        start = time.perf_counter()
        self._forward(tensors)
        return time.perf_counter() - start

    def _timed_on_cuda(self, tensors: list[Tensor]) -> float:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()  # type: ignore[no-untyped-call, unused-ignore]
        self._forward(tensors)
        end.record()  # type: ignore[no-untyped-call, unused-ignore]
        end.synchronize()  # type: ignore[no-untyped-call, unused-ignore]
        return float(start.elapsed_time(end)) / 1000

    def _forward(self, tensors: list[Tensor]) -> tuple[Tensor, ...]:
        try:
            with torch.inference_mode():
                outputs: tuple[Tensor, ...] = self.model(*tensors)
        except (RuntimeError, IndexError, MemoryError) as error:  # too little memory, a token out of the vocabulary
            reason = (str(error) or type(error).__name__).splitlines()[0][:300]
            raise RunnerError(f"{self.name} cannot run this batch: {reason}") from error
        return outputs

    def trace(self, batch: Batch) -> dict[str, Array]:
        """What each module puts out, in the order in which they end; of one that runs several times, the last."""
        found: dict[str, Array] = {}

        def watch(name: str, output: object) -> None:
            first = output[0] if isinstance(output, tuple) and output else output
            if isinstance(first, Tensor) and first.is_floating_point():
                found.pop(name, None)
                found[name] = first.detach().to(torch.float64).cpu().numpy()

        hooks = [
            module.register_forward_hook(lambda _module, _args, output, name=name: watch(name, output))
            for name, module in self.model.model.named_modules()
            if name
        ]
        try:
            self.run(batch)
        finally:
            for hook in hooks:
                hook.remove()
        return found

    def _tensors(self, batch: Batch, held: Mapping[str, Tensor] | None = None) -> list[Tensor]:
        """The inputs; keys and values may be held as tensors already."""
        signature, past = self.model.signature, dict[str, Array]()
        if signature.past and not held:
            past = past_of(batch, [(name, *shape) for name, shape in signature.past.items()], np.float32)
        given = {name: values for name, values in batch.items() if name not in past}
        kept: Mapping[str, Any] = held or past
        check_batch(given, self.input_names, before=next(iter(kept.values())).shape[2] if kept else 0)
        check_values(given)
        arrays = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in {**given, **past}.items()}
        tensors = [{**arrays, **(held or {})}[name].to(self.device) for name in signature.inputs]
        return [tensor.to(self._floating) if tensor.is_floating_point() else tensor for tensor in tensors]


class _EagerDecoder:
    """Steps of an `EagerRunner`; see `Decoder`."""

    def __init__(self, runner: EagerRunner) -> None:
        self._runner = runner

    def step(self, batch: Batch, kept: Kept | None) -> tuple[Array, Kept]:
        """Read more tokens; see `Decoder.step`."""
        logits, values = self._runner.step(batch, kept)
        names = self._runner.model.signature.past
        shape = values[0].shape
        return logits.cpu().numpy(), Kept(dict(zip(names, values, strict=True)), shape[0], shape[2])

    def select(self, kept: Kept, rows: Sequence[int] | Array) -> Kept:
        """What is kept of some rows; see `Decoder.select`."""
        chosen = torch.as_tensor(np.asarray(rows), device=self._runner.device)
        return Kept({name: value[chosen] for name, value in kept.values.items()}, len(rows), kept.tokens)

    def crop(self, kept: Kept, tokens: int) -> Kept:
        """What is kept of the first tokens; see `Decoder.crop`."""
        return Kept({name: value[:, :, :tokens] for name, value in kept.values.items()}, kept.texts, tokens)

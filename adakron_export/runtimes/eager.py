"""Eager PyTorch: the reference that every other runtime is compared with."""

from __future__ import annotations

import numpy as np
import torch

from adakron_export.adapter.task_model import TaskModel
from adakron_export.runtimes.base import Array, Batch, check_batch


class EagerRunner:
    """A `TaskModel`, folded or not, on the CPU."""

    def __init__(self, model: TaskModel, *, name: str = "eager PyTorch fp32") -> None:
        self.name = name
        self.model = model.eval()
        self.input_names = tuple(model.signature.inputs)
        self.output_names = tuple(model.signature.outputs)

    def first_non_finite(self, batch: Batch) -> str | None:
        """Name of the first module, in the order they finish, that puts out NaN or Inf on a batch."""
        found: list[str] = []

        def watch(name: str, output: object) -> None:
            tensors = output if isinstance(output, tuple) else (output,)
            floating = [t for t in tensors if isinstance(t, torch.Tensor) and t.is_floating_point()]
            if not all(bool(torch.isfinite(tensor).all()) for tensor in floating):
                found.append(name)

        hooks = [
            module.register_forward_hook(lambda _module, _args, output, name=name: watch(name, output))
            for name, module in self.model.model.named_modules()
        ]
        try:
            self.run(batch)
        finally:
            for hook in hooks:
                hook.remove()
        return found[0] if found else None

    def run(self, batch: Batch) -> dict[str, Array]:
        """Run one batch; see `Runner.run`."""
        check_batch(batch, self.input_names)
        tensors = [torch.from_numpy(np.ascontiguousarray(batch[name])) for name in self.input_names]
        floating = next(self.model.parameters()).dtype
        tensors = [tensor.to(floating) if tensor.is_floating_point() else tensor for tensor in tensors]
        with torch.inference_mode():
            outputs = self.model(*tensors)
        return {name: out.numpy() for name, out in zip(self.output_names, outputs, strict=True)}

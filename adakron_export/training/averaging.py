"""An exponential moving average of what is trained: evaluated and saved in the place of the last step's weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import TrainerCallback

TRAINED = "trained.safetensors"


class WeightAverage(TrainerCallback):  # type: ignore[misc,unused-ignore]
    """The average of the trained weights over the steps (Polyak and Juditsky, 1992).

    After step ``t`` it is ``d * average + (1 - d) * weights`` with ``d = min(decay, (1 + t) / (2 + t))``: the plain
    mean of the first steps, until they are many.

    Args:
        model: The model with the trained parameters.
        decay: Below 1; about the last ``1 / (1 - decay)`` steps count.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self._trained = {name: tensor for name, tensor in model.named_parameters() if tensor.requires_grad}
        self._average = self._copies()

    def _copies(self) -> dict[str, torch.Tensor]:
        return {name: tensor.detach().clone() for name, tensor in self._trained.items()}

    @torch.no_grad()
    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Count the weights of this step."""
        step = state.global_step
        share = 1 - min(self.decay, (1 + step) / (2 + step))
        torch._foreach_lerp_(list(self._average.values()), list(self._trained.values()), share)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The model has the average within this."""
        before = self._copies()
        self._write(self._average)
        try:
            yield
        finally:
            self._write(before)

    def save(self, folder: Path) -> None:
        """Keep the weights of the last step, with which a resumed run goes on."""
        save_file({name: tensor.contiguous() for name, tensor in self._copies().items()}, folder / TRAINED)

    def load(self, folder: Path) -> None:
        """Go on where `save` was called: the model has just been loaded, with the average."""
        self._average = self._copies()
        self._write(load_file(folder / TRAINED))

    @torch.no_grad()
    def _write(self, tensors: dict[str, torch.Tensor]) -> None:
        for name, tensor in self._trained.items():
            tensor.copy_(tensors[name])

"""Which texts stand in a batch together, and how a batch is padded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Sampler

from adakron_export.data.metrics import IGNORED

_POOL = 50  # steps whose texts are sorted together: long enough to save padding, short enough to stay random


class LengthGroupedSampler(Sampler[int]):
    """Random steps of equally long texts.

    The order depends on seed and epoch alone and draws nothing from torch's global generator, so that a resumed run
    sees the same batches. All processes and all accumulated batches of one step read one run of texts, so none of
    them waits for a longer one. (The samplers of transformers and accelerate do neither.)

    Args:
        lengths: Length of each text, in tokens.
        step_size: Texts in one optimiser step, over all processes.
        seed: Seed of the order.
        grouped: Sort by length; else the order is random alone.
    """

    def __init__(self, lengths: Sequence[int], *, step_size: int, seed: int, grouped: bool) -> None:
        self.lengths = torch.tensor(lengths)
        self.step_size = step_size
        self.seed = seed
        self.grouped = grouped
        self.epoch = 0

    def __len__(self) -> int:
        """Number of texts."""
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        """The texts of this epoch."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(len(self.lengths), generator=generator)
        if not self.grouped:
            return iter(order.tolist())
        pool = self.step_size * _POOL
        order = torch.cat([self._sorted(part) for part in order.split(pool)])
        steps = list(order.split(self.step_size))
        last = [steps.pop()] if len(steps[-1]) < self.step_size else []  # an incomplete step stays the last
        shuffled = [steps[index] for index in torch.randperm(len(steps), generator=generator).tolist()]
        return iter(torch.cat([*shuffled, *last]).tolist())

    def _sorted(self, part: Tensor) -> Tensor:
        return part[torch.argsort(self.lengths[part], descending=True, stable=True)]


@dataclass(frozen=True, slots=True)
class Collator:
    """Pads features to the longest of them, on the right.

    Attributes:
        pad_token_id: What fills ``input_ids``.
    """

    pad_token_id: int

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """``[batch, tokens]`` tensors and labels, of features."""
        lengths = torch.tensor([len(row["input_ids"]) for row in rows])
        width = int(lengths.max())
        batch = {
            "input_ids": _padded(rows, "input_ids", width, self.pad_token_id),
            "attention_mask": (torch.arange(width)[None] < lengths[:, None]).long(),
        }
        if "token_type_ids" in rows[0]:
            batch["token_type_ids"] = _padded(rows, "token_type_ids", width, 0)
        for name in ("start_positions", "end_positions"):
            if name in rows[0]:
                batch[name] = torch.tensor([row[name] for row in rows])
        if "labels" in rows[0]:
            first = rows[0]["labels"]
            per_token = isinstance(first, list) and first and isinstance(first[0], int)
            batch["labels"] = (
                _padded(rows, "labels", width, IGNORED) if per_token else torch.tensor([row["labels"] for row in rows])
            )
        return batch


def _padded(rows: Sequence[dict[str, Any]], name: str, width: int, filling: int) -> Tensor:
    return torch.tensor([[*row[name], *[filling] * (width - len(row[name]))] for row in rows])

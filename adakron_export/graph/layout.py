"""What the graph of a bank takes of each adapter, as its manifest says it. Needs no numpy."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Annotated, Literal

import msgspec

Width = Annotated[int, msgspec.Meta(gt=0, le=2**20)]

IDS = "adapter_ids"  # [batch] or [1]: the adapter of each text, by its place in the stacks
CODES = "adapter_activations"
_BYTES = {"float32": 4, "float16": 2}


@dataclass(frozen=True, slots=True)
class Place:
    """A module with an adapter behind it, and how wide its output is."""

    module: str
    hidden: Width


@dataclass(frozen=True, slots=True)
class Head:
    """A module of PyTorch that each adapter has its own of.

    Attributes:
        module: Its name.
        kind: ``linear`` or ``norm``.
        shape: Shape of its weight, as PyTorch has it: ``[out, in]``, the widest of all, or ``[hidden]``.
        bias: Whether it has one.
        labels: Whether ``out`` are labels, of which adapters may have fewer.
    """

    module: str
    kind: Literal["linear", "norm"]
    shape: tuple[Width, ...]
    bias: bool = True
    labels: bool = False


@dataclass(frozen=True, slots=True)
class Stack:
    """An input of the graph: its name, and the shape of one adapter's row."""

    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class BankLayout:
    """What a bank's graph takes.

    Attributes:
        a1: Width of the first small network, r / k, the widest of all.
        k: Width of the second one, the widest of all.
        activations: Those that the graph computes; with several, each adapter says which.
        places: Where adapters sit.
        heads: What each adapter has beside them.
        dtype: The stacks' dtype, as numpy names it.
    """

    a1: Width
    k: Width
    activations: tuple[str, ...]
    places: tuple[Place, ...]
    heads: tuple[Head, ...] = ()
    dtype: Literal["float32", "float16"] = "float32"

    @property
    def stacks(self) -> tuple[Stack, ...]:
        """The inputs that hold the adapters, in their order."""
        both, r = self.a1 + self.k, self.a1 * self.k
        found = []
        for place in self.places:
            found += [
                Stack(f"{place.module}.down", (place.hidden, both)),
                Stack(f"{place.module}.down_bias", (1, both)),
                Stack(f"{place.module}.up", (r, place.hidden)),
                Stack(f"{place.module}.up_bias", (1, place.hidden)),
            ]
        for head in self.heads:
            shape = head.shape[::-1] if head.kind == "linear" else (1, *head.shape)
            found.append(Stack(f"{head.module}.weight", shape))
            if head.bias:
                found.append(Stack(f"{head.module}.bias", (1, head.shape[0])))
        if len(self.activations) > 1:
            found.append(Stack(CODES, (1, len(self.activations))))
        return tuple(found)

    @property
    def row_bytes(self) -> int:
        """What one adapter takes in the stacks."""
        return sum(prod(stack.shape) for stack in self.stacks) * _BYTES[self.dtype]

"""What the graph of a bank takes of each adapter, as its manifest says it. Needs no numpy."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Annotated, Literal

import msgspec

Kind = Literal["adakron", "bottleneck", "lora"]
Width = Annotated[int, msgspec.Meta(gt=0, le=2**20)]

IDS = "adapter_ids"  # [batch] or [1]: the adapter of each text, by its place in the stacks
CODES = "adapter_activations"
_BYTES = {"float32": 4, "float16": 2}


@dataclass(frozen=True, slots=True)
class Place:
    """A projection with an adapter.

    Attributes:
        module: Its name.
        reads: Width of what the adapter reads: the projection's input for LoRA, its output for all others.
        hidden: Width of the projection's output.
    """

    module: str
    reads: Width
    hidden: Width


@dataclass(frozen=True, slots=True)
class Form:
    """How bottlenecks sit in their layers; `BottleneckConfig` has the terms.

    Attributes:
        reads: The projection's ``output``, the ``stream`` that it is added to, or what LayerNorm makes of the ``sum``.
        adds_to: The ``output``, the ``sum`` before LayerNorm, or what is ``read``.
        norm_after: Whether the stream is added, and LayerNorm applied, after the adapter.
    """

    reads: Literal["output", "stream", "sum"] = "output"
    adds_to: Literal["output", "read", "sum"] = "output"
    norm_after: bool = True

    @property
    def may_lack(self) -> bool:
        """Whether an adapter of zeros leaves a layer as it is, so that adapters may sit in other layers."""
        return self.adds_to == "output" and self.norm_after

    def __str__(self) -> str:
        normed = "LN(h + s)"
        read = {"output": "h", "stream": "s", "sum": normed}[self.reads]
        base = {"output": "h", "sum": "h + s", "read": read}[self.adds_to]
        return f"LN({base} + delta({read}) + s)" if self.norm_after else f"{base} + delta({read})"


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
        kind: What its adapters are.
        width: Width of the bottleneck, or LoRA's rank; of AdaKron that of the first small network, r / k. The widest
            of all.
        k: Width of AdaKron's second small network, the widest of all; 1 for other kinds.
        activations: Those that the graph computes; with several, each adapter says which.
        places: Where adapters sit.
        form: How bottlenecks sit there.
        heads: What each adapter has beside them.
        head_form: What is fixed of heads of AdapterHub's; empty for those of transformers.
        dtype: The stacks' dtype, as numpy names it.
    """

    kind: Kind
    width: Width
    k: Width
    activations: tuple[str, ...]
    places: tuple[Place, ...]
    form: Form = Form()
    heads: tuple[Head, ...] = ()
    head_form: str = ""
    dtype: Literal["float32", "float16"] = "float32"

    @property
    def stacks(self) -> tuple[Stack, ...]:
        """The inputs that hold the adapters, in their order."""
        found = [stack for place in self.places for stack in self.stacks_of(place)]
        for head in self.heads:
            shape = head.shape[::-1] if head.kind == "linear" else (1, *head.shape)
            found.append(Stack(f"{head.module}.weight", shape))
            if head.bias:
                found.append(Stack(f"{head.module}.bias", (1, head.shape[0])))
        if len(self.activations) > 1:
            found.append(Stack(CODES, (1, len(self.activations))))
        return tuple(found)

    def stacks_of(self, place: Place) -> tuple[Stack, ...]:
        """The inputs that hold the adapters of one place."""
        up = self.width * self.k
        down = self.width + self.k if self.kind == "adakron" else up
        weights = (Stack(f"{place.module}.down", (place.reads, down)), Stack(f"{place.module}.up", (up, place.hidden)))
        if not self.has_biases:
            return weights
        biases = (Stack(f"{place.module}.down_bias", (1, down)), Stack(f"{place.module}.up_bias", (1, place.hidden)))
        return weights[0], biases[0], weights[1], biases[1]

    @property
    def has_biases(self) -> bool:
        """Whether the adapters' projections have biases."""
        return self.kind != "lora"

    @property
    def row_bytes(self) -> int:
        """What one adapter takes in the stacks."""
        return sum(prod(stack.shape) for stack in self.stacks) * _BYTES[self.dtype]

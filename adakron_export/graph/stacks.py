"""What the graph of a bank takes of each adapter: stacks ``[adapters, ...]``, and the row of one adapter in each.

Adapters of other widths, orders and numbers of labels lie in the same stacks, and compute the same numbers:

- A narrower adapter is padded with zeros. ``activation(0)`` is 0 for every activation, and the rows of the
  up-projection that would read it are zero too.
- ``a1 (x) a2`` has the numbers of ``a2 (x) a1`` in another order: the rows of the up-projection take that order.
- A head with fewer labels gets more, whose logits are `NO_LABEL`.
- A place without an adapter gets one of zeros, which adds nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adakron_export.errors import ArtifactError
from adakron_export.graph.layout import CODES, BankLayout, Form, Head, Kind, Place

Array = NDArray[Any]
NO_LABEL = -10_000.0  # finite in half precision, and no softmax sees it
_TENSORS = {
    "adakron": ("a1_weight", "a1_bias", "a2_weight", "a2_bias", "up_weight", "up_bias"),
    "bottleneck": ("down_weight", "down_bias", "up_weight", "up_bias"),
    "lora": ("down_weight", "up_weight"),
}


@dataclass(frozen=True, slots=True)
class AdapterWeights:
    """What one adapter changes of its backbone.

    Attributes:
        kind: What it is.
        tensors: Its weights, float32, as ``MODULE.NAME``: at each place those of `_TENSORS`, and weights and biases of
            heads. Weights of adapters are ``[in, out]``, those of heads are as PyTorch has them.
        activation: What is applied between down and up; ``None`` where there are no adapters.
        order: Order of AdaKron's Kronecker product.
        form: How a bottleneck sits in its layer.
        head_form: What is fixed of a head of AdapterHub's.
    """

    kind: Kind
    tensors: Mapping[str, Array] = field(default_factory=dict)
    activation: str | None = None
    order: str = "a2_a1"
    form: Form = field(default_factory=Form)
    head_form: str = ""

    def at(self, module: str) -> dict[str, Array]:
        """The weights of one place, by their own names; empty where there is no adapter."""
        names = {name: f"{module}.{name}" for name in _TENSORS[self.kind]}
        return {name: self.tensors[full] for name, full in names.items() if full in self.tensors}

    @property
    def places(self) -> tuple[Place, ...]:
        """Where it has weights."""
        modules = [name.removesuffix(".up_weight") for name in self.tensors if name.endswith(".up_weight")]
        down = "a1_weight" if self.kind == "adakron" else "down_weight"
        return tuple(
            Place(module, len(self.tensors[f"{module}.{down}"]), self.tensors[f"{module}.up_weight"].shape[1])
            for module in modules
        )

    @property
    def widths(self) -> tuple[int, int]:
        """The largest width, and the largest k, of its places; see `BankLayout`."""
        found = [_widths(self.kind, place, self.at(place.module)) for place in self.places]
        return max((width for width, _ in found), default=1), max((k for _, k in found), default=1)


def rows_of(layout: BankLayout, weights: AdapterWeights) -> dict[str, Array]:
    """One adapter's rows, by the names of the stacks.

    Args:
        layout: What the graph takes.
        weights: What the adapter changes.

    Raises:
        ArtifactError: The adapter does not fit.
    """
    _check_form(layout, weights)
    _check_places(layout, weights)
    rows: dict[str, Array] = {}
    for place in layout.places:
        rows.update(_rows_of_place(layout, place, weights))
    for head in layout.heads:
        rows.update(_rows_of_head(head, weights.tensors))
    if len(layout.activations) > 1:
        activation = weights.activation or layout.activations[0]
        rows[CODES] = np.array([[each == activation for each in layout.activations]], np.float32)
    with np.errstate(over="ignore"):
        cast = {name: row.astype(layout.dtype, copy=False) for name, row in rows.items()}
    broken = next((name for name, row in cast.items() if not np.isfinite(row).all()), None)
    if broken is not None:
        raise ArtifactError(f"its {broken} has values that {layout.dtype} cannot hold; make a bank in fp32")
    return cast


def check_rows(layout: BankLayout, rows: Mapping[str, Array]) -> None:
    """Raise unless an adapter's rows are those that a bank's graph takes.

    Raises:
        ArtifactError: They are not.
    """
    expected = {stack.name: stack.shape for stack in layout.stacks}
    found = {name: row.shape for name, row in rows.items()}
    wrong = [name for name in {**expected, **found} if expected.get(name) != found.get(name)]
    if wrong:
        here, there = found.get(wrong[0], "missing"), expected.get(wrong[0], "nothing")
        raise ArtifactError(f"its {wrong[0]} is {here}, the bank's graph takes {there}; add it from its checkpoint")
    wide = [name for name, row in rows.items() if not np.can_cast(row.dtype, layout.dtype)]
    if wide:
        raise ArtifactError(f"its {wide[0]} is in {rows[wide[0]].dtype}, the bank in {layout.dtype}; add it from its "
                            "checkpoint")  # fmt: skip


def own_rows(layout: BankLayout, rows: Mapping[str, Array], classes: int | None) -> dict[str, Array]:
    """An adapter's rows without the labels that it does not have.

    Args:
        layout: What the graph takes.
        rows: The rows of one adapter.
        classes: How many labels are its own; ``None`` where all are.
    """
    wide = [name for head in layout.heads if head.labels for name in (f"{head.module}.weight", f"{head.module}.bias")]
    return {name: row[..., :classes] if name in wide else row for name, row in rows.items()}


def _check_form(layout: BankLayout, weights: AdapterWeights) -> None:
    """Raise where the graph computes something else than the adapter."""
    if weights.tensors and weights.kind != layout.kind:
        raise ArtifactError(f"it is of kind {weights.kind}, the bank of kind {layout.kind}")
    if weights.tensors and weights.form != layout.form:
        raise ArtifactError(f"its layers compute {weights.form}, those of the bank's graph {layout.form}")
    if weights.head_form != layout.head_form:
        raise ArtifactError(f"its head is {weights.head_form or 'plain'}, the bank's {layout.head_form or 'plain'}")
    if weights.activation is not None and weights.activation not in layout.activations:
        raise ArtifactError(
            f"its activation is {weights.activation}, and the bank's graph computes {', '.join(layout.activations)}; "
            "make the bank anew with this adapter among the first"
        )


def _check_places(layout: BankLayout, weights: AdapterWeights) -> None:
    """Raise where the adapter has weights that the graph does not take, or lacks some that it needs."""
    modules = {place.module for place in layout.places} | {head.module for head in layout.heads}
    beyond = sorted({name.rpartition(".")[0] for name in weights.tensors} - modules)
    if beyond:
        raise ArtifactError(
            f"it has weights of {beyond[0]}, where the bank's graph has no place for any; make the bank anew with "
            "this adapter among the first"
        )
    for head in layout.heads:
        if f"{head.module}.weight" not in weights.tensors:
            raise ArtifactError(f"it has no {head.module}, which each adapter of the bank has its own of")
    lacking = next((place.module for place in layout.places if not weights.at(place.module)), None)
    if lacking is not None and not layout.form.may_lack:
        raise ArtifactError(
            f"it has no adapter of {lacking}; the bank's graph computes {layout.form} there, which each adapter "
            "needs its own weights for"
        )


def _rows_of_place(layout: BankLayout, place: Place, weights: AdapterWeights) -> dict[str, Array]:
    """The rows of one place, padded with zeros."""
    rows = {
        stack.name.removeprefix(f"{place.module}."): np.zeros(stack.shape, np.float32)
        for stack in layout.stacks_of(place)
    }
    own = weights.at(place.module)
    if own:
        width, k = _widths(layout.kind, place, own)
        if width > layout.width or k > layout.k:
            kron = layout.kind == "adakron"
            found, taken = (f"{width} x {k}", f"{layout.width} x {layout.k}") if kron else (width, layout.width)
            raise ArtifactError(
                f"its adapter of {place.module} is {found} wide, the bank's graph takes {taken}; make the bank anew "
                "with this adapter among the first"
            )
        (_fill_adakron if layout.kind == "adakron" else _fill)(rows, own, layout, weights.order)
    return {f"{place.module}.{name}": row for name, row in rows.items()}


def _fill_adakron(rows: Mapping[str, Array], own: Mapping[str, Array], layout: BankLayout, order: str) -> None:
    a1, k, hidden = layout.width, layout.k, rows["up"].shape[1]
    narrow, short = own["a1_bias"].size, own["a2_bias"].size
    rows["down"][:, :short], rows["down"][:, k : k + narrow] = own["a2_weight"], own["a1_weight"]
    rows["down_bias"][0, :short], rows["down_bias"][0, k : k + narrow] = own["a2_bias"], own["a1_bias"]
    axes = (short, narrow) if order == "a2_a1" else (narrow, short)
    product = own["up_weight"].reshape(*axes, hidden)
    rows["up"].reshape(k, a1, hidden)[:short, :narrow] = product if order == "a2_a1" else product.swapaxes(0, 1)
    rows["up_bias"][0] = own["up_bias"]


def _fill(rows: Mapping[str, Array], own: Mapping[str, Array], _layout: BankLayout, _order: str) -> None:
    width = len(own["up_weight"])
    rows["down"][:, :width], rows["up"][:width] = own["down_weight"], own["up_weight"]
    if "down_bias" in rows:
        rows["down_bias"][0, :width], rows["up_bias"][0] = own["down_bias"], own["up_bias"]


def _widths(kind: Kind, place: Place, own: Mapping[str, Array]) -> tuple[int, int]:
    """Its width and its k, where all shapes fit one another."""
    found = {name: array.shape for name, array in own.items()}
    reads, hidden = place.reads, place.hidden
    if kind == "adakron":
        width, k = (own[name].size if name in own else 0 for name in ("a1_bias", "a2_bias"))
    else:
        width, k = len(own["up_weight"]) if "up_weight" in own else 0, 1
    shapes: dict[Kind, tuple[tuple[int, ...], ...]] = {
        "adakron": ((reads, width), (width,), (reads, k), (k,), (width * k, hidden), (hidden,)),
        "bottleneck": ((reads, width), (width,), (width, hidden), (hidden,)),
        "lora": ((reads, width), (width, hidden)),
    }
    expected = dict(zip(_TENSORS[kind], shapes[kind], strict=True))
    if found != expected:
        raise ArtifactError(f"its adapter of {place.module} has the shapes {found}; {expected} are expected")
    return width, k


def _rows_of_head(head: Head, tensors: Mapping[str, Array]) -> dict[str, Array]:
    weight, bias = tensors[f"{head.module}.weight"], tensors.get(f"{head.module}.bias")
    out, fits = len(weight), weight.shape[1:] == head.shape[1:]
    enough = out <= head.shape[0] if head.labels else out == head.shape[0]
    if not (fits and enough and (bias is not None) == head.bias and (bias is None or bias.shape == (out,))):
        raise ArtifactError(
            f"its {head.module} is {list(weight.shape)}, the bank's graph takes {list(head.shape)}"
            + (" or fewer labels; make the bank anew with this adapter among the first" if head.labels else "")
        )
    rows: dict[str, Array] = {}
    if head.kind == "linear":
        wide = np.zeros(head.shape[::-1], np.float32)
        wide[:, :out] = weight.T
        rows[f"{head.module}.weight"] = wide
    else:
        rows[f"{head.module}.weight"] = weight[None]
    if bias is not None:
        wide = np.full((1, head.shape[0]), NO_LABEL, np.float32)
        wide[0, :out] = bias
        rows[f"{head.module}.bias"] = wide
    return rows

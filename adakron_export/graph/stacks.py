"""What the graph of a bank takes of each adapter: stacks ``[adapters, ...]``, and the row of one adapter in each.

Adapters of other widths, orders and numbers of labels lie in the same stacks, and compute the same numbers:

- A narrower product is padded with zeros. ``activation(0)`` is 0 for every activation, and the rows of the
  up-projection that would read it are zero too.
- ``a1 (x) a2`` has the numbers of ``a2 (x) a1`` in another order: the rows of the up-projection take that order.
- A head with fewer labels gets more, whose logits are `NO_LABEL`.
- A place without an adapter gets one of zeros, which adds nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adakron_export.errors import ArtifactError
from adakron_export.graph.layout import CODES, BankLayout, Head, Place

Array = NDArray[Any]
NO_LABEL = -10_000.0  # finite in half precision, and no softmax sees it
ADAPTER_TENSORS = ("a1_weight", "a1_bias", "a2_weight", "a2_bias", "up_weight", "up_bias")


def rows_of(layout: BankLayout, tensors: Mapping[str, Array], *, order: str, activation: str) -> dict[str, Array]:
    """One adapter's rows, by the names of the stacks.

    Args:
        layout: What the graph takes.
        tensors: `ADAPTER_TENSORS` by place, and weights and biases by head, as ``MODULE.NAME``.
        order: Order of the Kronecker product.
        activation: What is applied to it.

    Raises:
        ArtifactError: The adapter does not fit.
    """
    if activation not in layout.activations:
        raise ArtifactError(
            f"its activation is {activation}, and the bank's graph computes {', '.join(layout.activations)}; make the "
            "bank anew with this adapter among the first"
        )
    _check_names(layout, tensors)
    rows: dict[str, Array] = {}
    for place in layout.places:
        rows.update(_rows_of_place(layout, place, tensors, order))
    for head in layout.heads:
        rows.update(_rows_of_head(head, tensors))
    if len(layout.activations) > 1:
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


def _check_names(layout: BankLayout, tensors: Mapping[str, Array]) -> None:
    modules = {place.module for place in layout.places} | {head.module for head in layout.heads}
    beyond = sorted({name.rpartition(".")[0] for name in tensors} - modules)
    if beyond:
        raise ArtifactError(f"it has weights of {beyond[0]}, where the bank's graph has no place for any")
    for head in layout.heads:
        if f"{head.module}.weight" not in tensors:
            raise ArtifactError(f"it has no {head.module}, which each adapter of the bank has its own of")


def _rows_of_place(
    layout: BankLayout, place: Place, tensors: Mapping[str, Array], order: str
) -> dict[str, Array]:  # fmt: skip
    a1, k, hidden = layout.a1, layout.k, place.hidden
    down, down_bias = np.zeros((hidden, k + a1), np.float32), np.zeros((1, k + a1), np.float32)
    up, up_bias = np.zeros((k, a1, hidden), np.float32), np.zeros((1, hidden), np.float32)
    own = {name: tensors[f"{place.module}.{name}"] for name in ADAPTER_TENSORS if f"{place.module}.{name}" in tensors}
    if own:
        narrow, short = _widths(place, own)
        if narrow > a1 or short > k:
            raise ArtifactError(
                f"its adapter of {place.module} is {narrow} x {short} wide, the bank's graph takes {a1} x {k}; make "
                "the bank anew with this adapter among the first"
            )
        down[:, :short], down[:, k : k + narrow] = own["a2_weight"], own["a1_weight"]
        down_bias[0, :short], down_bias[0, k : k + narrow] = own["a2_bias"], own["a1_bias"]
        axes = (short, narrow) if order == "a2_a1" else (narrow, short)
        product = own["up_weight"].reshape(*axes, hidden)
        up[:short, :narrow] = product if order == "a2_a1" else product.swapaxes(0, 1)
        up_bias[0] = own["up_bias"]
    name = place.module
    return {
        f"{name}.down": down,
        f"{name}.down_bias": down_bias,
        f"{name}.up": up.reshape(k * a1, hidden),
        f"{name}.up_bias": up_bias,
    }


def _widths(place: Place, own: Mapping[str, Array]) -> tuple[int, int]:
    """How wide the two small networks are, where all shapes fit one another."""
    narrow, short = (own[name].size if name in own else 0 for name in ("a1_bias", "a2_bias"))
    hidden = place.hidden
    expected = {
        "a1_weight": (hidden, narrow),
        "a1_bias": (narrow,),
        "a2_weight": (hidden, short),
        "a2_bias": (short,),
        "up_weight": (narrow * short, hidden),
        "up_bias": (hidden,),
    }
    found = {name: array.shape for name, array in own.items()}
    if found != expected:
        raise ArtifactError(f"its adapter of {place.module} has the shapes {found}; {expected} are expected")
    return narrow, short


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

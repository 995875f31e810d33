"""Finds where two sides part: the first layer, and the first node in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np

from adakron_export.graph.tolerance import Tolerance
from adakron_export.quantities import as_json
from adakron_export.runtimes.base import Array

_NOISE = 4.0  # times the rounding of a right graph
_FLOOR = 2e-6  # of a layer's largest value: what fp32 rounds anyway
_ROUNDING = 1e-5  # the same, and through many layers
_Verdict = tuple[str | None, str | None]  # a node, and what is wrong with it


class Node(Protocol):
    """A node of a graph, and what it put out; see `TracedNode`."""

    @property
    def key(self) -> tuple[str, str, int]: ...  # noqa: D102
    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def module(self) -> str: ...  # noqa: D102
    @property
    def op_type(self) -> str: ...  # noqa: D102
    @property
    def value(self) -> Array: ...  # noqa: D102
    @property
    def settings(self) -> Mapping[str, Any]: ...  # noqa: D102
    @property
    def shifted(self) -> bool: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class LayerError:
    """A layer's output.

    Attributes:
        layer: The module's name in the model.
        error: The largest difference; ``inf`` where a value is not finite.
        scale: The largest value of the reference.
        limit: What the error may be.
    """

    layer: str
    error: float
    scale: float
    limit: float

    @property
    def diverges(self) -> bool:
        """Whether the error leaves its limit."""
        return not self.error <= self.limit

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return {**asdict(self), "error": as_json(self.error), "diverges": self.diverges}


@dataclass(frozen=True, slots=True)
class Divergence:
    """Where two sides part.

    Attributes:
        batch: The batch that shows it.
        layer: The first layer whose output leaves its limit; ``None`` where all layers hold.
        part: What the layer is: ``adapter``, ``backbone`` or ``head``.
        node: The first node that is wrong, as ``name (type)``.
        cause: What is different about that node, where that can be told.
        layers: The error's growth, layer by layer.
    """

    batch: str
    layer: str | None
    part: str | None
    node: str | None
    cause: str | None
    layers: tuple[LayerError, ...]

    def describe(self) -> str:
        """As a sentence."""
        if self.layer is None:
            return f"no layer leaves its limit on batch {self.batch!r}: {self.cause}"
        where = f"{self.layer} ({self.part}) is the first layer that is wrong, on batch {self.batch!r}"
        node = f"; in it the node {self.node}" if self.node else ""
        return where + node + (f": {self.cause}" if self.cause else "")

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return {**asdict(self), "layers": [layer.to_json() for layer in self.layers]}


def layer_errors(
    reference: Mapping[str, Array],
    candidate: Mapping[str, Sequence[Array]],
    fresh: Mapping[str, Sequence[Array]],
    *,
    tolerance: Tolerance,
    mask: Array | None,
) -> tuple[LayerError, ...]:
    """Hold every layer that both sides have against the reference, in the order in which the layers end.

    Args:
        reference: Output of each module.
        candidate: What each module hands on.
        fresh: What each module of a fresh export hands on, if there is one; what it is off is rounding.
        tolerance: What is allowed of an output; a layer may be off by no more.
        mask: ``[batch, tokens]``; padding is not compared.
    """
    rows = []
    for layer, values in candidate.items():
        if layer not in reference:
            continue
        of_reference = reference[layer]
        of_fresh, of_candidate = _same_value(of_reference, fresh.get(layer, ()), values)
        if of_candidate is None:
            continue
        per_token = mask is not None and of_reference.shape[:2] == mask.shape and of_reference.ndim > 2
        kept = mask.astype(bool) if mask is not None and per_token else ...
        scale = float(np.abs(of_reference[kept]).max(initial=0.0))
        limit = tolerance.limit(of_reference[kept])
        if of_fresh is not None:
            rounding = _NOISE * _distance(of_reference[kept], of_fresh[kept]) + _FLOOR * max(scale, 1e-3)
            limit = min(max(limit, _ROUNDING * scale), rounding)  # where the export itself is wrong, rounding is large
        rows.append(LayerError(layer, _distance(of_reference[kept], of_candidate[kept]), scale, limit))
    return tuple(_innermost_first(rows))


def first_divergence(
    batch: str,
    layers: tuple[LayerError, ...],
    nodes: Sequence[Node],
    fresh: Sequence[Node],
    part_of: Callable[[str], str],
) -> Divergence:
    """Name the first layer that is wrong, and the first node.

    Args:
        batch: The batch's name.
        layers: What `layer_errors` returned.
        nodes: Nodes of the candidate.
        fresh: Nodes of a graph that is right: made anew from the checkpoint in the same way, or the other artifact's.
        part_of: What a module is: ``adapter``, ``backbone`` or ``head``.
    """
    wrong = next((row for row in layers if row.diverges), None)
    node, cause = _first_wrong_node(nodes, fresh, wrong.layer if wrong else None)
    if wrong is None:
        cause = cause or "the graph is right; what differs is how the runtime optimises it"
        return Divergence(batch, None, None, node, cause, layers)
    return Divergence(batch, wrong.layer, part_of(wrong.layer), node, cause, layers)


def _innermost_first(layers: Sequence[LayerError]) -> list[LayerError]:
    """In the order in which layers end, from that in which they begin; the inner of two wrong ones is to blame."""
    ordered: list[LayerError] = []
    begun: list[LayerError] = []
    for row in layers:
        while begun and not _is_in(row.layer, begun[-1].layer):
            ordered.append(begun.pop())
        begun.append(row)
    return ordered + begun[::-1]


def _is_in(module: str, layer: str) -> bool:
    return module == layer or module.startswith(layer + ".")


def _same_value(
    reference: Array, fresh: Sequence[Array], values: Sequence[Array]
) -> tuple[Array | None, Array | None]:
    """Which of a layer's values is the reference's, in a fresh export and in the candidate.

    A layer may hand on several values of one shape, such as cosines and sines: the fresh export shows which it is.
    """
    alike = [index for index, value in enumerate(fresh) if value.shape == reference.shape]
    if len(alike) > 1 and [value.shape for value in fresh] == [value.shape for value in values]:
        nearest = min(reversed(alike), key=lambda index: _distance(reference, fresh[index]))
        return fresh[nearest], values[nearest]
    return _same_shape(reference, fresh), _same_shape(reference, values)


def _same_shape(reference: Array, values: Sequence[Array]) -> Array | None:
    return next((value for value in reversed(values) if value.shape == reference.shape), None)


def _distance(reference: Array, candidate: Array) -> float:
    with np.errstate(invalid="ignore", over="ignore"):
        error = np.abs(reference.astype(np.float64) - candidate.astype(np.float64)).max(initial=0.0)
    return float(error) if np.isfinite(error) else float("inf")


def _first_wrong_node(nodes: Sequence[Node], fresh: Sequence[Node], layer: str | None) -> _Verdict:
    """The first node that computes something else than its like in a fresh export, and why.

    A node that only one of the two has counts in the layer that is wrong; elsewhere it may be another version's way
    to write the same.
    """
    others = {node.key: node for node in fresh}
    present = {node.key for node in nodes}
    missing = [node for node in fresh if node.key not in present and layer and _is_in(node.module, layer)]
    for node in nodes:
        inside = layer is not None and _is_in(node.module, layer)
        verdict = _judge(node, others.get(node.key), is_new=inside)
        if verdict is None:
            continue
        if missing and not inside and np.isfinite(node.value).all():
            break  # what is missing comes before
        return verdict
    if missing:
        return _named(missing[0]), "the reference has this node, and the artifact lacks it"
    return None, None


def _judge(node: Node, other: Node | None, *, is_new: bool) -> _Verdict | None:
    """A node and what is wrong with it; ``None`` where nothing is."""
    if not np.isfinite(node.value).all():
        return _named(node), "its result is not finite: a value is too large for the dtype"
    if other is None:
        return (_named(node), "the reference has no such node") if is_new else None
    if other.shifted != node.shifted:
        return None
    if other.value.shape != node.value.shape:
        return _named(node), _cause(node, other) or f"its shape is {node.value.shape}, not {other.value.shape}"
    if _distance(other.value, node.value) > _ROUNDING * float(np.abs(other.value).max(initial=0.0)) + 1e-7:
        return _named(node), _cause(node, other)
    return None


def _named(node: Node) -> str:
    place = f" of {node.module}" if node.module else ""
    return f"{node.name or node.key[1]} ({node.op_type}){place}"


def _cause(node: Node, other: Node) -> str | None:
    """What is set differently at two nodes."""
    for name in sorted({*node.settings, *other.settings}):
        mine, theirs = node.settings.get(name), other.settings.get(name)
        if hasattr(mine, "numpy") and hasattr(theirs, "numpy"):
            assert mine is not None
            assert theirs is not None
            of_candidate, of_reference = mine.numpy(), theirs.numpy()
            # A weight that was rewritten on the way has no name of the checkpoint's.
            weight = f"its weight {mine.name}" if "." in (mine.name or "") else "its weight"
            if of_candidate.shape != of_reference.shape:
                return f"{weight} has shape {list(of_candidate.shape)}, the reference's {list(of_reference.shape)}"
            if not np.array_equal(of_candidate, of_reference):
                return f"{weight} is not the reference's: {_distance(of_reference, of_candidate):.2g} off at most"
        elif mine != theirs:
            return f"{name} is {_shown(mine)}, the reference has {_shown(theirs)}"
    return None


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return "absent" if value is None else str(value)[:60]

"""Puts the standard operator RotaryEmbedding in the place of its plain operators."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from adakron_export.graph.keys import ATTENTION_OPSET
from adakron_export.graph.passes.rewriting import TO_HEADS, initializer, joined, made_by, number_of, replace_node


class RotaryPass(ir.passes.InPlacePass):
    """One `RotaryEmbedding` (opset 23) for eight nodes.

    1. Rewrites ``X * cos + Concat(-X[half:], X[:half]) * sin``, in float32, of ``[batch, heads, tokens, width]``,
       where both halves of ``cos`` are the same, and of ``sin``, and each text has its own.
    2. Where X was ``[batch, tokens, heads, width]`` before, the operator reads it joined, as `Attention` reads what
       the operator makes.
    3. Only from opset 23 on.
    4. Outputs are the same numbers.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite the main graph."""
        if model.opset_imports[""] < ATTENTION_OPSET:
            return ir.passes.PassResult(model, modified=False)
        found = [match for node in model.graph if node.op_type == "Add" and (match := _match(node)) is not None]
        halves: dict[ir.Value, ir.Value] = {}
        for match in found:
            _rewrite(model.graph, match, halves)
        common.RemoveUnusedNodesPass()(model)
        return ir.passes.PassResult(model, modified=bool(found))


@dataclass(frozen=True, slots=True)
class _Match:
    """One rotation: its last node, what is turned, and the cosines and sines ``[batch, tokens, width]``."""

    add: ir.Node
    source: ir.Value
    cos: ir.Value
    sin: ir.Value


def _match(add: ir.Node) -> _Match | None:
    straight, turned = (made_by(value, "Mul") for value in add.inputs)
    if straight is None or turned is None:
        return None
    source, half_turn = straight.inputs[0], turned.inputs[0]
    if source is None or source.shape is None or len(source.shape) != 4 or source.dtype != ir.DataType.FLOAT:
        return None
    cos, sin = (_per_text(node.inputs[1], source) for node in (straight, turned))
    if cos is None or sin is None or not _is_half_turn(half_turn, source):
        return None
    return _Match(add, source, cos, sin)


def _per_text(value: ir.Value | None, source: ir.Value) -> ir.Value | None:
    """Cosines or sines before they got an axis of heads, where each text has its own, of two equal halves."""
    node = made_by(value, "Unsqueeze")
    angles = node.inputs[0] if node is not None and number_of(node.inputs[1]) == 1 else None
    if angles is None or angles.shape is None or len(angles.shape) != 3 or not _is_twice(angles):
        return None
    assert source.shape is not None
    alike = angles.shape[0] == source.shape[0] and angles.shape[2] == source.shape[3]
    return angles if alike else None


def _is_twice(value: ir.Value | None) -> bool:
    """Whether both halves of the last axis are the same, however each number was changed since."""
    node = value.producer() if value is not None else None
    while node is not None and node.op_type in ("Cos", "Sin", "Cast", "Mul"):
        if node.op_type == "Mul" and number_of(node.inputs[1]) is None:
            return False
        node = node.inputs[0].producer() if node.inputs[0] is not None else None
    if node is None or node.op_type != "Concat" or node.attributes["axis"].as_int() not in (-1, 2):
        return False
    return len(node.inputs) == 2 and node.inputs[0] is node.inputs[1]


def _is_half_turn(value: ir.Value | None, source: ir.Value) -> bool:
    """Whether a value is the second half of a source, negated, and then the first one."""
    concat = made_by(value, "Concat")
    if concat is None or len(concat.inputs) != 2 or concat.attributes["axis"].as_int() not in (-1, 3):
        return False
    negated = made_by(concat.inputs[0], "Neg")
    parts = (negated.inputs[0] if negated is not None else None, concat.inputs[1])
    assert source.shape is not None
    width = source.shape[3]
    if not isinstance(width, int):
        return False
    return all(
        _is_slice(part, source, start, start + width // 2) for part, start in zip(parts, (width // 2, 0), strict=True)
    )


def _is_slice(value: ir.Value | None, source: ir.Value, start: int, end: int) -> bool:
    node = made_by(value, "Slice")
    if node is None or node.inputs[0] is not source or len(node.inputs) < 4:
        return False
    first, last, axis, *step = (number_of(each) for each in node.inputs[1:])
    whole = last is not None and (last == end or last > end == source.shape[3])  # type: ignore[index]
    return first == start and whole and axis in (3, -1) and step in ([], [1])


def _rewrite(graph: ir.Graph, match: _Match, halves: dict[ir.Value, ir.Value]) -> None:
    angles = [_half(graph, value, halves) for value in (match.cos, match.sin)]
    split = _before_heads(match.source)
    if split is None or split.shape is None:
        replace_node(graph, match.add, [ir.node("RotaryEmbedding", [match.source, *angles])])
        return
    heads, width = (int(size) for size in split.shape[2:])  # type: ignore[arg-type]
    source, before = joined(match.source), list[ir.Node]()
    if source is None:
        before = [ir.node("Reshape", [split, _shape(graph, "heads_joined", 0, 0, heads * width)])]
        source = before[0].outputs[0]
    turned = ir.node("RotaryEmbedding", [source, *angles], {"num_heads": heads})
    for node in (*before, turned):
        node.outputs[0].type, node.outputs[0].shape = split.type, ir.Shape([*split.shape[:2], heads * width])
    back = ir.node("Reshape", [turned.outputs[0], _shape(graph, "heads_apart", 0, 0, heads, width)])
    back.outputs[0].type, back.outputs[0].shape = split.type, split.shape
    replace_node(graph, match.add, [*before, turned, back, ir.node("Transpose", back.outputs, {"perm": TO_HEADS})])


def _before_heads(value: ir.Value) -> ir.Value | None:
    """What was transposed to heads: ``[batch, tokens, heads, width]``."""
    node = made_by(value, "Transpose")
    source = node.inputs[0] if node is not None and tuple(node.attributes["perm"].as_ints()) == TO_HEADS else None
    known = source is not None and source.shape is not None and all(isinstance(size, int) for size in source.shape[2:])
    return source if known else None


def _shape(graph: ir.Graph, name: str, *sizes: int) -> ir.Value:
    """The constant shape; 0 keeps what there is."""
    return initializer(graph, "_".join(map(str, (name, *sizes[2:]))), np.array(sizes, np.int64))


def _half(graph: ir.Graph, value: ir.Value, halves: dict[ir.Value, ir.Value]) -> ir.Value:
    """The first half of angles, made once."""
    if value not in halves:
        source = value.producer()
        assert source is not None
        assert value.shape is not None
        width = int(value.shape[2])  # type: ignore[arg-type]
        bounds = [
            initializer(graph, f"half_{name}_{number}", np.array([number], np.int64))
            for name, number in (("start", 0), ("end", width // 2), ("axis", 2))
        ]
        node = ir.node("Slice", [value, *bounds])
        node.metadata_props.update(source.metadata_props)
        graph.insert_after(source, node)
        halves[value] = node.outputs[0]
    return halves[value]

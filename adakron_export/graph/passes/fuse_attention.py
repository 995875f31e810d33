"""Puts the standard operator Attention in the place of attention in plain operators."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from adakron_export.graph.keys import ATTENTION_OPSET
from adakron_export.graph.passes.rewriting import initializer

_TO_HEADS, _TO_COLUMNS, _LAST_TWO = (0, 2, 1, 3), (0, 2, 3, 1), (0, 1, 3, 2)


class FuseAttentionPass(ir.passes.InPlacePass):
    """One `Attention` (opset 23) per attention layer.

    1. Rewrites ``Softmax(Q @ K^T * scale + biases) @ V``. The scale may stand at Q or at the scores; the biases, of
       which there may be none, are the mask and what positions add.
    2. Where Q, K and V are ``[batch, tokens, heads * width]``, reshaped and transposed to heads, and the result is
       transposed and reshaped back, the operator does all of that. Where something is done to the heads in between
       (RoPE), it reads and makes ``[batch, heads, tokens, width]``.
    3. Several biases are added up once for all layers that share them. A bias that is the same for all queries,
       ``[batch, 1, 1, keys]``, is expanded once: ONNX Runtime does not broadcast it along the queries (1.32).
    4. Only from opset 23 on. Scores that are masked with Where (DeBERTa) and a result that is reshaped to rows (GPT-2)
       match nothing.
    5. Outputs are the same sums in another order.

    ONNX Runtime computes it without transposed copies: 1 to 3 % faster in fp32, 3 to 13 % in int8 (1.32, BERT-base).
    With split heads it is 5 % in int8 (ModernBERT), and nothing beyond noise in fp32 and in Qwen2.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite the main graph."""
        if model.opset_imports[""] < ATTENTION_OPSET:
            return ir.passes.PassResult(model, modified=False)
        found = [match for node in model.graph if _is_over_keys(node) and (match := _match(node)) is not None]
        shared: _Shared = {}
        for match in found:
            _fuse(model.graph, match, shared)
        common.RemoveUnusedNodesPass()(model)  # what it replaced still reads the projections
        return ir.passes.PassResult(model, modified=bool(found))


_Shared = dict[tuple[object, object], ir.Value]  # what is made of biases, for all layers


@dataclass(frozen=True, slots=True)
class _Match:
    """What computes one attention layer.

    Attributes:
        softmax: The softmax of the scores.
        sources: Queries, keys, values: each ``[batch, tokens, heads * width]`` or ``[batch, heads, tokens, width]``.
        heads: How many, in the first case; ``None`` in the second.
        biases: Added to the scores.
        scale: Factor on the scores.
        result: The output, in the form of the sources.
    """

    softmax: ir.Node
    sources: tuple[ir.Value, ...]
    heads: int | None
    biases: tuple[ir.Value, ...]
    scale: float
    result: ir.Node


def _is_over_keys(node: ir.Node) -> bool:
    return node.op_type == "Softmax" and ("axis" not in node.attributes or node.attributes["axis"].as_int() in (-1, 3))


def _match(softmax: ir.Node) -> _Match | None:
    scores, biases = _unbiased(softmax.inputs[0])
    scores, after = _unscaled(scores)
    product, weighted = _only(scores, "MatMul"), _only_user(softmax, "MatMul")
    if product is None or weighted is None or weighted.inputs[0] is not softmax.outputs[0]:
        return None
    query, before = _unscaled(product.inputs[0])
    keys, values, scale = product.inputs[1], weighted.inputs[1], before * after
    joined = _joined(query, keys, values, weighted)
    if joined is not None:
        sources, heads, result = joined
        return _Match(softmax, sources, heads, biases, scale, result)
    split = (query, _transposed(keys, _LAST_TWO), values)
    if any(value is None or value.shape is None or len(value.shape) != 4 for value in split):
        return None
    return _Match(softmax, split, None, biases, scale, weighted)  # type: ignore[arg-type]


def _joined(
    query: ir.Value | None, keys: ir.Value | None, values: ir.Value | None, weighted: ir.Node
) -> tuple[tuple[ir.Value, ...], int, ir.Node] | None:
    """Queries, keys and values before they were split into heads, how many, and what joins the result again."""
    columns = _transposed(keys, _TO_COLUMNS)
    if columns is None:
        columns = _transposed(_transposed(keys, _LAST_TWO), _TO_HEADS)
    split = (_transposed(query, _TO_HEADS), columns, _transposed(values, _TO_HEADS))
    transpose = _only_user(weighted, "Transpose", _TO_HEADS)
    result = _only_user(transpose, "Reshape") if transpose is not None else None
    sources = tuple(source for value in split if (source := _joined_heads(value)) is not None)
    heads = {value.shape[2] for value in split if value is not None and value.shape is not None}
    if result is None or len(sources) != len(split) or len(heads) != 1 or not _is_joined(result.outputs[0]):
        return None
    return sources, int(heads.pop()), result  # type: ignore[arg-type]


def _fuse(graph: ir.Graph, match: _Match, shared: _Shared) -> None:
    inputs: list[ir.Value] = list(match.sources)
    if match.biases:
        inputs.append(_bias(graph, match, shared))
    heads = {} if match.heads is None else {"q_num_heads": match.heads, "kv_num_heads": match.heads}
    node = ir.node("Attention", inputs, {**heads, "scale": match.scale})
    node.metadata_props.update(match.softmax.metadata_props)
    old, new = match.result.outputs[0], node.outputs[0]
    new.type, new.shape = old.type, old.shape
    graph.insert_before(match.result, node)
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
    graph.remove(match.result, safe=True)
    new.name = old.name


def _bias(graph: ir.Graph, match: _Match, shared: _Shared) -> ir.Value:
    """The sum of the biases, with an axis of queries as long as they are."""
    total = match.biases[0]
    for bias in match.biases[1:]:
        if (total, bias) not in shared:
            add = ir.node("Add", [total, bias])
            add.outputs[0].type = total.type
            graph.insert_before(match.softmax, add)
            shared[total, bias] = add.outputs[0]
        total = shared[total, bias]
    shapes = [bias.shape for bias in match.biases]
    if any(shape is not None and len(shape) == 4 and shape[2] != 1 for shape in shapes):
        return total
    query, axis = match.sources[0], 2 if match.heads is None else 1
    length = str(query.shape[axis]) if query.shape is not None else str(query.name)
    if (total, length) not in shared:
        one = initializer(graph, "attention_one", np.array([1], np.int64))
        tokens = ir.node("Shape", [query], {"start": axis, "end": axis + 1})
        shape = ir.node("Concat", [one, one, tokens.outputs[0], one], {"axis": 0})
        expanded = ir.node("Expand", [total, shape.outputs[0]])
        expanded.outputs[0].type = total.type
        graph.insert_before(match.softmax, [tokens, shape, expanded])
        shared[total, length] = expanded.outputs[0]
    return shared[total, length]


def _unbiased(value: ir.Value | None) -> tuple[ir.Value | None, tuple[ir.Value, ...]]:
    """The scores, and what is added to them, in that order."""
    biases: list[ir.Value] = []
    while (add := _only(value, "Add")) is not None and add.inputs[1] is not None:
        value, biases = add.inputs[0], [add.inputs[1], *biases]
    return value, tuple(biases)


def _unscaled(value: ir.Value | None) -> tuple[ir.Value | None, float]:
    """A value before it was multiplied with a constant, or divided by one, and that factor."""
    for op_type, power in (("Mul", 1), ("Div", -1)):
        node = _only(value, op_type)
        constant = ir.convenience.get_const_tensor(node.inputs[1]) if node is not None and node.inputs[1] else None
        if node is not None and constant is not None and constant.size == 1:
            return node.inputs[0], float(constant.numpy().item()) ** power
    return value, 1.0


def _transposed(value: ir.Value | None, permutation: Sequence[int]) -> ir.Value | None:
    """What a transposition reads."""
    node = _only(value, "Transpose")
    if node is None or tuple(node.attributes["perm"].as_ints()) != tuple(permutation):
        return None
    return node.inputs[0]


def _joined_heads(value: ir.Value | None) -> ir.Value | None:
    """What was reshaped to ``[batch, tokens, heads, width]``."""
    node = _only(value, "Reshape")
    source = node.inputs[0] if node is not None else None
    if value is None or source is None or value.shape is None or not _is_joined(source):
        return None
    heads, width = value.shape[-2:]
    fits = len(value.shape) == 4 and isinstance(heads, int) and isinstance(width, int)
    return source if fits and source.shape is not None and source.shape[-1] == heads * width else None  # type: ignore[operator]


def _is_joined(value: ir.Value) -> bool:
    return value.shape is not None and len(value.shape) == 3 and isinstance(value.shape[-1], int)


def _only(value: ir.Value | None, op_type: str) -> ir.Node | None:
    """What makes a value that nothing else reads."""
    node = value.producer() if value is not None and len(value.uses()) == 1 else None
    return node if node is not None and node.op_type == op_type else None


def _only_user(node: ir.Node, op_type: str, permutation: Sequence[int] | None = None) -> ir.Node | None:
    """The one node that reads what a node makes."""
    users = [use.node for use in node.outputs[0].uses()]
    user = users[0] if len(users) == 1 else None
    if user is None or user.op_type != op_type:
        return None
    right = permutation is None or tuple(user.attributes["perm"].as_ints()) == tuple(permutation)
    return user if right else None

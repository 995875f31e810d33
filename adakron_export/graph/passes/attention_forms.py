"""Other forms of attention for machines on which ONNX Runtime's kernel of the standard operator is not the fastest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from adakron_export.graph.keys import MULTI_HEAD_ATTENTION
from adakron_export.graph.passes.rewriting import initializer, replace_node

_CONTRIB = "com.microsoft"


@dataclass(slots=True)
class AttentionFormPass(ir.passes.InPlacePass):
    """Rewrites each `Attention` of `FuseAttentionPass`.

    Attributes:
        form: ``plain`` for the operators that it was made of, or ``MultiHeadAttention`` of ONNX Runtime.
    """

    form: str

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite the main graph."""
        nodes = attention_nodes(model)
        make = _multi_head if self.form == MULTI_HEAD_ATTENTION else _plain
        for node in nodes:
            replace_node(model.graph, node, make(model.graph, node))
        if nodes and self.form == MULTI_HEAD_ATTENTION:
            model.opset_imports[_CONTRIB] = 1
        return ir.passes.PassResult(model, modified=bool(nodes))


def attention_nodes(model: ir.Model) -> list[ir.Node]:
    """The layers that the pass rewrites; not those that keep a cache."""
    return [
        node
        for node in model.graph
        if node.op_type == "Attention" and "q_num_heads" in node.attributes and len(node.outputs) == 1
    ]


def _multi_head(graph: ir.Graph, node: ir.Node) -> list[ir.Node]:
    query, key, value, *mask = node.inputs
    attributes = {"num_heads": node.attributes["q_num_heads"].as_int(), "scale": node.attributes["scale"].as_float()}
    return [ir.node("MultiHeadAttention", [query, key, value, None, None, *mask], attributes, domain=_CONTRIB)]


def _plain(graph: ir.Graph, node: ir.Node) -> list[ir.Node]:
    heads = node.attributes["q_num_heads"].as_int()
    split = initializer(graph, f"attention_{heads}_heads", np.array([0, 0, heads, -1], np.int64))
    join = initializer(graph, "attention_joined", np.array([0, 0, -1], np.int64))
    scale = initializer(graph, f"{node.outputs[0].name}_scale",
                        np.array(node.attributes["scale"].as_float(), np.float32))  # fmt: skip
    added: list[ir.Node] = []

    def add(op_type: str, *inputs: ir.Value | None, **attributes: Any) -> ir.Value:
        added.append(ir.node(op_type, inputs, attributes))
        return added[-1].outputs[0]

    query, keys, values = (
        add("Transpose", add("Reshape", source, split), perm=order)
        for source, order in zip(node.inputs[:3], ((0, 2, 1, 3), (0, 2, 3, 1), (0, 2, 1, 3)), strict=True)
    )
    scores = add("MatMul", add("Mul", query, scale), keys)
    for mask in node.inputs[3:]:
        scores = add("Add", scores, mask)
    result = add("MatMul", add("Softmax", scores, axis=-1), values)
    add("Reshape", add("Transpose", result, perm=(0, 2, 1, 3)), join)
    return added

"""What several rewrites need."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir


def initializer(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    """The graph's weight of a name; it is added where it is not there yet."""
    if name in graph.initializers:
        return graph.initializers[name]
    tensor = ir.tensor(array, name=name)
    value = ir.Value(name=name, const_value=tensor)
    value.dtype, value.shape = tensor.dtype, ir.Shape(array.shape)
    graph.register_initializer(value)
    return value


def replace_node(graph: ir.Graph, node: ir.Node, added: Sequence[ir.Node]) -> None:
    """Put nodes in the place of one; the last of them gives what it gave."""
    old, new = node.outputs[0], added[-1].outputs[0]
    for each in added:
        each.metadata_props.update(node.metadata_props)
    graph.insert_before(node, added)
    new.type, new.shape = old.type, old.shape
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    new.name = old.name

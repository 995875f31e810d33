"""What several rewrites need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

TO_HEADS = (0, 2, 1, 3)  # from [batch, tokens, heads, width] to [batch, heads, tokens, width], and back


def initializer(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    """The graph's weight of a name; it is added where it is not there yet."""
    if name in graph.initializers:
        return graph.initializers[name]
    tensor = ir.tensor(array, name=name)
    value = ir.Value(name=name, const_value=tensor)
    value.dtype, value.shape = tensor.dtype, ir.Shape(array.shape)
    graph.register_initializer(value)
    return value


def replace_node(graph: ir.Graph, node: ir.Node, added: Sequence[ir.Node], result: ir.Value | None = None) -> None:
    """Put nodes in the place of one; the last of them, or ``result``, gives what it gave."""
    old, new = node.outputs[0], added[-1].outputs[0] if result is None else result
    for each in added:
        each.metadata_props.update(node.metadata_props)
    graph.insert_before(node, added)
    new.type, new.shape = old.type, old.shape
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    new.name = old.name


@dataclass(frozen=True, slots=True)
class Affine:
    """A product with a constant weight ``[in, out]``, and the addition of a constant bias ``[out]``."""

    product: ir.Node
    add: ir.Node
    weight: np.ndarray
    bias: np.ndarray


def affine(add: ir.Node | None) -> Affine | None:
    """What an addition ends, where nothing else reads the product."""
    source = add.inputs[0] if add is not None and add.op_type == "Add" else None
    product = source.producer() if source is not None else None
    if add is None or product is None or product.op_type != "MatMul" or only_reader(product) is not add:
        return None
    values = (product.inputs[1], add.inputs[1])
    weight, bias = (ir.convenience.get_const_tensor(value) if value is not None else None for value in values)
    if weight is None or bias is None or (len(weight.shape), len(bias.shape)) != (2, 1):
        return None
    return Affine(product, add, weight.numpy(), bias.numpy())


def only_reader(node: ir.Node) -> ir.Node | None:
    """The one node that reads what a node makes, where the graph does not put it out."""
    uses = node.outputs[0].uses()
    return next(iter(uses)).node if len(uses) == 1 and not node.outputs[0].is_graph_output() else None


def made_by(value: ir.Value | None, op_type: str) -> ir.Node | None:
    """The node that makes a value, where it is of that operator."""
    node = value.producer() if value is not None else None
    return node if node is not None and node.op_type == op_type else None


def number_of(value: ir.Value | None) -> float | None:
    """The number of a constant that has only one."""
    tensor = ir.convenience.get_const_tensor(value) if value is not None else None
    return float(tensor.numpy().reshape(-1)[0]) if tensor is not None and tensor.size == 1 else None


def joined(value: ir.Value | None) -> ir.Value | None:
    """What was reshaped and transposed to heads: ``[batch, tokens, heads * width]``."""
    node = made_by(value, "Transpose")
    if node is None or tuple(node.attributes["perm"].as_ints()) != TO_HEADS:
        return None
    reshape = made_by(node.inputs[0], "Reshape")
    source = reshape.inputs[0] if reshape is not None else None
    heads = node.inputs[0].shape if node.inputs[0] is not None else None
    if source is None or source.shape is None or heads is None or len(source.shape) != 3:
        return None
    count, width = heads[2:]
    return source if isinstance(count, int) and isinstance(width, int) and source.shape[2] == count * width else None


def integer_of(node: ir.Node, name: str) -> int:
    """An attribute, 0 where it is not given."""
    return node.attributes[name].as_int() if name in node.attributes else 0


def array_of(value: ir.Value | None) -> np.ndarray:
    """A weight's numbers."""
    assert value is not None
    assert value.const_value is not None
    return value.const_value.numpy()

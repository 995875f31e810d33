"""An embedding that the head reads too: two weights while they are rounded, and one in the file."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from adakron_export.graph.passes.rewriting import array_of, initializer, integer_of


class CopyTransposedPass(ir.passes.InPlacePass):
    """The weight of a product that is another weight transposed becomes one of its own.

    1. Rewrites ``Transpose`` of an initializer that a ``MatMul`` reads, so that rewrites of products see its numbers.
    2. Outputs are the same numbers; `ShareTransposedPass` takes it back.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite the main graph."""
        found = [node for node in model.graph if _transposes_weight(node)]
        for node in found:
            table, transposed = node.inputs[0], node.outputs[0]
            assert table is not None
            copy = initializer(model.graph, f"{table.name}_transposed", np.ascontiguousarray(array_of(table).T))
            transposed.replace_all_uses_with(copy)
            model.graph.remove(node, safe=True)
        return ir.passes.PassResult(model, modified=bool(found))


def _transposes_weight(node: ir.Node) -> bool:
    if node.op_type != "Transpose" or node.inputs[0] is None or node.inputs[0].const_value is None:
        return False
    output = node.outputs[0]
    readers = [use.node.op_type == "MatMul" and use.idx == 1 for use in output.uses()]
    return len(node.inputs[0].const_value.shape) == 2 and all(readers) and not output.is_graph_output()


class ShareTransposedPass(ir.passes.InPlacePass):
    """A weight that is another one transposed becomes a ``Transpose`` of it.

    1. Rewrites a two-dimensional initializer that holds the numbers of an embedding table, the first input of a
       ``Gather`` along its rows, with the axes exchanged. The exporter makes such a copy for a head that is tied.
    2. Outputs are the same numbers. Runtimes fold the transposition while they open the file.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite the main graph."""
        tables = dict.fromkeys(node.inputs[0] for node in model.graph if _reads_rows(node))
        shared = [_share(model.graph, table, copy) for table in tables for copy in _copies(model.graph, table)]
        return ir.passes.PassResult(model, modified=bool(shared))


def _reads_rows(node: ir.Node) -> bool:
    table = node.inputs[0] if node.op_type == "Gather" else None
    return (
        table is not None
        and table.const_value is not None
        and len(table.const_value.shape) == 2
        and not integer_of(node, "axis")
    )


def _copies(graph: ir.Graph, table: ir.Value | None) -> list[ir.Value]:
    assert table is not None
    assert table.const_value is not None
    rows, columns = table.const_value.shape.numpy()
    return [
        value
        for value in graph.initializers.values()
        if value is not table
        and value.uses()  # one whose product was rounded is left unread
        and value.const_value is not None
        and value.const_value.dtype == table.const_value.dtype
        and tuple(value.const_value.shape.numpy()) == (columns, rows)
        and np.array_equal(array_of(value).T, array_of(table))
    ]


def _share(graph: ir.Graph, table: ir.Value | None, copy: ir.Value) -> ir.Node:
    assert table is not None
    node = ir.node("Transpose", [table], {"perm": (1, 0)})
    transposed = node.outputs[0]
    transposed.type, transposed.shape = copy.type, copy.shape
    first = min((use.node for use in copy.uses()), key=list(graph).index)
    graph.insert_before(first, node)
    copy.replace_all_uses_with(transposed)
    graph.initializers.pop(str(copy.name))
    return node

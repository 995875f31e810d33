"""Makes a graph of one adapter a graph of many, whose weights are inputs."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from adakron_export.errors import ExportError
from adakron_export.graph import bottleneck_op, kron_op
from adakron_export.graph.keys import MODULE_KEY
from adakron_export.graph.layout import CODES, IDS, BankLayout, Head
from adakron_export.graph.passes.rewriting import initializer, only_reader, replace_node
from adakron_export.graph.stacks import Array

ADAPTERS, ROWS = "adapters", "adapter_rows"  # names of the axes


class BankPass(ir.passes.InPlacePass):
    """The weights of adapters and heads become stacks ``[adapters, ...]``, of which each text has its own row.

    1. Rewrites each ``KronAdapter`` into ``KronAdapterBank``, or each ``BottleneckAdapter`` into
       ``BottleneckAdapterBank``, which read the stacks, and each ``Gemm``, ``MatMul`` and ``LayerNormalization`` of a
       head into one that reads gathered weights. The graph must have been captured from a model `with_places`.
    2. Adds the inputs `IDS` ``[batch]`` or ``[1]``, and the stacks. Each has an initializer of its name: whoever knows
       nothing of them gets the first adapter.
    3. Outputs for an id are those of the graph with that adapter's weights in place; rows do not see one another.

    Args:
        layout: What the graph is to take.
        first: The rows of the first adapter; ``None`` leaves the inputs without initializers.
    """

    def __init__(self, layout: BankLayout, first: Mapping[str, Array] | None) -> None:
        self.layout = layout
        self._first = first
        self._stacks: dict[str, ir.Value] = {}
        self._gathered: dict[str, ir.Value] = {}

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite the main graph."""
        graph, layout = model.graph, self.layout
        self._add_inputs(graph)
        operator = kron_op.OP_TYPE if layout.kind == "adakron" else bottleneck_op.OP_TYPE
        adapters = [node for node in graph if (node.domain, node.op_type) == (kron_op.DOMAIN, operator)]
        for node in adapters:
            self._bank_adapter(graph, node)
        for head in layout.heads:
            self._bank_head(graph, head)
        model.functions.clear()
        opset = model.opset_imports[""]
        casts = any(
            _floating(node).numpy() != np.dtype(layout.dtype) for node in graph if node.domain == kron_op.DOMAIN
        )
        if layout.kind == "adakron":
            function = kron_op.bank_function(layout.width, layout.k, layout.activations, opset=opset, casts=casts)
        else:
            function = bottleneck_op.bank_function(
                layout.activations, opset=opset, has_bias=layout.has_biases, casts=casts
            )
        model.functions[function.identifier()] = function
        model.opset_imports[kron_op.DOMAIN] = kron_op.VERSION
        return ir.passes.PassResult(model, modified=True)

    def _add_inputs(self, graph: ir.Graph) -> None:
        dtype = ir.DataType.from_numpy(np.dtype(self.layout.dtype))
        first = self._first
        values = [_input(IDS, ir.DataType.INT64, (ROWS,), None if first is None else np.zeros(1, np.int64))]
        values += [
            _input(stack.name, dtype, (ADAPTERS, *stack.shape), None if first is None else first[stack.name][None])
            for stack in self.layout.stacks
        ]
        for value in values:
            self._stacks[str(value.name)] = value
            if value.const_value is not None:
                _replace_initializer(graph, value)
            graph.inputs.append(value)

    def _rows(self, graph: ir.Graph, name: str, before: ir.Node) -> ir.Value:
        """Each text's row of a stack, ``[rows, ...]``, in the dtype that the graph computes in.

        It is gathered right before it is read; see `kron_op.bank_body_text`.
        """
        if name not in self._gathered:
            stack, computes_in = self._stacks[name], _floating(before)
            node = ir.node("Gather", [stack, self._stacks[IDS]], {"axis": 0}, name=f"{name}.of_rows")
            rows = node.outputs[0]
            rows.name, rows.type = node.name, stack.type
            rows.shape = ir.Shape([ROWS, *list(stack.shape or ())[1:]])
            added = [node]
            if computes_in is not stack.dtype:
                added.append(ir.node("Cast", [rows], {"to": int(computes_in)}))
                added[-1].outputs[0].shape, added[-1].outputs[0].dtype = rows.shape, computes_in
            for each in added:
                each.metadata_props[MODULE_KEY] = name.rpartition(".")[0]
            graph.insert_before(before, added)
            self._gathered[name] = added[-1].outputs[0]
        return self._gathered[name]

    def _bank_adapter(self, graph: ir.Graph, node: ir.Node) -> None:
        module, layout = node.metadata_props[MODULE_KEY], self.layout
        _check_rows(graph, node, module)
        down, up = self._stacks[f"{module}.down"], self._stacks[f"{module}.up"]
        ids = self._stacks[IDS]
        code = [self._stacks[CODES]] if len(layout.activations) > 1 else []
        bias = [self._stacks[f"{module}.down_bias"]] if layout.has_biases else []
        attributes: dict[str, int | str] = {"activations": " ".join(layout.activations)}
        inputs: list[ir.Value | None]
        if layout.kind == "adakron":
            read = self._with_bias(graph, node, 0, f"{module}.up_bias")
            inputs, operator = [read, ids, down, *bias, up, *code], kron_op.BANK_OP_TYPE
            attributes["k"] = layout.k
        else:
            added_to = self._with_bias(graph, node, 1, f"{module}.up_bias") if layout.has_biases else node.inputs[1]
            inputs, operator = [node.inputs[0], added_to, ids, down, up, *bias, *code], bottleneck_op.BANK_OP_TYPE
        replace_node(graph, node, [ir.node(operator, inputs, attributes, domain=kron_op.DOMAIN)])

    def _with_bias(self, graph: ir.Graph, node: ir.Node, index: int, name: str) -> ir.Value:
        """An input of an adapter, and the bias of its up-projection.

        Where a projection makes it for nobody else, and ends in an addition of its own bias, both are added up first,
        which is one addition of all tokens less.
        """
        value = node.inputs[index]
        assert value is not None
        before = value.producer()
        own = before.inputs[1] if before is not None and before.op_type == "Add" else None
        alone = before is not None and len(value.uses()) == 1 and only_reader(before) is node
        if before is not None and alone and _is_constant(own, 1):
            bias = self._rows(graph, name, before)
            total = _node_like(before, "Add", [bias, own], bias)
            graph.insert_before(before, [total])
            before.replace_input_with(1, total.outputs[0])
            return value
        added = _node_like(node, "Add", [value, self._rows(graph, name, node)], value)
        graph.insert_before(node, [added])
        return added.outputs[0]

    def _bank_head(self, graph: ir.Graph, head: Head) -> None:
        nodes = [node for node in graph if node.metadata_props.get(MODULE_KEY) == head.module]
        found = [node for node in nodes if self._bank_module(graph, node, head)]
        if not found:
            raise ExportError(f"the graph shows no product of {head.module}, which each adapter has its own of")

    def _bank_module(self, graph: ir.Graph, node: ir.Node, head: Head) -> bool:
        if head.kind == "norm" and node.op_type == "LayerNormalization":
            self._bank_norm(graph, node, head)
        elif head.kind == "linear" and node.op_type in ("Gemm", "MatMul") and _is_constant(node.inputs[1], 2):
            self._bank_linear(graph, node, head)
        else:
            return False
        return True

    def _bank_linear(self, graph: ir.Graph, node: ir.Node, head: Head) -> None:
        value = node.inputs[0]
        assert value is not None
        assert value.shape is not None
        if len(value.shape) == 2:
            self._bank_flat(graph, node, head)
            return
        adding = only_reader(node)
        if head.bias and (adding is None or adding.op_type != "Add" or not _is_constant(adding.inputs[1], 1)):
            raise ExportError(f"the graph does not show the bias of {head.module}")
        node.replace_input_with(1, self._rows(graph, f"{head.module}.weight", node))
        if head.bias and adding is not None:
            adding.replace_input_with(1, self._rows(graph, f"{head.module}.bias", adding))
        _set_width(node.outputs[0], head.shape[0])

    def _bank_flat(self, graph: ir.Graph, node: ir.Node, head: Head) -> None:
        """Of ``[batch, hidden]``, which gets an axis of one token meanwhile."""
        axis = initializer(graph, "bank_second_axis", np.array([1], np.int64))
        last = _insert(graph, node, "Unsqueeze", [node.inputs[0], axis])
        last = _insert(graph, node, "MatMul", [last, self._rows(graph, f"{head.module}.weight", node)])
        if head.bias:
            last = _insert(graph, node, "Add", [last, self._rows(graph, f"{head.module}.bias", node)])
        _set_width(node.outputs[0], head.shape[0])
        replace_node(graph, node, [ir.node("Squeeze", [last, axis])])

    def _bank_norm(self, graph: ir.Graph, node: ir.Node, head: Head) -> None:
        value = node.inputs[0]
        assert value is not None
        if value.shape is None or len(value.shape) != 3:
            raise ExportError(
                f"{head.module} normalises what is not [batch, tokens, hidden], which a bank cannot hold"
            )
        numbers = np.dtype(self.layout.dtype)
        ones = initializer(graph, f"bank_ones_{head.shape[0]}", np.ones(head.shape, numbers))
        plain = ir.node("LayerNormalization", [value, ones], dict(node.attributes))
        scaled = ir.node("Mul", [plain.outputs[0], self._rows(graph, f"{head.module}.weight", node)])
        added = [plain, scaled]
        if head.bias:
            added.append(ir.node("Add", [scaled.outputs[0], self._rows(graph, f"{head.module}.bias", node)]))
        replace_node(graph, node, added)


class OneAdapterPass(ir.passes.InPlacePass):
    """The graph of a bank becomes that of one of its adapters.

    1. The stacks become constants that hold this adapter's rows alone, and the input `IDS` one that is 0.
    2. Outputs are those of the bank for the adapter, with its own labels alone.

    Args:
        layout: What the graph takes.
        rows: The adapter's rows by stack; see `own_rows`.
    """

    def __init__(self, layout: BankLayout, rows: Mapping[str, Array]) -> None:
        self._layout = layout
        self._rows = rows

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite the main graph."""
        arrays = {IDS: np.zeros(1, np.int64), **{name: row[None] for name, row in self._rows.items()}}
        own = [value for value in model.graph.inputs if value.name in arrays]
        for value in own:
            model.graph.inputs.remove(value)
            if value.name not in model.graph.initializers:
                value.const_value = ir.tensor(arrays[str(value.name)], name=value.name)
                model.graph.register_initializer(value)
        for name, array in arrays.items():
            value = model.graph.initializers[name]
            value.const_value = ir.tensor(array, name=name)
            value.shape = ir.Shape(array.shape)
        for head in self._layout.heads:
            self._narrow(model.graph, head)
        return ir.passes.PassResult(model, modified=True)

    def _narrow(self, graph: ir.Graph, head: Head) -> None:
        """Say that a head's output is as wide as the adapter's own labels."""
        for node in graph:
            if head.labels and node.metadata_props.get(MODULE_KEY) == head.module and node.op_type != "Unsqueeze":
                _set_width(node.outputs[0], self._rows[f"{head.module}.weight"].shape[-1])


def rows_in(model: ir.Model, layout: BankLayout, place: int) -> dict[str, Array]:
    """The rows of one adapter that a graph itself holds; empty where its stacks are inputs without initializers."""
    values = {stack.name: model.graph.initializers.get(stack.name) for stack in layout.stacks}
    return {
        name: value.const_value.numpy()[place]
        for name, value in values.items()
        if value is not None and value.const_value is not None
    }


def require_inputs(model: ir.Model) -> None:
    """Take the initializers of inputs away: some runtimes would take them for constants."""
    for value in model.graph.inputs:
        if model.graph.initializers.pop(str(value.name), None) is not None:
            value.const_value = None


def _check_rows(graph: ir.Graph, node: ir.Node, module: str) -> None:
    """Raise where an adapter does not see ``[batch, tokens, ...]``: rows of other texts would get its weights."""
    texts = graph.inputs[0].shape
    for value in node.inputs[:2] if node.op_type == bottleneck_op.OP_TYPE else node.inputs[:1]:
        shape = value.shape if value is not None else None
        if texts is None or shape is None or len(shape) != 3 or shape[0] != texts[0]:
            raise ExportError(
                f"{module} reads {shape}, not [batch, tokens, hidden], so that a bank cannot tell its rows apart; "
                "export each adapter alone, with `adakron-export onnx`"
            )


def _input(name: str, dtype: ir.DataType, shape: tuple[int | str, ...], default: Array | None) -> ir.Value:
    value = ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype))
    if default is not None:
        value.const_value = ir.tensor(default, name=name)
    return value


def _replace_initializer(graph: ir.Graph, value: ir.Value) -> None:
    """Register a stack; where the captured graph has a weight of this name, nothing reads that one in the end."""
    own = graph.initializers.get(str(value.name))
    if own is not None:
        own.name = f"{own.name}.of_one_adapter"
    graph.register_initializer(value)


def _floating(node: ir.Node) -> ir.DataType:
    """What a node computes in: the dtype of its first input."""
    value = node.inputs[0]
    assert value is not None
    assert value.dtype is not None
    return value.dtype


def _is_constant(value: ir.Value | None, rank: int) -> bool:
    tensor = value.const_value if value is not None else None
    return tensor is not None and len(tensor.shape) == rank


def _set_width(value: ir.Value, width: int) -> None:
    """Say how wide a head's output is, and what is made of it on the way out."""
    shape = value.shape
    if shape is None or shape[-1] == width:
        return
    before = shape[-1]
    value.shape = ir.Shape([*list(shape)[:-1], width])
    for use in value.uses():
        for output in use.node.outputs:
            if output.shape is not None and len(output.shape) and output.shape[-1] == before:
                _set_width(output, width)


def _insert(graph: ir.Graph, before: ir.Node, op_type: str, inputs: list[ir.Value | None]) -> ir.Value:
    node = ir.node(op_type, inputs)
    node.metadata_props.update(before.metadata_props)
    graph.insert_before(before, [node])
    return node.outputs[0]


def _node_like(near: ir.Node, op_type: str, inputs: list[ir.Value | None], like: ir.Value) -> ir.Node:
    node = ir.node(op_type, inputs)
    node.metadata_props.update(near.metadata_props)
    node.outputs[0].type, node.outputs[0].shape = like.type, like.shape
    return node

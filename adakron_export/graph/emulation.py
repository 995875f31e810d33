"""Half precision on a machine that cannot compute it: every operator in fp32, every result rounded.

ONNX Runtime's CPU kernels have no bf16, so a bf16 graph is validated there as this one. Rounding after each operator
is what an accelerator does that accumulates in fp32.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common

from adakron_export.graph.layout import IDS
from adakron_export.tasks import PAST

_HALF = (ir.DataType.BFLOAT16, ir.DataType.FLOAT16)
_MOVES_ONLY = {"Gather", "Identity", "Reshape", "Split", "Slice", "Squeeze", "Transpose", "Unsqueeze", "Expand"}


def emulate(model: ir.Model) -> ir.Model:
    """A new graph that computes in fp32 and rounds to the half type of ``model`` after every operator."""
    emulated = model.clone()
    ir.passes.Sequential(common.InlinePass(), common.ShapeInferencePass())(emulated)
    graph = emulated.graph
    for value in graph.initializers.values():
        if value.dtype in _HALF and value.const_value is not None:
            value.const_value = ir.tensor(value.const_value.numpy().astype("float32"), name=value.name)
            value.type = ir.TensorType(ir.DataType.FLOAT)  # a new one: clones share the types of their values
    _widen_inputs(graph)
    for node in list(graph):
        _widen_attributes(node)
        for output in node.outputs:
            if output.dtype in _HALF:
                half = output.dtype
                output.type = ir.TensorType(ir.DataType.FLOAT)
                if node.op_type not in _MOVES_ONLY:
                    _round(graph, node, output, half)
    return emulated


def _widen_inputs(graph: ir.Graph) -> None:
    """The stacks of a bank, and keys and values of the past, are handed over in fp32; images are not."""
    bank = any(value.name == IDS for value in graph.inputs)
    for value in graph.inputs:
        if value.dtype in _HALF and (bank or str(value.name).startswith(PAST)):
            value.type = ir.TensorType(ir.DataType.FLOAT)


def _widen_attributes(node: ir.Node) -> None:
    to = node.attributes.get("to")
    if node.op_type == "Cast" and to is not None and to.as_int() in [int(half) for half in _HALF]:
        node.attributes["to"] = ir.AttrInt64("to", int(ir.DataType.FLOAT))
    value = node.attributes.get("value")
    if node.op_type == "Constant" and value is not None and value.as_tensor().dtype in _HALF:
        node.attributes["value"] = ir.AttrTensor("value", ir.tensor(value.as_tensor().numpy().astype("float32")))


def _round(graph: ir.Graph, node: ir.Node, output: ir.Value, half: ir.DataType) -> None:
    down = ir.node("Cast", [output], {"to": int(half)})
    up = ir.node("Cast", [down.outputs[0]], {"to": int(ir.DataType.FLOAT)})
    down.outputs[0].dtype, up.outputs[0].dtype = half, ir.DataType.FLOAT
    readers = [(use.node, use.idx) for use in output.uses() if use.node is not down]
    graph.insert_after(node, [down, up])
    for reader, index in readers:
        reader.replace_input_with(index, up.outputs[0])

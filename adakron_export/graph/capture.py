"""Captures a folded module as an ONNX graph."""

from __future__ import annotations

import contextlib
import gc
import logging
import re
import warnings
from collections.abc import Iterator, Mapping

import onnx_ir as ir
import torch
from onnxscript import values as onnxscript_values
from torch import Tensor

from adakron_export._version import __version__
from adakron_export.adapter.bottleneck.op import bottleneck_adapter
from adakron_export.adapter.op import kron_adapter
from adakron_export.checkpoints.task_model import Signature, TaskModel
from adakron_export.errors import ExportError
from adakron_export.graph import bottleneck_op, kron_op
from adakron_export.graph.attention import use_plain_attention
from adakron_export.graph.decomposition import undecomposed_where_possible
from adakron_export.graph.keys import MODULE_KEY
from adakron_export.graph.simplify import simplify

OPSETS = range(18, 24)


def capture(model: TaskModel, sample: dict[str, Tensor], *, opset: int) -> ir.Model:
    """The module as a portable graph, with one node of domain `adakron` per adapter, and its function.

    Args:
        model: A folded model behind its signature; its attention is switched to the exported one.
        sample: One batch of inputs, ``[batch, tokens]`` each, of at least 2 x 2.
        opset: Version of the standard operators.

    Raises:
        ExportError: PyTorch cannot export it, or an axis that should be dynamic is not.
    """
    if opset not in OPSETS:
        raise ExportError(f"opset {opset} is not supported; choose {OPSETS.start} to {OPSETS.stop - 1}")
    use_plain_attention(model.model)
    kron_op.register_schema()
    bottleneck_op.register_schema()
    tensors = tuple(sample[name] for name in model.signature.inputs)
    axes = tuple(dict.fromkeys(names, torch.export.Dim.DYNAMIC) for names in model.signature.inputs.values())
    try:
        with _quiet_exporter(), _uncollected(), undecomposed_where_possible(), torch.no_grad():
            program = torch.onnx.export(
                model,
                tensors,
                dynamo=True,
                opset_version=opset,
                input_names=list(model.signature.inputs),
                output_names=list(model.signature.outputs),
                dynamic_shapes=(axes,),
                custom_translation_table={
                    torch.ops.adakron.kron_adapter.default: _kron_node,
                    torch.ops.adakron.bottleneck_adapter.default: _bottleneck_node,
                },
                verbose=False,
                optimize=False,
            )
            if program is None:
                raise ExportError("PyTorch returned no graph")
            simplify(program.model)
    except (torch.onnx.errors.OnnxExporterError, RuntimeError, ValueError, TypeError) as error:
        raise ExportError(
            f"PyTorch {torch.__version__} cannot export this {type(model.model).__name__}: {_reason(error)}"
        ) from error
    graph = program.model
    _name_axes(graph, model.signature)
    _drop_prefix(graph, "model.")
    _keep_module_names(graph, "model.")
    _attach_functions(graph, opset)
    graph.producer_name, graph.producer_version = "adakron-export", __version__
    return graph


def _kron_node(  # noqa: PLR0913, RUF100 - the operator's own signature
    x: Tensor, a1_weight: Tensor, a1_bias: Tensor, a2_weight: Tensor, a2_bias: Tensor, up_weight: Tensor,
    order: str, activation: str,
) -> Tensor:  # fmt: skip
    opset = onnxscript_values.Opset(kron_op.DOMAIN, kron_op.VERSION)
    node: Tensor = opset.KronAdapter(
        x, a1_weight, a1_bias, a2_weight, a2_bias, up_weight, order=order, activation=activation
    )
    return node


def _bottleneck_node(  # noqa: PLR0913, RUF100 - the operator's own signature
    x: Tensor, residual: Tensor, down_weight: Tensor, down_bias: Tensor, up_weight: Tensor, up_bias: Tensor | None,
    activation: str,
) -> Tensor:  # fmt: skip
    opset = onnxscript_values.Opset(kron_op.DOMAIN, kron_op.VERSION)
    inputs = [x, residual, down_weight, down_bias, up_weight, *([] if up_bias is None else [up_bias])]
    node: Tensor = opset.BottleneckAdapter(*inputs, activation=activation)
    return node


@contextlib.contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Without the exporter's warnings and log lines: they speak of torch's own deprecations and of torchvision."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Without Python's cyclic garbage collector, which spends a tenth of an export's time on what a trace still needs.

    It would free 20 MB of BERT-base's 980.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _reason(error: BaseException) -> str:
    """The innermost cause, in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:300] if lines else ''}"


def _name_axes(model: ir.Model, signature: Signature) -> None:
    """Give the dynamic axes their names everywhere, and check that each of them is dynamic."""
    renamed: dict[str, str] = {}
    for value in model.graph.inputs:
        for axis, name in signature.inputs[str(value.name)].items():
            dim = value.shape[axis] if value.shape is not None else None
            if not isinstance(dim, ir.SymbolicDim) or dim.value is None:
                raise ExportError(f"axis {axis} ({name}) of input {value.name} came out fixed at {dim}")
            renamed[str(dim.value)] = name
    values = [*model.graph.inputs, *(out for node in model.graph.all_nodes() for out in node.outputs)]
    for value in values:
        if value.shape is not None:
            value.shape = ir.Shape(
                [_named(dim, renamed) if isinstance(dim, ir.SymbolicDim) else dim for dim in value.shape]
            )


def _named(dim: ir.SymbolicDim, names: Mapping[str, str]) -> str | None:
    """The name of a dimension, whose parts torch adds up in any order."""
    known = names.get(str(dim.value))
    parts = str(dim.value).split(" + ")
    if known is None and len(parts) > 1 and all(part in names for part in parts):
        known = " + ".join(sorted(names[part] for part in parts))
    return known or dim.value


def _drop_prefix(model: ir.Model, prefix: str) -> None:
    """Weights keep the names that they have in the checkpoint."""
    for name, value in list(model.graph.initializers.items()):
        if name.startswith(prefix):
            value.name = name.removeprefix(prefix)


def _keep_module_names(model: ir.Model, prefix: str) -> None:
    """Of the exporter's notes keep which module a node comes from; the rest names files of this machine."""
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    for value in (*model.graph.initializers.values(), *model.graph.inputs):
        value.metadata_props.clear()
    for node in model.graph.all_nodes():
        scopes = node.metadata_props.get("pkg.torch.onnx.name_scopes", "")
        modules = [name for name in re.findall(r"'([^']*)'", scopes) if name.startswith(prefix)]
        node.metadata_props.clear()
        node.doc_string = None
        if modules:
            node.metadata_props[MODULE_KEY] = modules[-1].removeprefix(prefix)
        for value in node.outputs:
            value.metadata_props.clear()


def _attach_functions(model: ir.Model, opset: int) -> None:
    """Let the graph carry the function of each operator of ours in it."""
    for operator, function in ((kron_op.OP_TYPE, _kron_function), (bottleneck_op.OP_TYPE, _bottleneck_function)):
        nodes = nodes_of(model, operator)
        if not nodes:
            continue
        forms = {_form(node) for node in nodes}
        if len(forms) > 1:
            raise ExportError(f"the adapters differ in their settings ({sorted(forms)}); a model holds one kind")
        carried = function(nodes[0], opset)
        model.functions[carried.identifier()] = carried
        model.opset_imports[kron_op.DOMAIN] = kron_op.VERSION


def _form(node: ir.Node) -> str:
    """What an operator's function depends on."""
    settings = ", ".join(f"{name} {each.value}" for name, each in sorted(node.attributes.items()))
    return f"{settings} with {len(node.inputs)} inputs"


def _kron_function(node: ir.Node, opset: int) -> ir.Function:
    settings = node.attributes
    return kron_op.kron_function(settings["order"].as_string(), settings["activation"].as_string(), opset=opset)


def _bottleneck_function(node: ir.Node, opset: int) -> ir.Function:
    has_bias = len(node.inputs) == len(bottleneck_op.INPUTS)
    return bottleneck_op.bottleneck_function(node.attributes["activation"].as_string(), opset=opset, has_bias=has_bias)


def nodes_of(model: ir.Model, operator: str) -> list[ir.Node]:
    """The nodes of an operator of ours in a graph, in order."""
    return [node for node in model.graph if (node.domain, node.op_type) == (kron_op.DOMAIN, operator)]


def kron_nodes(model: ir.Model) -> list[ir.Node]:
    """The `adakron::KronAdapter` nodes of a graph, in order."""
    return nodes_of(model, kron_op.OP_TYPE)


assert kron_adapter is not None  # imported for what they register with torch
assert bottleneck_adapter is not None

"""Every value that a graph computes on one batch, to find where it goes wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
from onnx_ir.passes import common

from adakron_export.artifacts.manifest import Manifest
from adakron_export.graph.keys import MODULE_KEY, SHIFTED_KEY
from adakron_export.graph.passes.unsigned_weights import UnsignedWeightsPass
from adakron_export.probing.watching import graph_runner
from adakron_export.runtimes.base import Array, Batch

_TRACED = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE)


@dataclass(frozen=True, slots=True)
class TracedNode:
    """A node and what it put out.

    Attributes:
        key: ``(module, op type, number)``: the number of nodes of this type that the module had before. The same
            node has the same key in every export of a model.
        name: Name of the node in the graph.
        module: The model's module it comes from; empty where it belongs to none.
        op_type: Name of a standard operator.
        value: Its first output.
        settings: Attributes, and constant inputs, by name.
        readers: The modules of the nodes that read it.
        shifted: Whether a rewrite left out a bias that the module adds.
    """

    key: tuple[str, str, int]
    name: str
    module: str
    op_type: str
    value: Array
    settings: Mapping[str, Any]
    readers: tuple[str, ...]
    shifted: bool


def trace_graph(model: ir.Model, manifest: Manifest, batch: Batch, *, device: str) -> list[TracedNode]:
    """Run a graph without ONNX Runtime's optimisers and keep what its nodes put out.

    Args:
        model: A graph of any target and dtype; half precision on the CPU is emulated.
        manifest: Its inputs and outputs.
        batch: What to run.
        device: A device of ONNX Runtime.
    """
    plain = model.clone()
    common.InlinePass()(plain)
    UnsignedWeightsPass()(plain)  # ONNX Runtime's own way to exact integers is one of its optimisers
    keys = _number(plain)
    nodes = {str(node.outputs[0].name): node for node in plain.graph}
    half = manifest.computes_in_half and device == "cpu"
    if half:
        from adakron_export.graph.emulation import emulate

        plain = emulate(plain)
    else:
        common.ShapeInferencePass()(plain)
    rounded = _rounded(plain) if half else {}
    known = {str(value.name) for value in plain.graph.outputs}
    for node in list(plain.graph):
        value = node.outputs[0]
        if value.dtype in _TRACED and value.name not in known:
            plain.graph.outputs.append(value)
    common.RemoveUnusedOpsetsPass()(plain)
    watched = [str(value.name) for value in plain.graph.outputs]
    runner = graph_runner(
        plain, manifest.in_fp32() if half else manifest, watched=watched, device=device, optimize=False
    )
    values = runner.run(batch)
    return [
        TracedNode(
            keys[name], str(node.name), keys[name][0], node.op_type, values[rounded.get(name, name)], _settings(node),
            tuple(keys[str(use.node.outputs[0].name)][0] for use in node.outputs[0].uses()),
            SHIFTED_KEY in node.metadata_props,
        )
        for name, node in nodes.items()
        if rounded.get(name, name) in values
    ]  # fmt: skip


def module_values(nodes: list[TracedNode]) -> dict[str, list[Array]]:
    """What each module hands on, in the order in which they begin: the values that nodes outside of it read.

    A module that hands on a value that is shifted is left out.
    """
    found: dict[str, list[Array]] = {}
    shifted = set()
    for node in nodes:
        for module in _with_parents(node.module):
            found.setdefault(module, [])
            inside = [reader == module or reader.startswith(module + ".") for reader in node.readers]
            if not all(inside) or not inside:
                found[module].append(node.value)
                if node.shifted:
                    shifted.add(module)
    return {module: values for module, values in found.items() if module not in shifted}


def _with_parents(module: str) -> Iterator[str]:
    parts = module.split(".") if module else []
    for count in range(1, len(parts) + 1):
        yield ".".join(parts[:count])


def _number(model: ir.Model) -> dict[str, tuple[str, str, int]]:
    """The key of each node by its first output."""
    seen: Counter[tuple[str, str]] = Counter()
    keys = {}
    for node in model.graph:
        module = node.metadata_props.get(MODULE_KEY, "")
        keys[str(node.outputs[0].name)] = (module, node.op_type, seen[module, node.op_type])
        seen[module, node.op_type] += 1
    return keys


def _rounded(emulated: ir.Model) -> dict[str, str]:
    """Where the rounded form of a value is, by the value's name."""
    found = {}
    for node in emulated.graph:
        uses = list(node.outputs[0].uses())
        if len(uses) == 1 and uses[0].node.op_type == "Cast" and node.op_type != "Cast":
            down = uses[0].node
            ups = [use.node for use in down.outputs[0].uses() if use.node.op_type == "Cast"]
            if len(ups) == 1:
                found[str(node.outputs[0].name)] = str(ups[0].outputs[0].name)
    return found


def _settings(node: ir.Node) -> dict[str, Any]:
    settings: dict[str, Any] = {name: attribute.value for name, attribute in node.attributes.items()}
    for index, value in enumerate(node.inputs):
        if value is not None and value.const_value is not None:
            settings[f"input {index}"] = value.const_value
    return settings

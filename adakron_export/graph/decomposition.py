"""Spares the exporter its decompositions where a program needs none.

torch 2.13 traces every exported program a second time to decompose its operators, two fifths of an export's time. Of
most models nothing is decomposed by it but conversions of dtype, and two operators that are others under another name.
Remove this when `torch.onnx.export` looks first.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

_EXPORTER = "torch.onnx._internal.exporter"
_CONVERSIONS = ("aten::to.device", "aten::to.dtype", "aten::to.dtype_layout")
_SYNONYMS = {
    "aten::detach_": torch.ops.aten.alias.default,
    "aten::__and__.Tensor": torch.ops.aten.bitwise_and.Tensor,
}


@contextmanager
def undecomposed_where_possible() -> Iterator[None]:
    """Within this, `torch.onnx.export` decomposes only programs with operators that ONNX has no translation of."""
    passes, registered = _internals()
    if passes is None or registered is None:
        yield
        return
    decompose = passes.decompose_with_registry

    def decompose_if_needed(program: Any, registry: Any) -> Any:
        known = set(registered(registry))
        if not all(_is_translated(node, known) for node in program.graph.nodes):
            return decompose(program, registry)
        for node in program.graph.nodes:
            if _name(node) in _CONVERSIONS:
                _write_out(node)
            elif _name(node) in _SYNONYMS:
                node.target = _SYNONYMS[_name(node)]
        return program

    passes.decompose_with_registry = decompose_if_needed
    try:
        yield
    finally:
        passes.decompose_with_registry = decompose


def _internals() -> tuple[Any, Any]:
    """Where torch decomposes, and what lists the operators that it can translate; none where they have moved."""
    try:
        passes = importlib.import_module(f"{_EXPORTER}._fx_passes")
        table = importlib.import_module(f"{_EXPORTER}._decomp")
    except ImportError:
        return None, None
    there = passes if hasattr(passes, "decompose_with_registry") else None
    return there, getattr(table, "get_onnx_implemented_overloads", None)


def _name(node: torch.fx.Node) -> str:
    target = node.target
    return target.name() if isinstance(target, torch._ops.OpOverload) else ""


def _is_translated(node: torch.fx.Node, known: set[Any]) -> bool:
    if node.op in ("placeholder", "output"):
        return True
    # Arithmetic of shapes is Python's own; assertions are removed later.
    arithmetic = node.op == "call_function" and not isinstance(node.target, torch._ops.OpOverload)
    name = _name(node)
    written_out = name in _CONVERSIONS or name in _SYNONYMS or name.startswith("aten::_assert")
    return arithmetic or written_out or node.target in known


def _write_out(node: torch.fx.Node) -> None:
    """Make a conversion the copy that decomposing would make of it, or an alias where the dtype stays."""
    value = node.args[0]
    assert isinstance(value, torch.fx.Node)
    wanted = node.meta["val"].dtype
    stays = value.meta["val"].dtype == wanted
    node.target = torch.ops.aten.alias.default if stays else torch.ops.aten._to_copy.default
    node.args, node.kwargs = (value,), {} if stays else {"dtype": wanted}

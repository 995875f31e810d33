"""Asks TensorRT's parser whether it will take a graph, before anything is built."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from adakron_export.artifacts.artifact import Artifact
from adakron_export.engines.builder import modules_named, strongly_typed
from adakron_export.engines.logger import collecting_logger
from adakron_export.machine.flavors import Flavor

if TYPE_CHECKING:
    import onnx_ir as ir


@dataclass(frozen=True, slots=True)
class OpSupport:
    """An operator of the graph.

    Attributes:
        op: The operator, with its domain where that is not the standard one.
        count: How often it stands in the graph; a function counts once per call.
        refused: How many of them the parser does not take.
    """

    op: str
    count: int
    refused: int


@dataclass(frozen=True, slots=True)
class SupportReport:
    """What the parser says.

    Attributes:
        parser: The parser that was asked, with its version.
        passed: Whether it takes the whole graph.
        ops: Those that are refused first, then by their number.
        problems: Its own words on each node that it refuses.
    """

    parser: str
    passed: bool
    ops: tuple[OpSupport, ...]
    problems: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return {"format_version": 1, **asdict(self)}


def check_support(artifact: Artifact, flavor: Flavor) -> SupportReport:
    """Ask a flavor's parser about every node.

    Args:
        artifact: An artifact of any target.
        flavor: The builder whose parser is asked; it needs no GPU.

    Raises:
        MissingPackageError: The flavor is not installed.
    """
    import onnx_ir as ir

    trt = flavor.load()

    logger = collecting_logger(trt)
    builder = trt.Builder(logger)
    network = builder.create_network(strongly_typed(trt))  # the parser does not keep it alive
    parser = trt.OnnxParser(network, logger)
    taken = bool(parser.supports_model_v2(artifact.model.read_bytes(), os.fspath(artifact.model)))
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    refused = {name for error in errors for name in (error.node_name(), *error.local_function_stack())}
    nodes = list(ir.load(artifact.model).graph)
    counts = Counter(_op(node) for node in nodes)
    bad = Counter(_op(node) for node in nodes if node.name in refused)
    ops = sorted(
        (OpSupport(op, count, bad[op]) for op, count in counts.items()), key=lambda row: (-row.refused, -row.count)
    )
    problems = [f"{error.desc().strip()}{modules_named(artifact, error.node_name())}" for error in errors]
    return SupportReport(f"{flavor.module} {trt.__version__}", taken, tuple(ops), tuple(dict.fromkeys(problems)))


def _op(node: ir.Node) -> str:
    return f"{node.domain}::{node.op_type}" if node.domain else node.op_type

"""Looks at a graph's file before a runtime loads it, without reading its weights.

Whoever opens a model runs it. No graph of ours loops or branches, so one that does is refused: it need not end. And
weights that lie in other files are taken only from those that the manifest lists.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Collection, Iterator
from pathlib import PurePosixPath

from adakron_export.artifacts.artifact import Artifact
from adakron_export.artifacts.listing import files_of
from adakron_export.errors import ArtifactError
from adakron_export.files.protobuf import read_fields, read_varints

_REFUSED = ("Loop", "Scan", "If", "SequenceMap")
_DEEPEST = 8  # graphs within attributes of nodes
# Field numbers of onnx.proto.
_MODEL_GRAPH, _MODEL_FUNCTIONS = 7, 25
_GRAPH_NODE, _GRAPH_INITIALIZER, _FUNCTION_NODE = 1, 5, 7
_NODE_INPUT, _NODE_OP_TYPE, _NODE_ATTRIBUTE = 1, 4, 5
_ATTRIBUTE_TENSOR, _ATTRIBUTE_GRAPH, _ATTRIBUTE_TENSORS, _ATTRIBUTE_GRAPHS = 5, 6, 10, 11
_TENSOR_DIMS, _TENSOR_DATA_TYPE, _TENSOR_RAW_DATA, _TENSOR_EXTERNAL_DATA = 1, 2, 9, 13
_ENTRY_KEY, _ENTRY_VALUE = 1, 2
# Bits of a number by `TensorProto.DataType`: all but texts and complex numbers.
_BITS = {1: 32, 2: 8, 3: 8, 4: 16, 5: 16, 6: 32, 7: 64, 9: 8, 10: 16, 11: 64, 12: 32, 13: 64, 16: 16, 17: 8, 18: 8,
         19: 8, 20: 8, 21: 4, 22: 4}  # fmt: skip
_LARGEST_DIM = 2**40  # negative ones are larger in protobuf's numbers


def check_graph_file(artifact: Artifact) -> None:
    """Raise where a graph may never end, or reads weights from a file that the manifest does not list.

    Raises:
        ArtifactError: The file has such operators, or is no graph.
    """
    file = artifact.model
    folder = file.parent.relative_to(artifact.folder).as_posix()
    names = artifact.manifest.files or files_of(artifact.folder)  # of one that is being made
    places = [PurePosixPath(name) for name in names]
    listed = {place.relative_to(folder).as_posix() for place in places if place.is_relative_to(folder)}
    try:
        with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            view = memoryview(mapped)
            try:
                problem = next(_problems(view, listed), None)
            finally:
                view.release()
    except BufferError:
        problem = "it is no graph"
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{file}: not a readable graph ({error}); export it again") from error
    if problem:
        raise ArtifactError(f"{file}: {problem}; export it again, or ask who made it")


def _problems(model: memoryview, listed: Collection[str]) -> Iterator[str]:
    for field, part in read_fields(model):
        if isinstance(part, int):
            continue
        if field == _MODEL_GRAPH:
            yield from _in_graph(part, listed, _DEEPEST)
        if field == _MODEL_FUNCTIONS:
            for number, node in read_fields(part):
                if number == _FUNCTION_NODE and not isinstance(node, int):
                    yield from _in_node(node, listed, _DEEPEST)


def _in_graph(graph: memoryview, listed: Collection[str], depth: int) -> Iterator[str]:
    if depth == 0:
        yield "its graphs are nested too deeply"
        return
    for field, part in read_fields(graph):
        if field == _GRAPH_NODE and not isinstance(part, int):
            yield from _in_node(part, listed, depth)
        if field == _GRAPH_INITIALIZER and not isinstance(part, int):
            yield from _in_tensor(part, listed)


def _in_node(node: memoryview, listed: Collection[str], depth: int) -> Iterator[str]:
    last = None
    for field, part in read_fields(node):
        if isinstance(part, int):
            continue
        if field == _NODE_OP_TYPE and bytes(part).decode("utf-8", "replace") in _REFUSED:
            yield f"it has the operator {bytes(part).decode()}, which no export has and which need not end"
        if field == _NODE_INPUT:
            last = part
        if field == _NODE_ATTRIBUTE:
            yield from _in_attribute(part, listed, depth)
    if last is not None and not len(last):  # ONNX Runtime 1.32 crashes on such a LayerNormalization
        yield "it has a node whose last input has no name"


def _in_attribute(attribute: memoryview, listed: Collection[str], depth: int) -> Iterator[str]:
    for field, part in read_fields(attribute):
        if isinstance(part, int):
            continue
        if field in (_ATTRIBUTE_GRAPH, _ATTRIBUTE_GRAPHS):
            yield from _in_graph(part, listed, depth - 1)
        if field in (_ATTRIBUTE_TENSOR, _ATTRIBUTE_TENSORS):
            yield from _in_tensor(part, listed)


def _in_tensor(tensor: memoryview, listed: Collection[str]) -> Iterator[str]:
    dims: list[int] = []
    kind, raw = 0, None
    for field, part in read_fields(tensor):
        if field == _TENSOR_DIMS:
            dims += [part] if isinstance(part, int) else read_varints(part)
        elif field == _TENSOR_DATA_TYPE and isinstance(part, int):
            kind = part
        elif field == _TENSOR_RAW_DATA and not isinstance(part, int):
            raw = len(part)
        elif field == _TENSOR_EXTERNAL_DATA and not isinstance(part, int):
            yield from _in_entry(part, listed)
    # A runtime takes the length of a weight from its shape, and may read what lies behind it.
    if kind not in _BITS or any(dim >= _LARGEST_DIM for dim in dims):
        yield f"it has a weight of type {kind} and shape {dims}, which no export has"
    elif raw is not None and raw != -(-math.prod(dims) * _BITS[kind] // 8):
        yield f"it has a weight of shape {dims} in {raw} bytes"


def _in_entry(part: memoryview, listed: Collection[str]) -> Iterator[str]:
    entry = {number: bytes(text).decode("utf-8", "replace")
             for number, text in read_fields(part) if not isinstance(text, int)}  # fmt: skip
    place = entry.get(_ENTRY_VALUE, "")
    if entry.get(_ENTRY_KEY) == "location" and place not in listed:
        yield f"it reads weights from {place!r}, which the manifest does not list"

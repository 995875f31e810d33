"""Writes a graph to disk without holding its weights a second time.

Protobuf's own serialiser builds the whole message in memory, and copies each tensor on the way: three times the size
of the weights, and most of the time that writing takes. A message is its fields in any order, so here the small rest
of the graph is serialised first, and the weights are written behind it, one at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np
import onnx
import onnx_ir as ir

from adakron_export.artifacts.manifest import MODEL, MODEL_DATA, STACKS
from adakron_export.files.protobuf import length_prefix

EXTERNAL_DATA_FROM_BYTES = 2**30  # protobuf holds 2 GiB; readers copy what they parse, so large files spare them that
_SMALL = 256  # bytes; runtimes read shapes and axes while they infer, and only where they stand in the graph
_PIECE = 2**22  # bytes of a weight that are copied at a time, where it is transposed
# Field numbers of onnx.proto.
_MODEL_GRAPH = 7
_GRAPH_INITIALIZER = 5
_TENSOR_RAW_DATA = 9


def write_model(model: ir.Model, folder: Path) -> None:
    """Write ``model.onnx``, from 1 GiB of weights on with ``model.onnx_data`` beside it.

    Args:
        model: The graph; its main graph holds all weights.
        folder: Where to.
    """
    weights = _weights(model)
    if sum(tensor.nbytes for tensor in weights.values()) >= EXTERNAL_DATA_FROM_BYTES:
        large = {name: tensor for name, tensor in weights.items() if tensor.nbytes >= _SMALL}
        moved = ir.external_data.convert_tensors_to_external([*large.values()], folder, MODEL_DATA)
        _save_with(model, dict(zip(large, moved, strict=True)), folder / MODEL)
        return
    with (folder / MODEL).open("wb") as stream:
        _stream(model, stream)


def move_model(folder: Path, to: str) -> None:
    """Give the file that `write_model` wrote another place in the folder; what it names beside it goes along.

    Args:
        folder: The artifact's folder.
        to: The new name, such as ``onnx/model.onnx``.
    """
    place, data = folder / to, folder / MODEL_DATA
    place.parent.mkdir(parents=True, exist_ok=True)
    if data.is_file():  # the graph holds its name
        ir.save(ir.load(folder / MODEL), place, external_data=f"{place.name}_data")
        data.unlink()
        (folder / MODEL).unlink()
    else:
        (folder / MODEL).rename(place)


def _save_with(model: ir.Model, moved: Mapping[str, ir.TensorProtocol], file: Path) -> None:
    """Write a graph whose weights are elsewhere; it keeps its own."""
    values = model.graph.initializers
    own = {name: values[name].const_value for name in moved}
    try:
        for name, tensor in moved.items():
            values[name].const_value = tensor
        ir.save(model, file)
    finally:
        for name, before in own.items():
            values[name].const_value = before


def _weights(model: ir.Model) -> dict[str, ir.TensorProtocol]:
    """The weights that go into the file: not those that lie in one of their own, as a sealed bank's do."""
    return {
        name: value.const_value
        for name, value in model.graph.initializers.items()
        if value.const_value is not None
        and not (isinstance(value.const_value, ir.ExternalTensor) and value.const_value.location == STACKS)
    }


def _stream(model: ir.Model, stream: BinaryIO) -> None:
    weights = _weights(model)
    rest = model.clone()
    for name in weights:
        del rest.graph.initializers[name]
    proto = ir.serde.serialize_model(rest)
    graph = proto.graph.SerializeToString()
    proto.ClearField("graph")
    heads = [_head(name, tensor) for name, tensor in weights.items()]
    bodies = [len(head) + tensor.nbytes for head, tensor in zip(heads, weights.values(), strict=True)]
    prefixes = [length_prefix(_GRAPH_INITIALIZER, body) for body in bodies]
    stream.write(proto.SerializeToString())
    stream.write(length_prefix(_MODEL_GRAPH, len(graph) + sum(map(len, prefixes)) + sum(bodies)))
    stream.write(graph)
    for prefix, head, tensor in zip(prefixes, heads, weights.values(), strict=True):
        stream.write(prefix + head)
        for piece in _raw_data(tensor):
            stream.write(piece)


def _head(name: str, tensor: ir.TensorProtocol) -> bytes:
    """A `TensorProto` up to its raw data."""
    proto = onnx.TensorProto(name=name, data_type=int(tensor.dtype), dims=tensor.shape.numpy())
    return bytes(proto.SerializeToString()) + length_prefix(_TENSOR_RAW_DATA, tensor.nbytes)


def _raw_data(tensor: ir.TensorProtocol) -> Iterator[bytes | memoryview]:
    """Its bytes, without a copy of the whole."""
    if tensor.dtype.bitwidth < 8:
        yield tensor.tobytes()  # several numbers to a byte
        return
    array = np.atleast_1d(tensor.numpy())
    rows = max(1, _PIECE * len(array) // max(1, array.nbytes))
    for start in range(0, len(array), rows):
        yield np.ascontiguousarray(array[start : start + rows]).view(np.uint8).data

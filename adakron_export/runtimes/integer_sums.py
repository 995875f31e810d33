"""Whether ONNX Runtime adds up integer products wrongly on this CPU.

x86 CPUs without VNNI (Intel before Cascade Lake and most of its desktop parts, AMD before Zen 4) add products of uint8
and int8 in pairs of 16 bits, which saturate. ONNX Runtime's session entry `x64quantprecision` makes it turn such
weights into uint8, whose products it adds in 32 bits. Where there is VNNI, that takes 2.2 times as long for nothing.
"""

from __future__ import annotations

import functools

import numpy as np

from adakron_export.extras import require
from adakron_export.files.protobuf import message

_ROWS, _INNER, _COLUMNS = 2, 8, 16
_UINT8, _INT8, _INT32 = 2, 3, 6  # TensorProto.DataType


@functools.cache
def saturates() -> bool:
    """Multiply the largest numbers of both types, and see whether the sum is right."""
    ort = require("onnxruntime", extra="cpu' or 'adakron-export[gpu")
    session = ort.InferenceSession(_product(), providers=["CPUExecutionProvider"])
    found = session.run(None, {"x": np.full((_ROWS, _INNER), 255, dtype=np.uint8)})[0]
    return bool((found != _INNER * 255 * 127).any())


def _product() -> bytes:
    """A model of one ``MatMulInteger`` by weights of 127; field numbers of onnx.proto."""
    weights = message((1, _INNER), (1, _COLUMNS), (2, _INT8), (8, "w"), (9, bytes([127]) * (_INNER * _COLUMNS)))
    node = message((1, "x"), (1, "w"), (2, "y"), (4, "MatMulInteger"))
    inputs, output = _tensor("x", _UINT8, _ROWS, _INNER), _tensor("y", _INT32, _ROWS, _COLUMNS)
    graph = message((1, node), (2, "product"), (5, weights), (11, inputs), (12, output))
    return message((1, 8), (7, graph), (8, message((2, 17))))


def _tensor(name: str, kind: int, rows: int, columns: int) -> bytes:
    shape = message(*((1, message((1, size))) for size in (rows, columns)))
    return message((1, name), (2, message((1, message((1, kind), (2, shape))))))

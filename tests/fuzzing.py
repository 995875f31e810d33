"""Damage with a sense of structure, for every kind of file that is read: what `test_fuzz.py` draws from."""

from __future__ import annotations

import io
import json
import struct
from typing import Any

import numpy as np
import onnx
import torch
from hypothesis import strategies as st

TEXTS = st.sampled_from(
    ["", "x", "../../etc/passwd", "/etc/passwd", "fp16", "int64", "\x1b[31m", "::error ::x", "\ud800", "nan",
     "*" * 400, "(a+)+$", "LABEL_0", "[MASK]", "a" * 70000, "0-99999999999", "model.onnx", "adakron_export.json"]
)  # fmt: skip
NUMBERS = st.sampled_from(
    [0, -1, 1, 2, 3, 1000, 2**31, 2**63, 10**18, 10**4000, -(10**9), 0.5, 1e300, -1.5, float("nan"), float("inf")]
)
LEAVES = st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS)
VALUES = st.one_of(
    LEAVES,
    st.lists(LEAVES, max_size=3),
    st.dictionaries(TEXTS, LEAVES, max_size=3),
    st.integers(1, 3).map(lambda power: nested(10 ** (power + 1))),
)


def nested(depth: int) -> Any:
    """A list in a list, so often; deeper than a reader can follow."""
    value: Any = []
    for _ in range(min(depth, 300)):  # what damages it has a limit too
        value = [value]
    return value


def places(value: Any, place: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where there is something in a document."""
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place, *(deeper for key, part in parts for deeper in places(part, (*place, key)))]


def changed_document(draw: Any, document: Any) -> Any:
    """Another value, none, or one more, at some places."""
    for _ in range(draw(st.integers(1, 3))):
        known = [place for place in places(document) if place]
        if not known:
            return draw(VALUES)
        *parents, last = draw(st.sampled_from(known))
        holder = document
        for key in parents:
            holder = holder[key]
        way = draw(st.sampled_from(["replace", "replace", "remove", "add"]))
        if way == "remove":
            del holder[last]
        elif way == "add" and isinstance(holder, dict):
            holder[draw(TEXTS)] = draw(VALUES)
        else:
            holder[last] = draw(VALUES)
    return document


_ODD_JSON = (
    b"[" * 100_000, b'{"a": ' * 50_000, b"9" * 5000, b'{"format_version": ' + b"9" * 5000 + b"}", b"", b"\xff\xfe",
)  # fmt: skip


def changed_json(draw: Any, content: bytes) -> bytes:
    """Of a JSON file: its values, or its bytes."""
    if draw(st.integers(0, 4)) == 0:
        return draw(st.sampled_from([changed_bytes(draw, content), *_ODD_JSON]))
    document = changed_document(draw, json.loads(content))
    return json.dumps(document).encode()


def changed_bytes(draw: Any, content: bytes) -> bytes:
    """Some bytes changed, put in or cut off; rather at the head, which holds a file's structure."""
    damaged = bytearray(content)
    for _ in range(draw(st.integers(1, 6))):
        if not damaged:
            break
        reach = draw(st.sampled_from([min(len(damaged), 200), min(len(damaged), 4000), len(damaged)]))
        at = draw(st.integers(0, reach - 1))
        way = draw(st.sampled_from(["set", "set", "set", "cut", "insert", "repeat"]))
        if way == "set":
            damaged[at] = draw(st.integers(0, 255))
        elif way == "cut":
            del damaged[at : at + draw(st.integers(1, 2000))]
        elif way == "insert":
            damaged[at:at] = draw(st.binary(min_size=1, max_size=9))
        else:
            damaged[at:at] = damaged[at : at + 40] * draw(st.integers(1, 20))
    return bytes(damaged)


_ODD_LINES = (
    b'"', b"\t\t\t", b"{}", b"[1, 2]", b"\x00", b"a: &a [*a, *a]", b": :", b"\r", b"- x\n", b"---\n",
    b"layers: 0-99999999999\n", b"\xed\xa0\x80", b'{"text": "\\ud800"}\n',
)  # fmt: skip


def changed_text(draw: Any, content: bytes) -> bytes:
    """Of a table or a recipe: lines repeated, joined, left out, or other bytes."""
    lines = content.splitlines(keepends=True)
    if not lines or draw(st.booleans()):
        return changed_bytes(draw, content)
    at = draw(st.integers(0, len(lines) - 1))
    other = draw(st.sampled_from(_ODD_LINES))
    lines[at : at + draw(st.integers(0, 2))] = [other]
    return b"".join(lines)


def changed_safetensors(draw: Any, content: bytes) -> bytes:
    """The header's values with the length that they have then; or the bytes of the file."""
    if draw(st.integers(0, 2)) == 0:
        return changed_bytes(draw, content)
    (length,) = struct.unpack("<Q", content[:8])
    header, body = json.loads(content[8 : 8 + length]), content[8 + length :]
    if draw(st.integers(0, 3)) == 0:
        values = np.frombuffer(body, "<f4").copy()
        values[draw(st.integers(0, len(values) - 1))] = draw(st.sampled_from([np.nan, np.inf, 1e38]))
        body = values.tobytes()
    else:
        header = changed_document(draw, header)
    text = json.dumps(header).encode()
    return struct.pack("<Q", draw(st.sampled_from([len(text), len(text), len(text), 2**62, 0]))) + text + body


ODD_TENSORS = {
    "complex": lambda t: t.to(torch.complex64),
    "integer": lambda t: t.to(torch.int64),
    "sparse": lambda t: t.to_sparse(),
    "quantised": lambda t: torch.quantize_per_tensor(t.float(), 0.1, 0, torch.qint8),
    "meta": lambda t: t.to("meta"),
    "nested": lambda t: torch.nested.nested_tensor([t, t]),
    "huge": lambda t: t.reshape(-1)[:1].expand(10**11),
    "scalar": lambda t: t.sum(),
    "nan": lambda t: t * float("nan"),
    "empty": lambda t: t[:0],
    "wide": lambda t: t.repeat(2, *[1] * (t.ndim - 1)),
}


def changed_state(draw: Any, content: bytes) -> bytes:
    """Of a file of PyTorch: tensors of other kinds and under other names, or other bytes."""
    if draw(st.integers(0, 2)) == 0:
        return changed_bytes(draw, content)
    state = torch.load(io.BytesIO(content), weights_only=True)
    name = draw(st.sampled_from(sorted(state)))
    way = draw(st.sampled_from([*ODD_TENSORS, "rename", "expert", "remove", "text"]))
    tensor = state[name]
    if way in ODD_TENSORS:
        state[name] = ODD_TENSORS[way](tensor) if tensor.ndim else tensor
    elif way == "text":
        state[name] = draw(TEXTS)
    else:
        del state[name]
        if way != "remove":
            state[name.replace("experts.0", "experts.100000000") if way == "expert" else name + "x"] = tensor
    stream = io.BytesIO()
    torch.save(state, stream)
    return stream.getvalue()


OPERATORS = ["Loop", "If", "Scan", "MatMul", "Expand", "Reshape", "Gather", "Identity", "ConstantOfShape", "Nothing"]


def changed_graph(draw: Any, content: bytes) -> bytes:  # noqa: C901
    """Of a graph: operators, edges, attributes, shapes and places of its weights; or other bytes."""
    if draw(st.integers(0, 3)) == 0:
        return changed_bytes(draw, content)
    model = onnx.load_from_string(content)
    node = draw(st.sampled_from(list(model.graph.node)))
    weight = draw(st.sampled_from(list(model.graph.initializer)))
    way = draw(st.sampled_from(["operator", "input", "attribute", "dims", "dtype", "external", "output", "domain"]))
    if way == "operator":
        node.op_type = draw(st.sampled_from(OPERATORS))
    elif way == "input" and node.input:
        node.input[draw(st.integers(0, len(node.input) - 1))] = draw(st.sampled_from(["", weight.name, "nowhere"]))
    elif way == "attribute" and node.attribute:
        node.attribute[0].i = draw(st.sampled_from([-1, 0, 7, 2**40]))
    elif way == "dims" and weight.dims:
        weight.dims[0] = draw(st.sampled_from([0, 1, -1, 2**40, int(weight.dims[0]) + 1]))
    elif way == "dtype":
        weight.data_type = draw(st.integers(0, 30))
    elif way == "external":
        weight.data_location = onnx.TensorProto.EXTERNAL
        entry = weight.external_data.add()
        entry.key, entry.value = (
            "location",
            draw(st.sampled_from(["../x", "/etc/passwd", "config.json", "", "model.onnx"])),
        )
    elif way == "output" and node.output:
        node.output[0] = draw(st.sampled_from(["", "logits", weight.name]))
    else:
        node.domain = draw(st.sampled_from(["", "nowhere", "com.microsoft"]))
    return model.SerializeToString()

"""What a request asks, read with distrust: sizes, types and names are checked before anything runs.

Bodies are JSON: those of ``/predict``, and those of the Open Inference Protocol (version 2 of KServe's REST protocol),
https://github.com/kserve/open-inference-protocol.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec
import numpy as np

from adakron_export.artifacts.manifest import TensorInfo
from adakron_export.errors import AdaKronError
from adakron_export.runtimes.base import Array
from adakron_export.serving.settings import PredictOptions

R = TypeVar("R")
_MOST_BEAMS = 16
TEXT, PAIR, ADAPTER, PREDICTION = "text", "pair", "adapter", "prediction"


class RequestError(AdaKronError):
    """A request that is refused.

    Args:
        status: The status of HTTP.
        message: One line that says why.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class PredictBody(msgspec.Struct, forbid_unknown_fields=True):
    """The body of ``POST /predict``; see `predict` for its fields."""

    text: str | list[str]
    pair: str | list[str] | None = None
    adapter: str | list[str] | None = None
    model: str | None = None
    top_k: int | None = None
    max_new_tokens: int | None = None
    num_beams: int | None = None


class TensorBody(msgspec.Struct, forbid_unknown_fields=True):
    """A tensor of the Open Inference Protocol; its numbers are in rows, flat or nested."""

    name: str
    shape: list[int]
    datatype: str
    data: Any
    parameters: dict[str, Any] = {}


class OutputBody(msgspec.Struct, forbid_unknown_fields=True):
    """An output that is asked for."""

    name: str
    parameters: dict[str, Any] = {}


class InferBody(msgspec.Struct, forbid_unknown_fields=True):
    """The body of ``POST /v2/models/NAME/infer``."""

    inputs: list[TensorBody]
    id: str | None = None
    parameters: dict[str, Any] = {}
    outputs: list[OutputBody] | None = None


class ChangeBody(msgspec.Struct, forbid_unknown_fields=True):
    """The body of ``POST /v2/repository/models/NAME/load`` and ``unload``."""

    parameters: dict[str, str]


@dataclass(frozen=True, slots=True)
class Texts:
    """Texts to answer.

    Attributes:
        given: Texts, or pairs of them.
        adapter: The adapter of a bank, or one for each.
        options: What is asked for beside.
    """

    given: list[Any]
    adapter: str | list[str] | None
    options: PredictOptions


@dataclass(frozen=True, slots=True)
class Tensors:
    """Inputs to run as they are.

    Attributes:
        batch: Every input by name.
        adapter: The adapter of a bank, or one for each row.
        outputs: The outputs that are asked for; ``None`` for all.
    """

    batch: dict[str, Array]
    adapter: str | list[str] | None
    outputs: tuple[str, ...] | None


def decoded(body: bytes, kind: type[R]) -> R:
    """A body of this form.

    Raises:
        RequestError: The body is no JSON, is nested too deep, or has other fields.
    """
    try:
        return msgspec.json.decode(body or b"{}", type=kind)
    except RecursionError:
        raise RequestError(400, "the body is nested too deep") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RequestError(400, f"the body does not fit: {_line(error)}") from None


def asked(body: PredictBody, most_new_tokens: int) -> Texts:
    """What ``/predict`` is asked.

    Raises:
        RequestError: Texts and pairs differ in number, or an option is out of range.
    """
    texts = [body.text] if isinstance(body.text, str) else list(body.text)
    pairs = [body.pair] if isinstance(body.pair, str) else body.pair
    options = _options(most_new_tokens, top_k=body.top_k, max_new_tokens=body.max_new_tokens, num_beams=body.num_beams)
    return Texts(_paired(texts, pairs), body.adapter, options)


def inferred(body: InferBody, inputs: Sequence[TensorInfo], most_new_tokens: int) -> Texts | Tensors:
    """What the Open Inference Protocol is asked: texts, where there is an input ``text``, or else tensors.

    Args:
        body: The request.
        inputs: What the model's graph takes.
        most_new_tokens: The most tokens that may be written.

    Raises:
        RequestError: A tensor is not what it says, or is none of the model's; or a parameter is not known.
    """
    by_name = {tensor.name: tensor for tensor in body.inputs}
    if len(by_name) != len(body.inputs):
        raise RequestError(400, "two inputs have the same name")
    adapter = _adapter(body, by_name.pop(ADAPTER, None))
    if TEXT in by_name:
        return _texts(body, by_name, adapter, most_new_tokens)
    _only(body.parameters, {ADAPTER})
    known = {info.name: info for info in inputs}
    other = next((name for name in by_name if name not in known), None)
    if other is not None:
        raise RequestError(400, f"there is no input {other!r:.80}; there are {', '.join([TEXT, *known])}")
    wanted = None if body.outputs is None else tuple(each.name for each in body.outputs)
    return Tensors({name: _array(tensor, known[name]) for name, tensor in by_name.items()}, adapter, wanted)


def tensor_of(name: str, values: Array) -> dict[str, Any]:
    """An output as the protocol has it.

    Raises:
        RequestError: A number is not finite, which JSON does not have.
    """
    flat = values.reshape(-1).tolist()
    if not all(map(math.isfinite, flat)):
        raise RequestError(500, f"the model puts out {name} with values that are no numbers")
    return {"name": name, "datatype": "FP32", "shape": list(values.shape), "data": flat}


def strings_of(name: str, values: Sequence[Any]) -> dict[str, Any]:
    """Answers as the protocol has them: a JSON text each."""
    return {"name": name, "datatype": "BYTES", "shape": [len(values)], "data": [json.dumps(each) for each in values]}


def _texts(
    body: InferBody, inputs: Mapping[str, TensorBody], adapter: Any, most_new_tokens: int
) -> Texts:  # fmt: skip
    other = next((name for name in inputs if name not in (TEXT, PAIR)), None)
    if other is not None:
        raise RequestError(400, f"the input {other!r:.80} cannot stand beside {TEXT}")
    if body.outputs is not None and [each.name for each in body.outputs] != [PREDICTION]:
        raise RequestError(400, f"texts have one output, {PREDICTION}")
    names = {"top_k", "max_new_tokens", "num_beams"}
    _only(body.parameters, names | {ADAPTER})
    options = {name: value for name, value in body.parameters.items() if name in names}
    wrong = next((name for name, value in options.items() if type(value) is not int), None)
    if wrong is not None:
        raise RequestError(400, f"{wrong} must be a whole number")
    pairs = _strings(inputs[PAIR]) if PAIR in inputs else None
    return Texts(_paired(_strings(inputs[TEXT]), pairs), adapter, _options(most_new_tokens, **options))


def _paired(texts: list[str], pairs: list[str] | None) -> list[Any]:
    if not texts:
        raise RequestError(400, "there is no text")
    if pairs is None:
        return texts
    if len(pairs) != len(texts):
        raise RequestError(400, f"there are {len(texts)} texts and {len(pairs)} second ones; give one for each")
    return list(zip(texts, pairs, strict=True))


def _options(most_new_tokens: int, **options: int | None) -> PredictOptions:
    for name, most in (("max_new_tokens", most_new_tokens), ("num_beams", _MOST_BEAMS)):
        value = options.get(name)
        if value is not None and value > most:
            raise RequestError(400, f"{name} is {value}; this server writes with at most {most}")
    try:
        return PredictOptions(**options)
    except AdaKronError as error:
        raise RequestError(400, str(error)) from None


def _adapter(body: InferBody, tensor: TensorBody | None) -> str | list[str] | None:
    named = body.parameters.get(ADAPTER)
    if named is not None and not isinstance(named, str):
        raise RequestError(400, f"the parameter {ADAPTER} must be a name")
    if tensor is None:
        return named
    if named is not None:
        raise RequestError(400, f"{ADAPTER} is an input and a parameter too; give one of them")
    return _strings(tensor)


def _only(parameters: Mapping[str, Any], known: set[str]) -> None:
    other = next((name for name in parameters if name not in known), None)
    if other is not None:
        raise RequestError(400, f"the parameter {other!r:.80} is not known here; {', '.join(sorted(known))} are")


def _strings(tensor: TensorBody) -> list[str]:
    data = tensor.data
    if tensor.datatype != "BYTES" or tensor.parameters:
        raise RequestError(400, f"{tensor.name} must be of datatype BYTES, in JSON")
    if not isinstance(data, list) or not all(isinstance(each, str) for each in data):
        raise RequestError(400, f"{tensor.name} must have texts as its data")
    if tensor.shape not in ([len(data)], [len(data), 1]):
        raise RequestError(400, f"{tensor.name} has {len(data)} texts and the shape {tensor.shape}")
    return data


_DATATYPES = {"INT64": np.int64, "INT32": np.int32, "FP32": np.float32}


def _array(tensor: TensorBody, info: TensorInfo) -> Array:
    if tensor.parameters:
        raise RequestError(400, f"{tensor.name} has parameters; tensors are sent as JSON here, and not in binary form")
    if tensor.datatype not in _DATATYPES:
        raise RequestError(
            400, f"{tensor.name} is of datatype {tensor.datatype!r:.40}; {', '.join(_DATATYPES)} are known"
        )
    dtype = np.dtype(_DATATYPES[tensor.datatype])
    if (dtype.kind == "i") != (np.dtype(info.dtype).kind == "i"):
        raise RequestError(400, f"{tensor.name} is of datatype {tensor.datatype}; the model takes {info.dtype}")
    flat = _flat(tensor)
    size = math.prod(tensor.shape)
    if any(each < 1 for each in tensor.shape) or size != len(flat):
        raise RequestError(400, f"{tensor.name} has {len(flat)} numbers and the shape {tensor.shape}")
    whole = dtype.kind == "i"
    if not all(type(each) is int or (not whole and type(each) is float) for each in flat):
        raise RequestError(400, f"{tensor.name} must have {'whole ' if whole else ''}numbers as its data")
    try:
        values = np.array(flat, dtype=dtype).reshape(tensor.shape)
    except (OverflowError, ValueError):
        raise RequestError(400, f"{tensor.name} has numbers that {tensor.datatype} cannot hold") from None
    if not np.isfinite(values).all():
        raise RequestError(400, f"{tensor.name} has numbers that {tensor.datatype} cannot hold")
    return values


def _flat(tensor: TensorBody) -> list[Any]:
    """The numbers, row by row; nested lists are as deep as the shape is long."""
    level: list[Any] = tensor.data if isinstance(tensor.data, list) else []
    for _ in tensor.shape[1:]:
        if not level or not all(isinstance(row, list) for row in level):
            break
        level = [each for row in level for each in row]
    return level


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]

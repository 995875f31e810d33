"""Protobuf's text format, as far as Triton's settings need it.

See https://protobuf.dev/reference/protobuf/textformat-spec.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

_MAPS = {"parameters", "inputs", "input_map", "output_map"}
_ENUMS = {"data_type", "kind"}


def text_of(message: Mapping[str, Any], indent: str = "") -> str:
    """A message; its fields stand in their order, and empty ones are left out."""
    return "".join(_field(name, value, indent) for name, value in message.items() if value not in ({}, None))


def _field(name: str, value: Any, indent: str) -> str:
    if name in _MAPS:
        return "".join(
            f"{indent}{name} {{\n{_field('key', key, indent + '  ')}{_field('value', each, indent + '  ')}{indent}}}\n"
            for key, each in value.items()
        )
    if isinstance(value, Mapping):
        return f"{indent}{name} {{\n{text_of(value, indent + '  ')}{indent}}}\n"
    if isinstance(value, list):
        if not value and name == "shape":
            return ""
        return "".join(_field(name, each, indent) for each in value)
    return f"{indent}{name}: {_scalar(name, value)}\n"


def _scalar(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, int) or name in _ENUMS else json.dumps(value)

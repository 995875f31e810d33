"""Reads JSON that somebody else may have written."""

from __future__ import annotations

import json
import math
import re
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import msgspec

Record = TypeVar("Record")

_HALVES = re.compile(rb"\\u[dD][89a-fA-F]")  # of characters that JSON writes as two
LARGEST_BYTES = 64 * 2**20  # the longest file of settings that exists is a tokenizer of some 35 MB


def read_bytes(file: Path, *, largest: int = LARGEST_BYTES) -> bytes:
    """What a plain file holds: no pipe, no device, and not more than a reader of such files can take.

    Raises:
        OSError: The file cannot be read.
        ValueError: The path is no plain file, or the file is too large.
    """
    if file.exists() and not file.is_file():
        raise ValueError("no plain file")
    with file.open("rb") as stream:
        content = stream.read(largest + 1)
    if len(content) > largest:
        raise ValueError(f"longer than {largest // 2**20} MiB")
    return content


def read_json(file: Path) -> Any:
    """What a file holds.

    Raises:
        OSError: The file cannot be read.
        ValueError: The text is not UTF-8, not JSON, nested too deeply, or too large to be read.
    """
    return json_of(read_bytes(file))


def read_object(file: Path) -> dict[str, Any]:
    """What a file of settings holds.

    Raises:
        OSError: The file cannot be read.
        ValueError: The text is no JSON object.
    """
    return object_of(read_bytes(file))


def json_of(text: bytes) -> Any:
    """What a text of JSON stands for.

    Raises:
        ValueError: The text is not UTF-8, not JSON, nested too deeply to be read, or has half a character.
    """
    try:
        content = json.loads(text.decode("utf-8"))
        if _HALVES.search(text):  # a pair of them is a character
            json.dumps(content, ensure_ascii=False).encode()
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    except UnicodeEncodeError as error:
        raise ValueError("it has half a character, which is no text") from error
    return content


def object_of(text: bytes) -> dict[str, Any]:
    """What a text of settings stands for.

    Raises:
        ValueError: The text is no JSON object.
    """
    content = json_of(text)
    if not isinstance(content, dict):
        raise ValueError(f"it holds a {type(content).__name__}, not an object")  # noqa: TRY004
    return content


def write_json(file: Path, content: Any) -> None:
    """Write plain data; NaN and Inf, which JSON cannot hold, are an error of ours."""
    file.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def finite(content: Any) -> Any:
    """Plain data in which NaN and Inf, which JSON cannot hold, are ``None``."""
    if isinstance(content, dict):
        return {key: finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def record_of(content: dict[str, Any], kind: type[Record]) -> Record:
    """A dataclass of plain data, every value of the type that its field names.

    Args:
        content: The settings; what is left out has its default.
        kind: The dataclass.

    Raises:
        ValueError: A value is missing, unknown, of another type or out of its range; the message says where.
    """
    unknown = sorted(content.keys() - {row.name for row in fields(kind)})  # type: ignore[arg-type]
    if unknown:
        raise ValueError(f"there is no setting {unknown[0]!r:.60}")
    try:
        return msgspec.convert(content, kind)
    except msgspec.ValidationError as error:
        raise ValueError(str(error)) from error

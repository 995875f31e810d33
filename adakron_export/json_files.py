"""Reads JSON that somebody else may have written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read_json(file: Path) -> Any:
    """What a file holds.

    Raises:
        OSError: It cannot be read.
        ValueError: It is not UTF-8, not JSON, or nested too deeply to be read.
    """
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def read_object(file: Path) -> dict[str, Any]:
    """What a file of settings holds.

    Raises:
        OSError: It cannot be read.
        ValueError: It is no JSON object.
    """
    content = read_json(file)
    if not isinstance(content, dict):
        raise ValueError(f"it holds a {type(content).__name__}, not an object")  # noqa: TRY004
    return content

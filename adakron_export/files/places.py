"""Whether what somebody named can be there: asked before anything heavy is imported."""

from __future__ import annotations

import re
from pathlib import Path

from adakron_export.errors import AdaKronError

_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
_FILES = (".bin", ".pt", ".pth", ".safetensors", ".onnx", ".json")


def check_there(name: str | Path, error: type[AdaKronError]) -> None:
    """Raise where a name is no path of this machine, and cannot be an id of the hub either.

    Args:
        name: A folder, a file, or the hub id of a checkpoint or a backbone.
        error: What to raise.
    """
    text = str(name)
    may_be_on_hub = _HUB_ID.fullmatch(text) is not None and not text.endswith(_FILES)
    if not may_be_on_hub and not Path(text).exists():
        raise error(f"{text}: no such file or folder")

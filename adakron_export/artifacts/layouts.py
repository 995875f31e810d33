"""Where an artifact's model stands, so that those who look for it elsewhere find it."""

from __future__ import annotations

import json
from pathlib import Path

from adakron_export.artifacts.genai import FILE as GENAI_CONFIG
from adakron_export.artifacts.manifest import LAYOUTS, MODEL_DATA
from adakron_export.artifacts.onnx_file import move_model
from adakron_export.errors import ExportError
from adakron_export.files.records import read_object, write_json

# What transformers.js calls a dtype, and the end of the file's name that it looks for.
_JAVASCRIPT = {"fp32": ("fp32", ""), "fp16": ("fp16", "_fp16"), "int8": ("q8", "_quantized"), "int4": ("q4", "_q4")}


def check_layout(layout: str, dtype: str) -> None:
    """Raise unless there is such a layout, in this dtype.

    Raises:
        ExportError: There is not.
    """
    if layout not in LAYOUTS:
        raise ExportError(f"layout {layout!r} is unknown; choose {' or '.join(LAYOUTS)}")
    if layout == "transformers.js" and dtype not in _JAVASCRIPT:
        raise ExportError(f"transformers.js has no {dtype}; choose one of {', '.join(_JAVASCRIPT)}")


def lay_out_for_javascript(folder: Path, dtype: str) -> None:
    """The model in a folder of its own, and the dtype in the configuration, which is otherwise guessed."""
    name, suffix = _JAVASCRIPT[dtype]
    external = (folder / MODEL_DATA).is_file()
    place = f"onnx/model{suffix}.onnx"
    move_model(folder, place)
    if (folder / GENAI_CONFIG).is_file():
        genai = read_object(folder / GENAI_CONFIG)
        genai["model"]["decoder"]["filename"] = place
        write_json(folder / GENAI_CONFIG, genai)
    config = read_object(folder / "config.json")
    settings = {"dtype": name, **({"use_external_data_format": True} if external else {})}
    content = json.dumps({**config, "transformers.js_config": settings}, indent=2)
    (folder / "config.json").write_text(content + "\n", encoding="utf-8")

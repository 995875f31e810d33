"""Image files as a model takes them: prepared by the processor whose settings lie beside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adakron_export.errors import ArtifactError, DataError, told_as
from adakron_export.extras import require

_SETTINGS = "preprocessor_config.json"


def image_reader(folder: Path) -> Callable[[Sequence[Path]], NDArray[Any]]:
    """What turns image files into pixels, ``[images, channels, height, width]`` in float32.

    Args:
        folder: The model's folder; its ``preprocessor_config.json`` says how large images are and how they are
            normalised.

    Raises:
        ArtifactError: The folder has no such settings, or they cannot be read.
        MissingPackageError: transformers or pillow is not installed.
    """
    if not (folder / _SETTINGS).is_file():
        raise ArtifactError(f"{folder} has no {_SETTINGS}; put the backbone's beside it and export again")
    pillow = require("PIL.Image", extra="images")
    transformers = require("transformers", extra="images")
    with told_as(ArtifactError, f"{folder / _SETTINGS} cannot be read"):
        processor = transformers.AutoImageProcessor.from_pretrained(str(folder), trust_remote_code=False)

    def read(files: Sequence[Path]) -> NDArray[Any]:
        images = []
        for file in files:
            with told_as(DataError, f"{file}: not a readable image"), pillow.open(file) as image:
                images.append(image.convert("RGB"))
        pixels = processor(images=images, return_tensors="np")["pixel_values"]
        return np.asarray(pixels, dtype=np.float32)

    return read

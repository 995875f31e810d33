"""Shapes, durations and points as people write them, and numbers as JSON holds them."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from adakron_export.errors import RunnerError


def parse_shapes(text: str) -> tuple[tuple[int, int], ...]:
    """Shapes such as ``1x16,8x128``.

    Raises:
        RunnerError: The text is not of that form.
    """
    found = [re.fullmatch(r"\s*(\d+)x(\d+)\s*", part) for part in text.split(",")]
    shapes = tuple((int(match[1]), int(match[2])) for match in found if match)
    if len(shapes) < len(found) or any(0 in shape for shape in shapes):
        raise RunnerError(f"shapes are {text!r}; write TEXTSxTOKENS, such as 1x16,8x128")
    return shapes


def parse_shape(text: str) -> tuple[int, int]:
    """One shape, such as ``8x128``.

    Raises:
        RunnerError: The text is not of that form, or there are several.
    """
    shapes = parse_shapes(text)
    if len(shapes) != 1:
        raise RunnerError(f"{text!r} is {len(shapes)} shapes; write one, such as 8x128")
    return shapes[0]


def timed_shape(text: str) -> tuple[int, ...]:
    """A shape that was timed, as `timed_text` writes it: texts, tokens and, where text was written, new tokens.

    Raises:
        RunnerError: The text is not of that form.
    """
    shape, plus, written = text.partition("+")
    if not plus:
        return parse_shape(shape)
    if not written.isdecimal() or not int(written):
        raise RunnerError(f"{text!r} is no shape with new tokens; write one such as 1x128+64")
    return *parse_shape(shape), int(written)


def timed_text(shape: Sequence[int]) -> str:
    """As people write it: ``1x128``, or ``1x128+64`` where 64 tokens are written after the prompt."""
    return f"{shape[0]}x{shape[1]}" + (f"+{shape[2]}" if len(shape) > 2 else "")


def parse_names(text: str) -> tuple[str, ...]:
    """Names such as ``8.6,8.9``."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def parse_seconds(text: str) -> float:
    """A duration such as ``60s`` or ``2m``; a bare number is seconds.

    Raises:
        RunnerError: The text is not of that form.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|m|min)?", text.strip())
    if found is None:
        raise RunnerError(f"{text!r} is no duration; write 60s or 2m")
    return float(found[1]) * (1 if found[2] in (None, "s") else 60)


def parse_points(text: str) -> float:
    """Points of 100, such as ``0.5`` or ``0.5%``: both are half a point.

    Raises:
        RunnerError: The text is not of that form.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*%?", text.strip())
    if found is None:
        raise RunnerError(f"{text!r} is no number of points; write 0.5 or 0.5%")
    return float(found[1])


def as_json(value: float) -> float | str:
    """A number that JSON can hold: an infinite one is the text ``inf``."""
    return value if math.isfinite(value) else "inf"

"""How far an output may be off, per dtype and metric."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

import numpy as np

from adakron_export.errors import ExportError
from adakron_export.runtimes.base import Array


@dataclass(frozen=True, slots=True)
class Tolerance:
    """What is allowed; docs/validation.md has the reasons.

    Attributes:
        absolute: Of the largest error of an entry: at most ``absolute + relative * max |reference|``.
        relative: As above; the norm of all errors may also be at most this share of the reference's norm.
        cosine: What the cosine of each vector must reach.
        top1: Share of positions whose largest entry must stay the largest; ties within ``absolute`` do not count.
        kl: Largest Kullback-Leibler divergence of a softmax, in nats.
    """

    absolute: float
    relative: float
    cosine: float
    top1: float
    kl: float

    def limit(self, reference: Array) -> float:
        """The largest error of an entry allowed against these values."""
        return self.absolute + self.relative * float(np.abs(reference).max(initial=0.0))

    def changed(self, changes: Mapping[str, float | None]) -> Tolerance:
        """With other limits; ``None`` leaves one as it is. Another ``absolute`` alone makes ``relative`` 0.

        Raises:
            ExportError: There is no such limit, or the number makes no sense.
        """
        given = {name: value for name, value in changes.items() if value is not None}
        known = [field.name for field in fields(self)]
        for name, value in given.items():
            if name not in known:
                raise ExportError(f"there is no tolerance {name!r}; there are {', '.join(known)}")
            if not (value >= 0 and math.isfinite(value)):
                raise ExportError(f"{_OPTION.get(name, name)} is {value}; it must be a number of at least 0")
        if "absolute" in given and "relative" not in given:
            given["relative"] = 0.0
        return replace(self, **given)


_OPTION = {"absolute": "atol", "relative": "rtol"}

# The relative part is what the dtype's own rounding, 2^-24, 2^-11 and 2^-8, comes to through the layers of a model;
# 8 and 4 bits have no such bound, and are held to what a sound export comes near to on real text.
_EIGHT_BITS = Tolerance(absolute=0.5, relative=0.15, cosine=0.97, top1=1.0, kl=0.3)
_FOUR_BITS = Tolerance(absolute=0.75, relative=0.2, cosine=0.95, top1=1.0, kl=0.6)
TOLERANCES = {
    "fp32": Tolerance(absolute=1e-4, relative=0.0, cosine=0.99999, top1=1.0, kl=1e-6),
    "fp16": Tolerance(absolute=2e-3, relative=1e-2, cosine=0.999, top1=1.0, kl=1e-2),
    "bf16": Tolerance(absolute=2e-2, relative=8e-2, cosine=0.99, top1=1.0, kl=1e-1),
    "int8": _EIGHT_BITS,
    "fp8": _EIGHT_BITS,
    "int4": _FOUR_BITS,
}


def tolerance_for(dtype: str) -> Tolerance:
    """The tolerance of a dtype.

    Raises:
        ExportError: The dtype is unknown.
    """
    if dtype not in TOLERANCES:
        raise ExportError(f"dtype {dtype!r} is unknown; choose one of {', '.join(TOLERANCES)}")
    return TOLERANCES[dtype]

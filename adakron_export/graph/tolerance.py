"""How far an output may be off, per metric."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from adakron_export.errors import ExportError


@dataclass(frozen=True, slots=True)
class Tolerance:
    """What is allowed; docs/reference/limits.md has the reasons.

    Attributes:
        absolute: Absolute part of the largest error of an entry: ``absolute + relative * max |reference|``.
        relative: Relative part of the same; also the largest share of the reference's norm that all errors may have.
        cosine: What the cosine of each vector must reach.
        top1: Share of positions whose largest entry must stay the largest; ties within ``absolute`` do not count.
        kl: Largest Kullback-Leibler divergence of a softmax, in nats.
    """

    absolute: float
    relative: float
    cosine: float
    top1: float
    kl: float

    def limit(self, reference: Any) -> float:
        """The largest error of an entry allowed against these values, a numpy array."""
        return self.absolute + self.relative * float(abs(reference).max(initial=0.0))

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

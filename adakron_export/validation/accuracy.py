"""What two sides make of labelled text: the task's metrics of both, and the texts on which they differ."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

PERPLEXITY = "perplexity"


@dataclass(frozen=True, slots=True)
class Flip:
    """A text on which the two sides answer differently.

    Attributes:
        place: Where it stands, such as ``dev.tsv:17``.
        text: Its beginning.
        label: What it is labelled with.
        reference: What the reference answers.
        candidate: What the candidate answers.
    """

    place: str
    text: str
    label: str
    reference: str
    candidate: str


@dataclass(frozen=True, slots=True)
class MetricPair:
    """A metric of both sides."""

    metric: str
    reference: float
    candidate: float

    @property
    def difference(self) -> float:
        """Candidate minus reference."""
        return self.candidate - self.reference


@dataclass(frozen=True, slots=True)
class AccuracyReport:
    """What labelled text showed.

    Attributes:
        source: The data, as it was named.
        examples: How many texts.
        metrics: The first decides.
        flips: All texts on which the sides differ.
        max_drop: Largest drop of the first metric, as a share; of a perplexity, how much larger it may be, as a share.
        lower_is_better: Whether the first metric is an error.
    """

    source: str
    examples: int
    metrics: tuple[MetricPair, ...]
    flips: tuple[Flip, ...]
    max_drop: float
    lower_is_better: bool = False

    @property
    def drop(self) -> float:
        """By how much the first metric is worse; negative where it is better. A candidate's NaN is infinite."""
        first = self.metrics[0]
        if math.isnan(first.reference):
            return 0.0
        if math.isnan(first.candidate):
            return math.inf
        if first.metric == PERPLEXITY:
            return first.difference / first.reference
        return first.difference if self.lower_is_better else -first.difference

    @property
    def passed(self) -> bool:
        """Whether the drop is allowed; rounding of the metric itself does not count."""
        return self.drop <= self.max_drop + 1e-12

    @property
    def verdict(self) -> str:
        """By how much the first metric is worse, and what is allowed, in words."""
        metric, unit = self.metrics[0].metric, "%" if self.metrics[0].metric == PERPLEXITY else "points"
        return f"{metric} is {100 * max(0.0, self.drop):.2f} {unit} worse (limit {100 * self.max_drop:g})"

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        rows = [{key: _number(value) for key, value in asdict(pair).items()} for pair in self.metrics]
        rest = {"drop": _number(self.drop), "max_drop": self.max_drop, "passed": self.passed}
        flips = [asdict(flip) for flip in self.flips]
        return {"source": self.source, "examples": self.examples, **rest, "metrics": rows, "flips": flips}


def _number(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value

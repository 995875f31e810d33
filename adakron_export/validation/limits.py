"""What a comparison is held to, and what it is made on."""

from __future__ import annotations

from dataclasses import dataclass

from adakron_export.errors import ExportError
from adakron_export.graph.dtypes import dtype_named
from adakron_export.graph.tolerance import Tolerance
from adakron_export.options.fields import check_record, option
from adakron_export.quantities import parse_points

DEFAULT_DROP = 0.5  # points


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How far a candidate may be from its reference; what is left out is the dtype's own tolerance.

    Raises:
        ExportError: A limit makes no sense.
    """

    atol: float | None = option(None, "Largest absolute error of an output.", shown="the dtype's", metavar="X")
    rtol: float | None = option(
        None, "Relative error allowed beside --atol, as a share of the largest value.", shown="the dtype's",
        metavar="X",
    )  # fmt: skip
    cosine: float | None = option(None, "Smallest cosine of two vectors.", shown="the dtype's", metavar="X")
    top1: float | None = option(
        None, "Smallest share of positions with the same top class.", shown="the dtype's", metavar="X"
    )
    kl: float | None = option(None, "Largest KL divergence of a softmax, in nats.", shown="the dtype's", metavar="X")
    max_drop: float | None = option(
        None, "Largest drop of the metric on --data, in points of 100; of perplexity, in percent.", shown="0.5",
        metavar="POINTS", read=parse_points, below=100,
    )  # fmt: skip

    def __post_init__(self) -> None:
        """Refuse values that make no sense."""
        check_record(self, ExportError)

    def tolerance(self, dtype: str) -> Tolerance:
        """What is allowed of an output in a dtype."""
        changes = {"absolute": self.atol, "relative": self.rtol}
        changes |= {"cosine": self.cosine, "top1": self.top1, "kl": self.kl}
        return dtype_named(dtype).tolerance.changed(changes)

    @property
    def drop(self) -> float:
        """The largest drop of a metric, as a share: 0.005 is half a point."""
        return (DEFAULT_DROP if self.max_drop is None else self.max_drop) / 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Batches:
    """What both sides are run on.

    Raises:
        ExportError: A value makes no sense.
    """

    seed: int = option(0, "Seed of the generated batches and of the draw of --limit.")
    batch: str | None = option(None, "Run only the batch of this name.", metavar="NAME")
    limit: int | None = option(None, "Draw this many rows of --data.", shown="all", metavar="N", least=1)

    def __post_init__(self) -> None:
        """Refuse values that make no sense."""
        check_record(self, ExportError)

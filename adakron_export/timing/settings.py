"""What is timed, for how long, and what it is held against."""

from __future__ import annotations

from dataclasses import dataclass

from adakron_export.errors import RunnerError
from adakron_export.options.fields import check_record, option
from adakron_export.quantities import parse_points, parse_seconds, parse_shapes

DEFAULT_REGRESSION = 5.0  # percent
SHAPES = ((1, 16), (1, 128), (8, 128), (32, 128))


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """What is timed, and for how long.

    Attributes:
        shapes: Pairs of texts and tokens; those of the baseline, or else `SHAPES` as far as the model takes them.

    Raises:
        RunnerError: A value makes no sense.
    """

    shapes: tuple[tuple[int, int], ...] | None = option(
        None, "Shapes to time, texts x tokens.", shown="the baseline's, or 1x16,1x128,8x128,32x128", metavar="LIST",
        read=parse_shapes,
    )  # fmt: skip
    new_tokens: int | None = option(
        None, "Time too how long it takes to write so many tokens after each shape.", metavar="N", least=1
    )
    budget_s: float = option(
        60.0, "Time for all of it, opening included.", flag="budget", shown="60s", metavar="TIME", read=parse_seconds
    )
    seed: int = option(0, "Seed of the batches and of the arrivals.")
    clients: tuple[int, ...] = option(
        (), "Time under load too: this many clients, each waiting for its answer.", metavar="N", least=1
    )
    rates: tuple[float, ...] = option(
        (), "Time under load too: this many requests a second.", flag="rate", metavar="R"
    )

    def __post_init__(self) -> None:
        """Refuse values that make no sense."""
        check_record(self, RunnerError)
        if self.budget_s == 0:
            raise RunnerError("budget must be above 0 seconds")
        if self.new_tokens is not None and (self.clients or self.rates):
            raise RunnerError("clients and rate are about single runs; leave them out, or new_tokens")
        if 0 in self.rates:
            raise RunnerError("rate is 0; it must be above 0 requests a second")


@dataclass(frozen=True, slots=True, kw_only=True)
class Guard:
    """An earlier measurement to hold the ratios to the reference against.

    Raises:
        RunnerError: A value makes no sense, or would change nothing.
    """

    save_to: str | None = option(
        None, "Write the ratios here, to hold later runs against.", flag="save-baseline", metavar="FILE"
    )
    baseline: str | None = option(None, "Exit with 1 where a ratio became worse than in this file.", metavar="FILE")
    max_regression: float | None = option(
        None, "Largest slowdown against the baseline, in percent: 5 or 5%.", shown="5%", metavar="PERCENT",
        read=parse_points, below=1000,
    )  # fmt: skip
    strict: bool = option(False, "Exit with 1 too where too few rounds were made to tell.")
    other_machine: bool = option(False, "Take a baseline of another machine too.")

    def __post_init__(self) -> None:
        """Refuse values that make no sense."""
        check_record(self, RunnerError)
        given = {"strict": self.strict, "other_machine": self.other_machine}
        given["max_regression"] = self.max_regression is not None
        useless = next((name for name, value in given.items() if value), None)
        if self.baseline is None and useless is not None:
            raise RunnerError(f"{useless} is about a baseline, and none is named; pass --baseline (baseline=...)")

    @property
    def limit(self) -> float:
        """How many times slower a side may have become, less 1: 0.05 is 5 %."""
        return (DEFAULT_REGRESSION if self.max_regression is None else self.max_regression) / 100

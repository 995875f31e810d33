"""Two reports side by side."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from adakron_export.reporting.plots import number

Content = dict[str, Any]
_Values = dict[str, float]


@dataclass(frozen=True, slots=True)
class Change:
    """One quantity in both reports.

    Attributes:
        what: Its name.
        unit: Unit, such as ``ms``; empty for a bare number.
        first: Its value there; ``None`` where that report has none.
        second: The value in the second report.
    """

    what: str
    unit: str
    first: float | None
    second: float | None

    @property
    def ratio(self) -> float | None:
        """The second over the first."""
        if self.first is None or self.second is None or not self.first or not math.isfinite(self.first + self.second):
            return None
        return self.second / self.first

    def to_json(self) -> Content:
        """As plain data; infinity is ``inf`` as text."""
        values = {key: "inf" if value == math.inf else value for key, value in asdict(self).items()}
        return {**values, "ratio": self.ratio}


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two reports.

    Attributes:
        passed: Whether each held what it was held to.
        parity: The largest error per output and batch.
        accuracy: The candidate's metrics.
        latency: Medians, speed-ups, and percentiles under load.
        environment: What the two were measured on, where that differs: name, first, second.
    """

    passed: tuple[bool, bool]
    parity: tuple[Change, ...]
    accuracy: tuple[Change, ...]
    latency: tuple[Change, ...]
    environment: tuple[tuple[str, str, str], ...]

    def to_json(self) -> Content:
        """As plain data."""
        return {
            "format_version": 1,
            "passed": list(self.passed),
            **{name: [row.to_json() for row in getattr(self, name)] for name in ("parity", "accuracy", "latency")},
            "environment": [dict(zip(("name", "first", "second"), row, strict=True)) for row in self.environment],
        }


def compare_reports(first: Content, second: Content) -> Comparison:
    """Set two reports side by side.

    Args:
        first: A report, as `read_report` returns it.
        second: Another report.
    """
    before, after = ({**each["machine"], **each["versions"]} for each in (first, second))
    names = [name for name in dict.fromkeys([*before, *after]) if before.get(name) != after.get(name)]
    return Comparison(
        passed=(first["passed"], second["passed"]),
        parity=_changes("", _errors(first), _errors(second)),
        accuracy=_changes("", _metrics(first), _metrics(second)),
        latency=(
            *_changes("ms", _medians(first), _medians(second)),
            *_changes("x", _speedups(first), _speedups(second)),
            *_changes("ms", _loads(first), _loads(second)),
        ),
        environment=tuple((name, str(before.get(name, "-")), str(after.get(name, "-"))) for name in names),
    )


def _changes(unit: str, before: _Values, after: _Values) -> tuple[Change, ...]:
    return tuple(Change(name, unit, before.get(name), after.get(name)) for name in dict.fromkeys([*before, *after]))


def _errors(report: Content) -> _Values:
    rows = report["parity"]["rows"] if report["parity"] else []
    checks = {f"{row['output']}, {row['batch']}": row["metrics"].get("max_abs_error") for row in rows}
    return {name: number(check["value"]) for name, check in checks.items() if check is not None}


def _metrics(report: Content) -> _Values:
    accuracy = report["parity"]["accuracy"] if report["parity"] else None
    return {row["metric"]: row["candidate"] for row in accuracy["metrics"]} if accuracy else {}


def _medians(report: Content) -> _Values:
    return {f"{_side(report, row)} {row['shape']} p50": row["p50_ms"] for row in _latencies(report)}


def _speedups(report: Content) -> _Values:
    rows = [row for row in _latencies(report) if row["speedup"]]
    return {f"{_side(report, row)} {row['shape']} speed-up": row["speedup"]["estimate"] for row in rows}


def _loads(report: Content) -> _Values:
    rows = report["latency"]["loads"] if report["latency"] else []
    return {f"{_side(report, row)} {row['shape']}, {row['scenario']} p99": number(row["p99_ms"]) for row in rows}


def _latencies(report: Content) -> list[Content]:
    return report["latency"]["latencies"] if report["latency"] else []


def _side(report: Content, row: Content) -> str:
    """A side's label; the only artifact beside the reference is called so in both, whatever its folder's name."""
    latency = report["latency"]
    others = [side["label"] for side in latency["sides"] if side["label"] != latency["reference"]]
    return "artifact" if others == [row["side"]] else str(row["side"])

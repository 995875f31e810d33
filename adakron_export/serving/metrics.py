"""What a server counts, in Prometheus' text format."""

from __future__ import annotations

from typing import Any

from adakron_export.extras import require

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_TEXTS = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """Counters of one server, in a registry of its own."""

    def __init__(self) -> None:
        prometheus: Any = require("prometheus_client", extra="serve")
        prometheus.disable_created_metrics()
        self._prometheus, self._registry = prometheus, prometheus.CollectorRegistry()
        common = {"registry": self._registry}
        self.requests = prometheus.Counter(
            "adakron_requests", "Requests that were answered", ["path", "status"], **common
        )
        self.errors = prometheus.Counter("adakron_errors", "Those of a status of 400 or more", ["path"], **common)
        self.seconds = prometheus.Histogram(
            "adakron_request_seconds", "Seconds from a request to its answer", ["path"], buckets=_SECONDS, **common
        )
        self.texts = prometheus.Counter("adakron_texts", "Texts that were answered", ["model"], **common)
        self.batches = prometheus.Histogram(
            "adakron_batch_texts", "Texts that ran together", ["model"], buckets=_TEXTS, **common
        )
        self.queue = prometheus.Gauge("adakron_queue_texts", "Texts that wait or run", **common)

    def page(self) -> tuple[bytes, str]:
        """All of it, and its content type."""
        return self._prometheus.generate_latest(self._registry), self._prometheus.CONTENT_TYPE_LATEST

    def count(self, path: str, status: int, seconds: float) -> None:
        """One request; the path is that of its route, and never what a caller made up."""
        self.requests.labels(path, str(status)).inc()
        self.seconds.labels(path).observe(seconds)
        if status >= 400:
            self.errors.labels(path).inc()

"""What TensorRT says."""

from __future__ import annotations

from typing import Any, Protocol, TextIO

_SHOWN_ERRORS = 3


class CollectingLogger(Protocol):
    """TensorRT's logger, which keeps the errors."""

    errors: list[str]

    def last_words(self) -> str:
        """The last errors."""
        ...


def collecting_logger(trt: Any, stream: TextIO | None = None) -> Any:
    """A logger for a flavor's module, a `CollectingLogger`; everything goes to the stream, where there is one."""

    class Logger(trt.ILogger):  # type: ignore[misc,unused-ignore]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if stream is not None:
                stream.write(f"{severity.name} {message}\n")
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.errors.append(message.strip()[:300])

        def last_words(self) -> str:
            return "; ".join(self.errors[-_SHOWN_ERRORS:]) or "without a word"

    return Logger()

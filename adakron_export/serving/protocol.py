"""HTTP/1.1 with limits that uvicorn leaves open: how long a request's head may take, and how large it may be.

A head is what stands before the body: request line and headers. A service sees a request when its head is complete.
"""

from __future__ import annotations

import asyncio
import json

from uvicorn.config import HTTP_PROTOCOLS
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

HEAD_BYTES = 2**16
HEAD_S = 20.0
_TOO_LARGE = f"the address and the headers of a request have at most {HEAD_BYTES} bytes"


def use_bounded_heads() -> None:
    """Let every server that this process starts speak `BoundedProtocol`; Ray starts them, and asks for ``auto``."""
    HTTP_PROTOCOLS["auto"] = f"{__name__}:{BoundedProtocol.__name__}"


class BoundedProtocol(HttpToolsProtocol):
    """One connection: heads that are too large are answered 431, those that take too long 408."""

    _timer: asyncio.TimerHandle | None = None  # there is one while a head is waited for
    _in_body = _large = False
    _head_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for the first head."""
        super().connection_made(transport)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait for nothing."""
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Count what belongs to a head."""
        if self._timer is None and not self._in_body:
            self._await_head()
        super().data_received(data)
        if self._timer is not None:
            self._head_bytes += len(data)
            if self._head_bytes > HEAD_BYTES:
                self._refuse(431, _TOO_LARGE)

    def on_headers_complete(self) -> None:
        """The head is there; it may have come at once with a body."""
        self._stop_timer()
        if len(self.url) + sum(len(name) + len(value) for name, value in self.headers) > HEAD_BYTES:
            self._large = True
            raise ValueError(_TOO_LARGE)  # the parser stops, and `send_400_response` is called
        self._in_body = True
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """The next head may come."""
        self._in_body = False
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is not HTTP, or too large."""
        self._refuse(*((431, _TOO_LARGE) if self._large else (400, msg)))

    def _await_head(self) -> None:
        self._head_bytes = 0
        self._timer = self.loop.call_later(HEAD_S, self._too_slow)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_slow(self) -> None:
        self._refuse(408, f"there was no whole request within {HEAD_S:g} s")

    def _refuse(self, status: int, why: str) -> None:
        self._stop_timer()
        if self.cycle is None or self.cycle.response_complete:  # else the answer before it is being written
            body = json.dumps({"error": why}).encode()
            head = f"content-type: application/json\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
            self.transport.write(STATUS_LINE[status] + head.encode() + body)
        self.transport.close()

"""Heads of requests that are too large or too slow, against a real server of HTTP."""

import json
import socket
import threading
import time

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

from adakron_export.serving import protocol

GET = b"GET / HTTP/1.1\r\nHost: a\r\n"


async def echo(request):
    return JSONResponse(len(await request.body()))


@pytest.fixture
def connect(monkeypatch):
    """Connections to a server that waits 0.2 s for a head."""
    monkeypatch.setattr(protocol, "HEAD_S", 0.2)
    app = Starlette(routes=[Route("/", echo, methods=["GET", "POST"])])
    config = uvicorn.Config(app, http=protocol.BoundedProtocol, log_level="error", lifespan="off")
    server = uvicorn.Server(config)
    listening = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    opened = []

    def new():
        opened.append(socket.create_connection(listening.getsockname(), timeout=10))
        return opened[-1]

    yield new
    for each in opened:
        each.close()
    server.should_exit = True
    thread.join()
    listening.close()


def answer(connection):
    """Status and content of one answer."""
    received = b""
    while b"\r\n\r\n" not in received:
        received += connection.recv(4096)
    head, _, body = received.partition(b"\r\n\r\n")
    length = int(next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")).split()[1])
    while len(body) < length:
        body += connection.recv(4096)
    return int(head.split()[1]), json.loads(body)


@pytest.mark.parametrize("sent", [b"", b"\r\n", b"GET", GET, GET + b"X-a: b"])
def test_a_head_that_never_ends_is_given_up(sent, connect):
    connection = connect()
    connection.sendall(sent)
    assert answer(connection) == (408, {"error": "there was no whole request within 0.2 s"})
    assert connection.recv(1) == b""


def test_drops_keep_no_connection_open(connect):
    connection = connect()
    start = time.monotonic()
    connection.sendall(GET)
    connection.settimeout(0.05)
    while True:
        try:
            if connection.recv(1):
                break
        except TimeoutError:
            connection.sendall(b"X-a: b\r\n")
        assert time.monotonic() - start < 5


@pytest.mark.parametrize(
    "sent",
    [
        b"GET /" + b"a" * 70_000,
        b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
        GET + b"X-a: " + b"b" * 70_000,
        GET + b"X-a: b\r\n" * 9_000,
        GET + b"X-a: b\r\n" * 17_000 + b"\r\n",
    ],
)
def test_a_head_that_is_too_large_is_refused(sent, connect):
    connection = connect()
    connection.sendall(sent)
    status, content = answer(connection)
    assert (status, content["error"]) == (431, "the address and the headers of a request have at most 65536 bytes")


def test_what_is_no_http_is_refused(connect):
    connection = connect()
    connection.sendall(b"\x16\x03\x01 hello\r\n\r\n")
    assert answer(connection)[0] == 400


def test_bodies_and_connections_that_rest_are_none_of_it(connect):
    connection = connect()
    for size in (0, 1_000_000, 3):
        connection.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % size)
        time.sleep(0.3)  # longer than a head may take
        connection.sendall(b"x" * size)
        assert answer(connection) == (200, size)
        time.sleep(0.3)
    connection.sendall(GET)  # but the next head must come
    assert answer(connection)[0] == 408


def test_the_answer_under_way_is_written_before_the_next_head_is_given_up(connect):
    connection = connect()
    connection.sendall(GET + b"\r\n" + GET)
    assert answer(connection) == (200, 0)

"""Ray Serve on this machine alone: started, told when to stop, and emptied before it ends."""

from __future__ import annotations

import http.client
import logging
import os
import secrets
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from adakron_export.errors import RunnerError, told_as
from adakron_export.extras import require
from adakron_export.runtimes.table import check_available, runtime_on
from adakron_export.serving.settings import ServeSettings

_log = logging.getLogger(__name__)

_START_S, _STOP_S = 60, 60
_STORE = 80 * 2**20  # bytes of Ray's object store: what is served passes it by
_SURROUNDINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",  # else whatever runs beside the server comes first
    # Ray's own metrics take 1.5 kB more memory with each request; those of the server are at /metrics.
    "RAY_enable_metrics_collection": "0",
    "RAY_SERVE_METRICS_EXPORT_INTERVAL_MS": "0",
    "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "1",  # ten times a second takes cores from small machines
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # a replica sees the GPU that its device names
    # A busy machine takes longer than the 5 s after which Ray kills its own proxy, again and again.
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
    "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "60",
}


@contextmanager
def serving(
    models: Mapping[str, Path], settings: ServeSettings, *, host: str, port: int, api_key: str | None = None
) -> Iterator[str]:
    """Serve models while the block runs; afterwards nothing more is taken, and what is under way is answered.

    Args:
        models: Artifacts by name.
        settings: How they are served.
        host: Where the server listens.
        port: On which port.
        api_key: What callers must show.

    Yields:
        The server's address.

    Raises:
        RunnerError: The server does not start.
        MissingPackageError: Ray is not installed.
    """
    from adakron_export.serving import application

    os.environ.pop(application.KEY, None)
    if api_key is not None:
        os.environ[application.KEY] = api_key  # Ray's processes inherit it; nothing writes it down
    os.environ.update(_direct(port))
    cpus = max(os.cpu_count() or 1, settings.replicas * (settings.threads or 1))
    address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    with ray_here(None, cpus):
        serve = require("ray.serve", extra="serve")
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        logs = {"log_level": "ERROR", "enable_access_log": False}
        bound = application.build(application.arguments(models, settings))
        _log.info("open the models in %s replica(s)", settings.replicas)
        try:
            with told_as(RunnerError, "the server does not start"):
                serve.start(http_options={"host": host, "port": _free_port(host)}, logging_config=logs)
                handle = serve.run(bound, name=application.APPLICATION, route_prefix="/", logging_config=logs)
                handle.check.remote().result(timeout_s=_START_S)
                check_answers(host, port)
            yield address
            _log.info("answer what is under way")
            with _bounded(settings.timeout_s + _STOP_S):
                _drained(handle, settings.timeout_s)
        finally:
            with _bounded(_STOP_S):
                serve.shutdown()


def _direct(port: int) -> dict[str, str]:
    """Let the door itself listen: Ray's proxy before it took three quarters of the requests that a core can answer."""
    return {
        "RAY_SERVE_ENABLE_DIRECT_INGRESS": "1",
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(port),
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(port + 1),
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "0",  # it is drained here
        "RAY_SERVE_PORT_QUARANTINE_S": "0",  # a door that died comes back at its port
    }


def _free_port(host: str) -> int:
    """For Ray's proxy, which nobody asks."""
    with socket.create_server((host, 0), family=_family(host)) as server:
        return int(server.getsockname()[1])


def check_answers(host: str, port: int) -> None:
    """Raise unless a server answers there.

    Raises:
        RunnerError: Nothing answers, or it is not ready.
    """
    connection = http.client.HTTPConnection(host, port, timeout=_START_S)
    try:
        connection.request("GET", "/v2/health/ready")
        status = connection.getresponse().status
    except OSError as error:
        raise RunnerError(f"nothing answers at {host}:{port} ({error}); is Ray older than 2.60?") from error
    finally:
        connection.close()
    if status != 200:
        raise RunnerError(f"{host}:{port} is not ready: status {status}")


def check_port(host: str, port: int) -> None:
    """Raise unless a server can listen there.

    Raises:
        RunnerError: The port is taken, or the address is none of this machine.
    """
    try:
        with socket.create_server((host, port), family=_family(host)):
            pass
    except OSError as error:
        raise RunnerError(f"{host}:{port} cannot be listened on ({error.strerror}); choose another --port") from error


def check_device(device: str, address: str | None = None) -> None:
    """Raise unless there is such a device; unless it is here, where Ray starts on this machine.

    Args:
        device: The name of a runtime.
        address: The cluster's. What its nodes have cannot be told from here.

    Raises:
        RunnerError: The device is unknown, or not available.
    """
    runtime_on(device)
    ray = sys.modules.get("ray")
    if address is None and (ray is None or not ray.is_initialized()):
        check_available(device)


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


@contextmanager
def ray_here(address: str | None, cpus: int) -> Iterator[None]:
    """Ray while the block runs: the one that the process has, a cluster's, or one of this machine.

    Args:
        address: The cluster's.
        cpus: How many cores Ray is told of, of this machine.

    Raises:
        RunnerError: Ray does not start, or does not answer.
        MissingPackageError: Ray is not installed.
    """
    for name, value in _SURROUNDINGS.items():
        os.environ.setdefault(name, value)
    if address is None:  # else Ray keeps a token in the home folder, which a container may not have
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))  # Ray reads it once in a process
    ray = require("ray", extra="serve")
    if ray.is_initialized():  # by whoever calls this, who ends it too
        yield
        return
    quiet = {"log_to_driver": False, "logging_level": "error"}
    _log.info("start Ray on this machine" if address is None else f"join Ray at {address}")
    with told_as(RunnerError, "Ray does not start" if address is None else f"{address}: Ray does not answer there"):
        if address is None:
            ray.init("local", num_cpus=cpus, include_dashboard=False, _node_ip_address="127.0.0.1",
                     object_store_memory=_STORE, **quiet)  # fmt: skip
        else:
            ray.init(address=address, **quiet)
    try:
        yield
    finally:
        with _bounded(_STOP_S):
            ray.shutdown()


def wait_for_signal() -> str:
    """Wait until the process is told to stop; the signal's name."""
    told: list[int] = []
    stop = threading.Event()

    def note(number: int, _frame: Any) -> None:
        told.append(number)
        stop.set()

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        stop.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return signal.Signals(told[0]).name


@contextmanager
def _bounded(seconds: float) -> Iterator[None]:
    """End the process where the block takes longer: Ray waits for ever for a part of it that was killed."""
    timer = threading.Timer(seconds, os._exit, (1,))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _drained(handle: Any, seconds: float) -> None:
    try:
        handle.drain.remote().result(timeout_s=seconds)
        _log.info("every request was answered")
    except TimeoutError:
        _log.warning("some requests were not answered within %g s", seconds)
    except Exception as error:  # Ray's, where parts of it were stopped before
        _log.warning("what was under way may be lost: Ray was stopped too (%s)", type(error).__name__)

"""Serves artifacts behind a port of this machine, or says how a cluster is to serve them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from adakron_export.artifacts.artifact import opened_with
from adakron_export.errors import RunnerError
from adakron_export.extras import check_installed, require
from adakron_export.files.staging import check_writable, write_text
from adakron_export.runtimes.table import runtime_on
from adakron_export.serving.predictor import Predictor
from adakron_export.serving.settings import ServeSettings
from adakron_export.tasks import Task


def serve(
    artifacts: Mapping[str, str | Path],
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    api_key: str | None = None,
    settings: ServeSettings | None = None,
    on_ready: Callable[[str, dict[str, str] | None], Any] | None = None,
) -> str:
    """Serve artifacts until the process is told to stop; then nothing more is taken, and what is under way answered.

    Args:
        artifacts: Exported folders by the names that callers know them by.
        host: Where the server listens; only this machine by default.
        port: On which port.
        api_key: What callers must show, as ``Authorization: Bearer KEY``. Without, adapters cannot be changed.
        settings: The limits of a request, how much waits, and on what it runs.
        on_ready: Called with the server's address, and with a body of ``/predict`` that the first model answers; with
            ``None`` where a text alone is no question to it.

    Returns:
        The name of the signal that ended it.

    Raises:
        ArtifactError: An artifact is damaged, or has no tokenizer.
        RunnerError: The device is not available, the port is taken, or the server does not start.
        MissingPackageError: Ray is not installed.
    """
    settings = settings or ServeSettings()
    check_installed("ray", extra="serve")
    from adakron_export.serving.local import check_device, check_port, serving, wait_for_signal

    check_device(settings.device)
    models = checked_models(artifacts, settings)
    check_port(host, port)

    with serving(_folders(models), settings, host=host, port=port, api_key=api_key) as address:
        if on_ready is not None:
            on_ready(address, _example(models, settings))
        return wait_for_signal()


def write_serve_config(
    artifacts: Mapping[str, str | Path], file: str | Path, *, host: str = "0.0.0.0", port: int = 8000,
    settings: ServeSettings | None = None,
) -> Path:  # fmt: skip
    """Write a config file for ``serve run`` and KubeRay; an API key comes by ``ADAKRON_API_KEY`` on the cluster.

    Args:
        artifacts: Exported folders by name; every node must find them at the same place.
        file: Where to.
        host: Where the proxies listen.
        port: On which port.
        settings: The limits of a request, how much waits, and on what it runs.

    Returns:
        The file.

    Raises:
        ArtifactError: An artifact is damaged, or has no tokenizer.
        MissingPackageError: Ray is not installed.
    """
    settings = settings or ServeSettings()
    yaml = require("yaml", extra="serve")
    path = Path(file)
    check_writable(path)
    from adakron_export.serving.application import config

    runtime_on(settings.device)
    models = checked_models(artifacts, settings)
    write_text(path, yaml.safe_dump(config(_folders(models), settings, host=host, port=port), sort_keys=False))
    return path


def checked_models(artifacts: Mapping[str, str | Path], settings: ServeSettings) -> dict[str, Predictor]:
    """The models, where each can be served; they are not opened."""
    if settings.adapter_root is not None and not Path(settings.adapter_root).is_dir():
        raise RunnerError(
            f"{settings.adapter_root} is no folder; adapter_root is the one that adapters are added from"
        )
    if not artifacts:
        raise RunnerError("there is no model to serve")
    models = {}
    for name, path in artifacts.items():
        if not name or "/" in name:
            raise RunnerError(f"{name!r} cannot be the name of a model; it stands in addresses")
        models[name] = opened_with(path, Predictor)
        if settings.adapter is not None:
            models[name].check_adapters(settings.adapter, 1)
    return models


def _folders(models: Mapping[str, Predictor]) -> dict[str, Path]:
    return {name: predictor.artifact.folder.resolve() for name, predictor in models.items()}


def _example(models: Mapping[str, Predictor], settings: ServeSettings) -> dict[str, str] | None:
    name, predictor = next(iter(models.items()))
    if predictor.task in (Task.FILL_MASK, Task.IMAGE_CLASSIFICATION):
        return None
    asked = {"text": "Hello"}
    if predictor.task is Task.QUESTION_ANSWERING:
        asked = {"text": "Who wrote it?", "pair": "Ada wrote it."}
    if len(models) > 1:
        asked["model"] = name
    if predictor.adapters and settings.adapter is None:
        asked["adapter"] = next(iter(predictor.adapters))
    return asked


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches it."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False

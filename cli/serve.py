"""`adakron-export serve`."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from adakron_export.errors import AdaKronError
from adakron_export.serving.settings import ServeSettings

from . import options
from .console import echo


def named(_context: click.Context, _argument: click.Parameter, artifacts: tuple[str, ...]) -> dict[str, str]:
    """Folders by their names: NAME=ARTIFACT, or the folder's own."""
    models: dict[str, str] = {}
    for each in artifacts:
        name, sign, path = each.partition("=")
        if not sign or Path(each).exists():
            name, path = Path(each).resolve().name, each
        if name in models:
            raise AdaKronError(f"two artifacts are called {name!r}; name them: NAME=ARTIFACT")
        models[name] = path
    return models


@click.command()
@click.argument("artifacts", nargs=-1, required=True, metavar="[NAME=]ARTIFACT...", callback=named)
@click.option(
    "--host", help="Address to listen on.  [default: 127.0.0.1, this machine alone; with --write-config 0.0.0.0]"
)
@click.option("--port", type=click.IntRange(1, 65535), default=8000, show_default=True, help="Port to listen on.")
@click.option(
    "--api-key", envvar="ADAKRON_API_KEY", metavar="KEY",
    help="Key that callers must show. Better as the environment variable ADAKRON_API_KEY.",
)  # fmt: skip
@options.of(ServeSettings)
@click.option("--write-config", metavar="FILE", help="Write a config file of Ray Serve for a cluster, and stop.")
@options.signed
def serve(
    artifacts: dict[str, str], *, host: str | None, port: int, api_key: str | None, write_config: str | None,
    **settings: Any,
) -> None:  # fmt: skip
    """Serve ARTIFACT over HTTP, until Ctrl-C.

    POST /predict takes {"text": ...}, /v2 speaks the Open Inference Protocol, / is a page to try it, and /metrics is
    for Prometheus. Adapters of a bank are chosen with {"adapter": ...}.
    """
    from adakron_export.verbs.serve import is_loopback, write_serve_config
    from adakron_export.verbs.serve import serve as run

    given = options.take(ServeSettings, settings)
    if write_config is not None:
        if click.get_current_context().get_parameter_source("api_key") is ParameterSource.COMMANDLINE:
            raise AdaKronError("no file holds an API key; set ADAKRON_API_KEY on the cluster, and leave --api-key out")
        listening = {} if host is None else {"host": host}
        file = write_serve_config(artifacts, write_config, port=port, settings=given, **listening)
        echo(f"wrote {file}; run it with: serve run {file}")
        return
    host = host or "127.0.0.1"
    if api_key is None and not is_loopback(host):
        echo(f"warning: {host} is open to other machines, and no --api-key is set", err=True)

    def ready(address: str, example: dict[str, str] | None) -> None:
        echo(f"serving {', '.join(artifacts)} at {address} (Ctrl-C stops)")
        if example is not None:
            key = "" if api_key is None else ' -H "Authorization: Bearer $ADAKRON_API_KEY"'
            echo(f"try: curl {address}/predict{key} -d {shlex.quote(json.dumps(example))}")

    stopped = run(artifacts, host=host, port=port, api_key=api_key, settings=given, on_ready=ready)
    echo(f"stopped by {stopped}", err=True)

"""`adakron-export doctor`."""

from __future__ import annotations

import click

from . import options
from .console import echo


@click.command()
@options.as_json
def doctor(as_json: bool) -> None:
    """Say what this machine has, what will work, and what to install."""
    from adakron_export.verbs.doctor import examine

    found = examine()
    if as_json:
        options.print_json(found.to_json())
        return
    for name, value in {**found.machine, **found.versions}.items():
        echo(f"{name.replace('_', ' '):<22}{'none' if value is None else value}")
    echo(f"{'ONNX Runtime has':<22}{', '.join(found.providers) or 'not installed'}")
    echo()
    for row in found.abilities:
        mark = click.style("yes", fg="green") if row.works else click.style("no ", fg="red", bold=True)
        echo(f"{mark}  {row.what}")
        if not row.works:
            echo(f"     {row.remedy}")

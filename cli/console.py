"""Where all that people read is printed."""

from __future__ import annotations

import click

from adakron_export.reporting.terminal import printable


def echo(text: object = "", *, err: bool = False) -> None:
    """Print a text, which may hold names from files, to stdout or stderr."""
    click.echo(printable(str(text)), err=err)

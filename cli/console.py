"""Where all that people read is printed."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Iterator

import click

from adakron_export.reporting.terminal import printable


def echo(text: object = "", *, err: bool = False) -> None:
    """Print a text, which may hold names from files, to stdout or stderr."""
    click.echo(printable(str(text)), err=err)


def is_first_process() -> bool:
    """Whether this process prints, of those that torchrun or accelerate started."""
    return os.environ.get("RANK", "0") == "0"


class _Stages(logging.Handler):
    """Prints what the library logs to stderr, with the seconds since the command began."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self._start = time.perf_counter()

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record; an interruption while that is done is one of the command."""
        if is_first_process():
            mark = "warning: " if record.levelno >= logging.WARNING else ""
            indented = record.getMessage().replace("\n", "\n" + " " * 10)
            echo(f"{time.perf_counter() - self._start:6.1f} s  {mark}{indented}", err=True)


@contextlib.contextmanager
def stages_shown() -> Iterator[None]:
    """While a command runs, show its stages."""
    logger, handler = logging.getLogger("adakron_export"), _Stages()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)

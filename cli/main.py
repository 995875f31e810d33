"""The command `adakron-export`: its commands, and what becomes of errors."""

from __future__ import annotations

import errno
import sys
import traceback
from typing import Any

import click

from adakron_export._version import __version__
from adakron_export.errors import AdaKronError
from adakron_export.extras import missing_package

from . import options
from .bank import bank
from .bench import bench
from .check import check
from .compare import compare
from .console import echo, stages_shown
from .convert import convert
from .doctor import doctor
from .inspect import inspect
from .onnx import onnx
from .predict import predict
from .serve import serve
from .sign import sign, verify
from .tensorrt import tensorrt
from .train import train
from .triton import triton
from .tune import tune
from .validate import validate

_UNFORESEEN = (
    "error: this was not foreseen, and is a fault of adakron-export. Please report it with the lines above, the "
    "command, and what `adakron-export doctor` prints"
)


class _Group(click.Group):
    """Prints our errors as one message and exits with 2; `--debug` shows where they come from."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        options.remember(ctx, args)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with stages_shown():
                return super().invoke(ctx)
        except (click.exceptions.Exit, click.ClickException, click.Abort):
            raise
        except KeyboardInterrupt:
            echo("stopped; nothing was written", err=True)
            sys.exit(130)
        except Exception as error:
            if isinstance(error, OSError) and error.errno == errno.EPIPE:
                raise  # click ends quietly on a closed pipe
            told = _told(error)
            if ctx.params.get("debug") or told is None:
                echo(traceback.format_exc(), err=True)
            if told is None:
                echo(_UNFORESEEN, err=True)
                sys.exit(3)
            echo(f"error: {told}", err=True)
            sys.exit(2)


def _told(error: Exception) -> str | None:
    """What to tell of an error whose cause the user can mend; ``None`` where it was not foreseen."""
    if isinstance(error, ModuleNotFoundError) and not isinstance(error, AdaKronError):
        missing = missing_package(error)
        return None if missing is None else str(missing)
    if isinstance(error, AdaKronError):
        return str(error)
    if isinstance(error, MemoryError):
        return "not enough memory for this model or batch"
    if isinstance(error, OSError) and error.errno is not None:
        return f"{error.filename or 'a file'}: {error.strerror}"
    return None


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="adakron-export")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def main(debug: bool) -> None:  # noqa: ARG001, RUF100 - read by _Group
    """Take transformers with adapters to ONNX, and prove that nothing changed.

    Exit code 0: done and held. 1: ran, and the check failed. 2: the input or the environment is at fault. 3: a fault
    of this program.
    """


COMMANDS = (
    bank,
    bench,
    check,
    compare,
    convert,
    doctor,
    inspect,
    onnx,
    predict,
    serve,
    sign,
    tensorrt,
    train,
    triton,
    tune,
    validate,
    verify,
)
for command in COMMANDS:
    main.add_command(command)

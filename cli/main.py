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
from .bench import bench
from .check import check
from .compare import compare
from .convert import convert
from .doctor import doctor
from .inspect import inspect
from .onnx import onnx
from .predict import predict
from .tensorrt import tensorrt
from .train import train
from .tune import tune
from .validate import validate


class _Group(click.Group):
    """Prints our errors as one message and exits with 2; `--debug` shows where they come from."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        options.remember(ctx, args)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (AdaKronError, ModuleNotFoundError) as error:
            told = missing_package(error) if isinstance(error, ModuleNotFoundError) else error
            if told is None:
                raise
            if ctx.params.get("debug"):
                click.echo(traceback.format_exc(), err=True)
            click.echo(f"error: {told}", err=True)
            sys.exit(2)
        except KeyboardInterrupt:
            click.echo("stopped; nothing was written", err=True)
            sys.exit(130)
        except MemoryError:
            click.echo("error: not enough memory for this model or batch", err=True)
            sys.exit(2)
        except OSError as error:
            if ctx.params.get("debug") or error.errno in (None, errno.EPIPE):  # click ends quietly on a closed pipe
                raise
            click.echo(f"error: {error.filename or ''}: {error.strerror}", err=True)
            sys.exit(2)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="adakron-export")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def main(debug: bool) -> None:  # noqa: ARG001, RUF100 - read by _Group
    """Take transformers with AdaKron adapters to ONNX, and prove that nothing changed.

    Exit code 0: done and held. 1: ran, and the check failed. 2: the input or the environment is at fault.
    """


for command in (bench, check, compare, convert, doctor, inspect, onnx, predict, tensorrt, train, tune, validate):
    main.add_command(command)

"""Options and output that several commands share."""

from __future__ import annotations

import json
import os
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import Any

import click

from adakron_export.artifact import DTYPES, TORCH_NAMES
from adakron_export.device import Device
from adakron_export.errors import AdaKronError
from adakron_export.tasks import SYNONYMS, Task

from .console import echo

backbone = click.option("--backbone", metavar="DIR_OR_ID", help="The backbone; by default what the checkpoint names.")
as_json = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
overwrite = click.option("--overwrite", is_flag=True, help="Replace what is there, at the end, in one step.")


class Named(click.Choice[str]):
    """A choice that knows other names of its values too.

    Args:
        values: As they are listed.
        synonyms: Their values by other names.
    """

    def __init__(self, values: Sequence[str], synonyms: Mapping[str, str]) -> None:
        super().__init__(list(values))
        self.synonyms = synonyms

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The value that is meant."""
        return super().convert(self.synonyms.get(value, value), param, ctx)


TASK = Named([each.value for each in Task], SYNONYMS)
DTYPE = Named(DTYPES, TORCH_NAMES)
DEVICE = click.Choice([each.value for each in Device])
task = click.option("--task", type=TASK, help="Inferred by default.")
device = click.option("--device", type=DEVICE, default="cpu", show_default=True, help="Where it runs.")
atol = click.option("--atol", type=float, metavar="X", help="Largest absolute error; by default the dtype's.")


engine_code = click.option(
    "--allow-engine-code", is_flag=True, help="Let host code run that an engine may bring along; it has your rights."
)
push_to_hub = click.option("--push-to-hub", metavar="REPO", help="Upload it there when it is done.")
private = click.option("--private", is_flag=True, help="Make that repository a private one.")
report = click.option("--report", "report_to", metavar="DIR", help="Write a page and report.json there.")


def signed(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command ``--require-signature``, which refuses what it runs before it is opened."""

    @click.option("--require-signature", metavar="PEM", help="Refuse it unless this public key's owner signed it.")
    @wraps(command)
    def checked(require_signature: str | None, **settings: Any) -> Any:
        if require_signature is not None:
            from adakron_export.signing import verify

            paths = settings.get("artifacts") or (
                settings["artifact"] if "artifact" in settings else settings["source"],
            )
            for path in paths:
                verify(path, require_signature)
        return command(**settings)

    return checked


def remember(context: click.Context, arguments: list[str]) -> None:
    """Keep the words of the command line for `write_report`."""
    context.meta["adakron_export.arguments"] = list(arguments)


def check_report(folder: str | None) -> None:
    """Refuse a place where no report can be written, before anything is measured."""
    from adakron_export.reporting.report import check_report_folder

    if folder is not None:
        check_report_folder(folder)


def write_report(folder: str | None, path: str, **parts: Any) -> None:
    """Write a report on what is at a path, if one was asked for; the parts are those of `report_content`."""
    if folder is None:
        return
    from adakron_export.inspection import subject_of
    from adakron_export.reporting import report

    words = click.get_current_context().meta["adakron_export.arguments"]
    content = report.report_content(repeat=shlex.join(["adakron-export", *words]), subject=subject_of(path), **parts)
    echo(f"report: {report.write_report(folder, content)}", err=True)


def check_push(repository: str | None, *, private: bool) -> None:
    """Refuse options that make no sense, before anything is done."""
    if private and repository is None:
        raise click.UsageError("--private is for --push-to-hub REPO")


def push(folder: Path, repository: str | None, *, private: bool) -> None:
    """Upload a folder, if that was asked for, and say where it is."""
    if repository is None:
        return
    from adakron_export import push_to_hub as upload

    address = upload(folder, repository, private=private, progress=stage_printer())
    echo(f"pushed to {address}", err=True)


def read_by(parse: Callable[[str], Any]) -> Callable[[click.Context, click.Parameter, str | None], Any]:
    """A callback that reads an option's text, and says which option it was where that fails."""

    def read(_context: click.Context, _option: click.Parameter, text: str | None) -> Any:
        try:
            return None if text is None else parse(text)
        except AdaKronError as error:
            raise click.BadParameter(str(error)) from error

    return read


def stage_printer() -> Callable[[str], None]:
    """Prints each stage to stderr as it begins, with the seconds since the first."""
    start = time.perf_counter()

    def show(stage: str) -> None:
        if is_first_process():
            indented = stage.replace("\n", "\n" + " " * 10)
            echo(f"{time.perf_counter() - start:6.1f} s  {indented}", err=True)

    return show


def is_first_process() -> bool:
    """Whether this process prints, of those that torchrun or accelerate started."""
    return os.environ.get("RANK", "0") == "0"


def print_json(content: Any) -> None:
    """Print a result for machines."""
    click.echo(json.dumps(content, indent=2, default=str))


def tensor(name: str, shape: Sequence[int | str]) -> str:
    """An input or output as people read it, such as ``logits [batch_size, 3]``."""
    return f"{name} [{', '.join(map(str, shape))}]"


def size(number: float) -> str:
    """Bytes as people read them."""
    for unit in ("B", "kB", "MB"):
        if number < 1000:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:.2f} GB"

"""Options and output that several commands share."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import click

from adakron_export.data.settings import TextSettings
from adakron_export.errors import AdaKronError
from adakron_export.graph.targets import TARGETS
from adakron_export.options.fields import Option, options_of

from .console import echo

R = TypeVar("R")

target = click.option(
    "--target", type=click.Choice([*TARGETS]), default="portable", show_default=True, help="Runtime to export for."
)
as_json = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
overwrite = click.option("--overwrite", is_flag=True, help="Replace what is there, at the end, in one step.")
data = click.option("--data", metavar="DATA", help="Labelled text: a file, a folder, glue:NAME or a hub id.")


class Named(click.Choice[str]):
    """A choice that knows other names of its values too.

    Args:
        values: The values, as they are listed.
        synonyms: Their values by other names.
    """

    def __init__(self, values: Sequence[str], synonyms: Mapping[str, str]) -> None:
        super().__init__(list(values))
        self.synonyms = synonyms

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The value that is meant."""
        return super().convert(self.synonyms.get(value, value), param, ctx)


def of(record: type, *names: str, prefix: str = "", switches: bool = False) -> Callable[[Any], Any]:
    """Give a command the options of a record's fields, all of them or those of these names.

    Args:
        record: Its fields come from `adakron_export.options.fields.option`.
        names: Only these.
        prefix: Before each flag, such as ``against-``.
        switches: Whether each choice of yes or no has both flags, since a file may say either.
    """

    def add(command: Any) -> Any:
        for each in reversed(options_of(record, *names)):
            command = _click_option(each, prefix, switches=switches)(command)
        return command

    return add


def _click_option(each: Option, prefix: str, *, switches: bool) -> Callable[[Any], Any]:
    name, flag = f"{prefix.replace('-', '_')}{each.name}", f"--{prefix}{each.flag}"
    if each.kind is bool:
        off = f"--no-{prefix}{each.flag}"
        if switches or each.default is None:
            return click.option(f"{flag}/{off}", name, default=None, help=each.help)
        return click.option(
            off if each.default else flag, name, default=None, is_flag=True, flag_value=not each.default,
            help=f"Do not {each.help[0].lower()}{each.help[1:]}" if each.default else each.help,
        )  # fmt: skip
    settings: dict[str, Any] = {"multiple": each.repeated, "metavar": each.metavar, "help": each.help + _default(each)}
    if each.choices:
        settings["type"] = Named(each.choices, each.synonyms)
    elif each.read is not None:
        settings["callback"] = read_by(each.read)
    else:
        settings["type"] = each.kind
    aliases = _ALIASES.get(each.name, ())
    return click.option(flag, *aliases, name, default=None, **settings)


_ALIASES = {"r": ("--adapter-size",)}  # torchrun takes --r for an abbreviation of its own options


def _default(each: Option) -> str:
    shown = each.default if each.shown is None else each.shown
    return "" if shown in (None, "", ()) else f"  [default: {shown}]"


def take(record: type[R], settings: dict[str, Any], *names: str, prefix: str = "", **more: Any) -> R:
    """A record of what the command line gave of its options, which leaves the settings of the command.

    Args:
        record: The record that `of` was given.
        settings: Settings of the command; what belongs to the record is taken out.
        names: Only these fields, as for `of`.
        prefix: The prefix that `of` was given.
        more: Fields that are no options.
    """
    given = {each.name: settings.pop(f"{prefix.replace('-', '_')}{each.name}", None)
             for each in options_of(record, *names)}  # fmt: skip
    return record(**{name: value for name, value in given.items() if value not in (None, ())}, **more)


def take_text(settings: dict[str, Any]) -> TextSettings | None:
    """How text is read; ``None`` where nothing was said of it."""
    said = take(TextSettings, settings)
    return None if said == TextSettings() else said


push_to_hub = click.option("--push-to-hub", metavar="REPO", help="Upload it there when it is done.")
private = click.option("--private", is_flag=True, help="Make that repository a private one.")
report = click.option("--report", "report_to", metavar="DIR", help="Write a page and report.json there.")


def signed(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command ``--require-signature``, which refuses what it runs before it is opened."""

    @click.option("--require-signature", metavar="PEM", help="Refuse it unless this public key's owner signed it.")
    @wraps(command)
    def checked(require_signature: str | None, **settings: Any) -> Any:
        if require_signature is not None:
            from adakron_export.verbs.sign import verify

            paths = settings.get("artifacts") or (
                settings["artifact"] if "artifact" in settings else settings["source"],
            )
            for path in paths.values() if isinstance(paths, Mapping) else paths:
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
    from adakron_export.reporting import report
    from adakron_export.verbs.inspect import subject_of

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

    address = upload(folder, repository, private=private)
    echo(f"pushed to {address}", err=True)


def read_by(parse: Callable[[str], Any]) -> Callable[[click.Context, click.Parameter, Any], Any]:
    """A callback that reads an option's text, or each of several, and says which option it was where that fails."""

    def read(_context: click.Context, _option: click.Parameter, text: Any) -> Any:
        try:
            if isinstance(text, tuple):
                return tuple(parse(each) for each in text)
            return None if text is None else parse(text)
        except AdaKronError as error:
            raise click.BadParameter(str(error)) from error

    return read


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

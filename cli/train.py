"""`adakron-export train`."""

from __future__ import annotations

import sys
from typing import Any

import click

from adakron_export.options.fields import options_of
from adakron_export.training.recipe import Recipe

from . import options
from .console import echo, is_first_process


class _Grouped(click.Command):
    """Shows the options by what they are about."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        groups: dict[str, list[tuple[str, str]]] = {}
        subjects = {each.name: each.group for each in options_of(Recipe)}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                groups.setdefault(subjects.get(str(parameter.name), "run"), []).append(record)
        for name, records in groups.items():
            with formatter.section(name.capitalize()):
                formatter.write_dl(records)


@click.command(cls=_Grouped)
@click.option("-o", "--output", required=True, metavar="DIR", help="Folder to write the checkpoint to.")
@click.option("--config", metavar="FILE", help="Recipe to start from; the command line wins over it.")
@click.option("--resume", is_flag=True, help="Go on with the run in DIR; its settings are kept there.")
@click.option("--overwrite", is_flag=True, help="Begin anew; a checkpoint in DIR is replaced at the end.")
@options.push_to_hub
@options.private
@options.as_json
@options.of(Recipe, switches=True)
def train(
    output: str, *, config: str | None, resume: bool, overwrite: bool, as_json: bool, push_to_hub: str | None,
    private: bool, **settings: Any,
) -> None:  # fmt: skip
    """Train adapters and a head on labelled text.

    DATA is a TSV, CSV, JSON lines or Parquet file, a folder of them, glue:NAME, or the hub id of a data set. The
    best checkpoint on the evaluation data becomes DIR, which PEFT loads and `adakron-export onnx` exports.
    """
    options.check_push(push_to_hub, private=private)
    from adakron_export import train as run

    given = {name: value for name, value in settings.items() if value not in (None, ())}
    recipe = _recipe(output, config, given, resume=resume)
    try:
        result = run(recipe, output, resume=resume, overwrite=overwrite, bar=True)
    except KeyboardInterrupt:
        echo(f"\nstopped and saved; go on with: adakron-export train -o {output} --resume", err=True)
        sys.exit(130)
    if not is_first_process():
        return
    options.push(result.folder, push_to_hub, private=private)
    if as_json:
        options.print_json(result.to_json())
        return
    for name, value in result.metrics.items():
        echo(f"{name.replace('_', ' '):<22}{value:.4f}{'  (decides)' if name == result.metric else ''}")
    speed = f", {result.samples_per_second:.0f} texts per second" if result.samples_per_second else ""
    echo(f"best at step {result.best_step} of {result.steps}{speed}")
    echo(f"wrote {result.folder}")
    echo(f"next: adakron-export onnx {result.folder} -o ARTIFACT")


def _recipe(output: str, config: str | None, given: dict[str, Any], *, resume: bool) -> Recipe | None:
    from adakron_export.training.recipe import make_recipe, read_settings

    settings = {**(read_settings(config) if config else {}), **given}
    if not resume:
        return make_recipe(settings, source=config or "the command line")
    if not settings:
        return None
    from pathlib import Path

    from adakron_export.training.state import recipe_of_run

    return make_recipe({**recipe_of_run(Path(output)).to_json(), **settings}, source=config or "the command line")

"""`adakron-export bank`."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from adakron_export.data.settings import TextSettings
from adakron_export.graph.dtypes import DTYPE_SYNONYMS, DTYPES
from adakron_export.reporting.terminal import one_line
from adakron_export.subjects.subject import Subject
from adakron_export.validation.limits import Limits
from adakron_export.verbs.settings import BankSettings, MakingSettings

from . import options
from .console import echo

_OF_CHECKPOINT = ("backbone", "task")
_OF_LIMITS = ("atol", "rtol", "cosine", "top1", "kl")


@click.group()
def bank() -> None:
    """Serve many adapters from one graph.

    A bank is an artifact whose adapters are inputs of its graph: each row of a batch names its own. It holds AdaKron
    adapters, bottlenecks or LoRA, one kind at a time.
    """


@bank.command()
@click.argument("checkpoints", nargs=-1, required=True, metavar="[NAME=]CHECKPOINT...")
@click.option("-o", "--output", required=True, metavar="DIR", help="Folder to write the bank to.")
@options.of(Subject, *_OF_CHECKPOINT)
@options.target
@click.option("--dtype", type=options.Named([*DTYPES], DTYPE_SYNONYMS), default="fp32", show_default=True,
              help="Precision of the backbone; adapters stay in fp32, or fp16 where the graph is.")  # fmt: skip
@options.of(BankSettings)
@click.option("--data", metavar="DATA", help="Text to find int8 or fp8 scales on.")
@options.of(TextSettings)
@options.of(Limits, *_OF_LIMITS)
@options.overwrite
@options.as_json
def create(checkpoints: tuple[str, ...], output: str, *, as_json: bool, **settings: Any) -> None:
    """Export one graph for all CHECKPOINTs and prove each of them equal.

    The first one is what programs get that know nothing of banks. A name is the folder's, or NAME=CHECKPOINT.
    """
    from adakron_export import create_bank

    common = options.take(Subject, settings, *_OF_CHECKPOINT, path="")
    limits, text = options.take(Limits, settings, *_OF_LIMITS), options.take_text(settings)
    made = options.take(BankSettings, settings, text=text)
    result = create_bank(named(checkpoints, common), output, limits=limits, settings=made, **settings)
    _report(result, as_json=as_json)


@bank.command()
@click.argument("artifact")
@click.argument("checkpoints", nargs=-1, required=True, metavar="[NAME=]CHECKPOINT...")
@options.of(Subject, *_OF_CHECKPOINT)
@options.of(MakingSettings, "validate", "force")
@options.of(Limits, *_OF_LIMITS)
@click.option("--overwrite", is_flag=True, help="Replace adapters of the same names.")
@options.as_json
def add(artifact: str, checkpoints: tuple[str, ...], *, overwrite: bool, as_json: bool, **settings: Any) -> None:
    """Add adapters to a bank; its graph stays as it is.

    Each is compared with its own eager model, alone and in batches with the others; what fails is not added.
    """
    from adakron_export import add_to_bank

    common = options.take(Subject, settings, *_OF_CHECKPOINT, path="")
    limits = options.take(Limits, settings, *_OF_LIMITS)
    made = options.take(MakingSettings, settings, "validate", "force")
    result = add_to_bank(artifact, named(checkpoints, common), overwrite=overwrite, limits=limits, settings=made)
    _report(result, as_json=as_json)


@bank.command()
@click.argument("artifact")
@click.argument("name")
@options.as_json
def remove(artifact: str, name: str, *, as_json: bool) -> None:
    """Remove an adapter from a bank."""
    from adakron_export import remove_from_bank

    result = remove_from_bank(artifact, name)
    if as_json:
        _report(result, as_json=True)
        return
    echo(f"removed {name} from {artifact}")


@bank.command("list")
@click.argument("artifact")
@options.as_json
def list_(artifact: str, *, as_json: bool) -> None:
    """List the adapters of a bank."""
    from dataclasses import asdict

    from adakron_export import list_bank

    rows = list_bank(artifact)
    if as_json:
        options.print_json([asdict(row) for row in rows])
        return
    width = max(len(row.name) for row in rows)
    for row in rows:
        proof = "not validated" if row.max_abs_error is None else f"error {row.max_abs_error:.1e}"
        labels = one_line(", ".join(row.labels[:6])) + (", ..." if len(row.labels) > 6 else "")
        sizes = f"{options.size(row.size_bytes)} ({options.size(row.stacked_bytes)} in the stacks)"
        echo(f"{row.id:>3}  {row.name:<{width}}  {_width(row.settings):<18}{sizes:<34}{proof:<16}{labels}")


def _width(settings: Mapping[str, Any]) -> str:
    """How wide an adapter is, as its own configuration says it."""
    if not settings:
        return "the bare backbone"
    if settings.get("r") is not None:
        return f"r {settings['r']}" + (f", k {settings['k']}" if "k" in settings else "")
    factor = settings.get("reduction_factor", 16)
    return "widths by layer" if isinstance(factor, dict) else f"1/{factor:g} wide"


@bank.command()
@click.argument("artifact")
@click.argument("name")
@click.option("-o", "--output", required=True, metavar="FILE", help="File to write, such as spam.onnx_adapter.")
@options.overwrite
def export(artifact: str, name: str, output: str, *, overwrite: bool) -> None:
    """Write one adapter for ONNX Runtime's own API.

    One .onnx_adapter answers a whole call, from C, C#, Java, JavaScript or Python, on the bank's model.onnx.
    """
    from adakron_export import export_adapter

    echo(f"wrote {export_adapter(artifact, name, output, overwrite=overwrite)}")


def named(words: tuple[str, ...], common: Subject) -> Any:
    """Checkpoints by name where they have one, else in a list."""
    from adakron_export.verbs.bank import adapter_name

    if any("=" in word and not Path(word).exists() for word in words):
        pairs = [word.split("=", 1) if "=" in word else [adapter_name(word), word] for word in words]
        twice = next((name for name, _ in pairs if [each for each, _ in pairs].count(name) > 1), None)
        if twice is not None:
            raise click.UsageError(f"two adapters are called {twice!r}; give each a name of its own: NAME=CHECKPOINT")
        return {name: common.on(path=path) for name, path in pairs}
    return [common.on(path=word) for word in words]


def _report(result: Any, *, as_json: bool) -> None:
    if as_json:
        parity = {name: report.to_json() for name, report in result.parity.items()}
        options.print_json({"written": result.written, "folder": str(result.folder), "parity": parity})
    else:
        _print(result)
    if not result.passed:
        sys.exit(1)


def _print(result: Any) -> None:
    from .parity import print_parity

    for name, report in result.parity.items():
        if report.passed:
            echo(f"{name}: largest absolute error {report.max_abs_error:.2e}, alone and in mixed batches")
        else:
            echo(f"{name}:")
            print_parity(report)
    if not result.written:
        echo(f"{result.folder} was not written; --force writes it all the same, and --atol sets another limit")
        return
    known = result.artifact.manifest.bank
    size = sum(file.stat().st_size for file in result.folder.rglob("*") if file.is_file())
    echo(f"wrote {result.folder}: {len(known.adapters)} adapters, {options.size(size)}")
    if not result.parity:
        echo("not validated")
    echo(f"next: adakron-export predict {result.folder} --adapter {known.first} --text ...")

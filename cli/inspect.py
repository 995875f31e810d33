"""`adakron-export inspect`."""

from __future__ import annotations

import shutil
from typing import Any

import click

from adakron_export.subjects.subject import Subject

from . import options
from .console import echo


@click.command()
@click.argument("path")
@options.of(Subject, "backbone")
@options.as_json
def inspect(path: str, backbone: str | None, as_json: bool) -> None:
    """Show what a checkpoint or an artifact holds."""
    from adakron_export.verbs.inspect import CheckpointInfo
    from adakron_export.verbs.inspect import inspect as look_into

    info = look_into(path, backbone=backbone)
    if as_json:
        options.print_json(info.to_json())
    elif isinstance(info, CheckpointInfo):
        _print_checkpoint(info)
    else:
        _print_artifact(info)


def _print_rows(rows: list[tuple[str, object]]) -> None:
    width = max(80, shutil.get_terminal_size().columns)
    for name, value in rows:
        head = f"{name:<12}" if len(name) < 12 else f"{name}: "
        echo(click.wrap_text(f"{value}", width, initial_indent=head, subsequent_indent=" " * 12))


def _print_adapters(adapters: Any) -> None:
    echo(f"{len(adapters)} adapters:")
    for adapter in adapters:
        shapes = "  ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in adapter.shapes.items()
                           if "bias" not in name and not name.startswith(("B", "CODE")))  # fmt: skip
        echo(f"  {adapter.module}\n      {shapes}")


def _settings_of(settings: dict[str, Any]) -> str:
    shown = {key: " and ".join(value) if key == "adapters" else value for key, value in settings.items()}
    return ", ".join(f"{key} {value}" for key, value in shown.items() if key != "kind") or "none"


def _print_checkpoint(info: Any) -> None:
    from adakron_export.checkpoints.kinds import KINDS

    kind = KINDS[info.kind].title
    trained = info.adapter_parameters + info.head_parameters
    _print_rows(
        [
            (kind, f"{info.path} ({options.size(info.file_bytes)})"),
            ("model", f"{info.architecture} for {info.task}"),
            ("backbone", info.backbone),
            ("adapter", _settings_of(info.settings)),
            (
                "trained",
                f"{trained:,} of {info.total_parameters:,} parameters ({info.trainable_share:.3%}): "
                f"{info.adapter_parameters:,} in adapters, {info.head_parameters:,} saved whole",
            ),
        ]
    )
    if info.adapters:
        _print_adapters(info.adapters)


def _tensors(rows: list[Any]) -> str:
    """Inputs or outputs; of keys and values the first layer's, and how many there are."""
    from adakron_export.tasks import without_cache

    names = without_cache(row["name"] for row in rows)
    plain = [options.tensor(row["name"], row["shape"]) for row in rows if row["name"] in names]
    kept = [options.tensor(row["name"], row["shape"]) for row in rows if row["name"] not in names]
    more = [f"{len(kept) - 2} more keys and values"] if len(kept) > 2 else []
    return ", ".join([*plain, *kept[:2], *more])


def _print_artifact(info: Any) -> None:
    manifest = info.manifest
    ops = ", ".join(f"{count} {name}" for name, count in info.ops.items())
    opsets = ", ".join(f"{domain or 'ai.onnx'} {number}" for domain, number in info.opsets.items())
    _print_rows(
        [
            ("artifact", info.path),
            ("made of", f"{manifest['backbone']} with {manifest['adapter_source']['name']}"),
            ("adapter", _settings_of(manifest["adapter"])),
            ("task", manifest["task"]),
            *([("bank", ", ".join(manifest["bank"]["adapters"]))] if "bank" in manifest else []),
            ("graph", f"target {manifest['target']}, {manifest['dtype']}, opsets {opsets}"),
            ("rewrites", info.rewrites or "none"),
            *([("int8", f"integer products are {info.integer_products}")] if info.integer_products else []),
            ("inputs", _tensors(manifest["inputs"])),
            ("outputs", _tensors(manifest["outputs"])),
            ("parameters", f"{info.parameters:,}"),
            ("operators", f"{sum(info.ops.values())}: {ops}"),
            ("files", ", ".join(f"{name} {options.size(number)}" for name, number in info.file_bytes.items())),
            ("validation", _verdict(info.parity)),
            ("tuning", _tuning(manifest["tuning"])),
        ]
    )
    if info.adapters:
        _print_adapters(info.adapters)
    elif manifest["adapter"].get("kind") not in ("peft", "none"):
        echo(f"adapters inlined for the target {manifest['target']}")


def _tuning(tuning: dict[str, Any] | None) -> str:
    if tuning is None:
        return "none"
    threads = tuning["threads"] or "ONNX Runtime's choice of"
    settings = [f"{threads} threads", f"spinning {'on' if tuning['spinning'] else 'off'}"]
    settings += [f"{name} off" for name in tuning["disabled_optimizers"]]
    gain = f"{tuning['speedup']:.2f}x faster at {', '.join(tuning['shapes'])}"
    return f"{', '.join(settings)} ({gain}) on {tuning['processor']} with {tuning['cores']} cores"


def _verdict(parity: dict[str, Any] | None) -> str:
    if parity is None:
        return "left out"
    batches = len({row["batch"] for row in parity["rows"]})
    outcome = "passed" if parity["passed"] else "FAILED"
    return f"{outcome}, largest absolute error {float(parity['max_abs_error']):.2e} on {batches} batches"

"""A run on disk: `OUT/training/` holds its settings and checkpoints until the finished model takes its place."""

from __future__ import annotations

import json
import shutil
from dataclasses import fields
from pathlib import Path
from typing import Any

from adakron_export.checkpoints.checkpoint import ADAPTER_CONFIG, ADAPTER_WEIGHTS, UNFINISHED
from adakron_export.errors import TrainingError
from adakron_export.files.records import read_json
from adakron_export.files.staging import check_replaceable, check_writable, write_text
from adakron_export.tokenization.companions import companion_names
from adakron_export.training.recipe import MOVABLE, Recipe, make_recipe

RECORD = "training.json"
CURVES = "curves.png"
_SETTINGS = "run.json"
_STATE = "trainer_state.json"


def run_folder(output: Path) -> Path:
    """Where a run keeps its state."""
    return output / UNFINISHED


def check_startable(output: Path, *, overwrite: bool) -> None:
    """Raise where a new run must not begin.

    Raises:
        TrainingError: Something of ours is there and ``overwrite`` was not asked for, or something of others.
    """
    problem = check_replaceable(output, ours=written_files, overwrite=True)
    if problem:
        raise TrainingError(problem)
    check_writable(output)
    if overwrite or not output.exists() or not any(output.iterdir()):
        return
    if (run_folder(output) / _SETTINGS).is_file():
        raise TrainingError(
            f"{output} holds a run that has not finished; --resume goes on with it, --overwrite begins anew"
        )
    raise TrainingError(f"{output} holds a checkpoint; --overwrite replaces it when the new one is trained")


def written_files(folder: Path) -> list[str] | None:
    """What training writes, whole folders by their names; ``None`` for what is neither a run nor a checkpoint."""
    if not (folder / ADAPTER_CONFIG).is_file() and not run_folder(folder).is_dir():
        return None
    own = (ADAPTER_CONFIG, ADAPTER_WEIGHTS, "config.json", "README.md", CURVES, RECORD)
    return [*own, UNFINISHED, "tensorboard", *companion_names(folder)]


def start_run(output: Path, identity: dict[str, Any]) -> None:
    """Write down what a new run is; what an abandoned one left is removed."""
    folder = run_folder(output)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    write_text(folder / _SETTINGS, json.dumps(identity, indent=2) + "\n")


def read_run(output: Path) -> dict[str, Any]:
    """What a run that has not finished is.

    Raises:
        TrainingError: There is none.
    """
    file = run_folder(output) / _SETTINGS
    try:
        content = read_json(file)
    except FileNotFoundError as error:
        finished = (output / ADAPTER_CONFIG).is_file()
        what = "its training has finished" if finished else "no training was begun there"
        raise TrainingError(f"{output}: nothing to resume, {what}") from error
    except ValueError as error:
        raise TrainingError(f"{file}: damaged ({error}); --overwrite begins anew") from error
    if not isinstance(content, dict) or not isinstance(content.get("recipe"), dict):
        raise TrainingError(f"{file}: not the settings of a run; --overwrite begins anew")
    return content


def recipe_of_run(output: Path) -> Recipe:
    """The settings that a run was started with."""
    return make_recipe(read_run(output)["recipe"], source=str(run_folder(output) / _SETTINGS))


def check_same_recipe(output: Path, recipe: Recipe) -> None:
    """Raise where a setting differs from what the run was started with."""
    started = recipe_of_run(output)
    changed = [
        f"{row.name} {getattr(started, row.name)!r} -> {getattr(recipe, row.name)!r}"
        for row in fields(Recipe)
        if row.name not in MOVABLE and getattr(started, row.name) != getattr(recipe, row.name)
    ]
    if changed:
        raise TrainingError(
            f"{output}: a resumed run keeps its settings; changed: {', '.join(changed)}. Leave them out, or "
            "train anew into another folder"
        )


def check_same_run(output: Path, identity: dict[str, Any]) -> None:
    """Raise where data, backbone or number of processes are not those that the run was started with."""
    started = read_run(output)
    for name, text in (
        ("data", "the data has changed"),
        ("backbone", "the backbone is another one"),
        ("processes", "it was started with another number of processes"),
    ):
        if started.get(name) != identity[name] and not _same_backbone(started.get(name), identity[name]):
            raise TrainingError(
                f"{output}: cannot be resumed, {text} ({started.get(name)} -> {identity[name]}); restore it, or train "
                "anew into another folder"
            )


def _same_backbone(started: Any, found: Any) -> bool:
    """Its folder may have moved; its content not."""
    return isinstance(started, dict) and "sha256" in found and {**started, "name": None} == {**found, "name": None}


def last_checkpoint(output: Path, *, processes: int) -> Path | None:
    """The newest checkpoint that was written to its end; what an interrupted save left is passed over.

    The Trainer writes ``trainer_state.json`` last, and removes older checkpoints only after it.
    """
    folders = sorted(run_folder(output).glob("checkpoint-*"), key=_step_of, reverse=True)
    return next((folder for folder in folders if _is_whole(folder, processes)), None)


def remove_broken(output: Path, *, processes: int) -> None:
    """Remove what interrupted saves left."""
    for folder in run_folder(output).glob("checkpoint-*"):
        if not _is_whole(folder, processes):
            shutil.rmtree(folder)


def _step_of(folder: Path) -> int:
    number = folder.name.rpartition("-")[2]
    return int(number) if number.isdigit() else -1


def _is_whole(folder: Path, processes: int) -> bool:
    generators = ["rng_state.pth"] if processes == 1 else [f"rng_state_{rank}.pth" for rank in range(processes)]
    names = (ADAPTER_CONFIG, ADAPTER_WEIGHTS, "optimizer.pt", "scheduler.pt", *generators)
    if not all((folder / name).is_file() for name in names):
        return False
    try:
        return isinstance(read_json(folder / _STATE), dict)
    except (OSError, ValueError):
        return False

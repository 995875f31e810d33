"""Writes a model repository for Triton."""

from __future__ import annotations

import re
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from adakron_export.artifacts.artifact import check_artifact, opened_with
from adakron_export.artifacts.engine import is_engine, open_engine
from adakron_export.errors import RunnerError
from adakron_export.files.staging import check_replaceable, check_writable, put_in_place, staged_folder
from adakron_export.serving.settings import TritonSettings
from adakron_export.serving.triton import BACKENDS, model_names, write_models

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")


def triton(
    artifact: str | Path, output: str | Path, *, name: str | None = None, backend: str | None = None,
    overwrite: bool = False, settings: TritonSettings | None = None,
) -> list[str]:  # fmt: skip
    """Write a model repository for Triton, or add to one.

    With the backends ``onnxruntime`` and ``tensorrt``, ``NAME`` takes tensors, ``NAME_tokens`` makes them of text in
    Triton's Python backend, and ``NAME_from_text`` is the ensemble of both. With ``python``, ``NAME`` takes text and
    answers as `predict` does.

    Args:
        artifact: An exported folder, or an engine of TensorRT.
        output: The repository's folder; other models in it stay.
        name: What clients call the model; the folder's name by default.
        backend: What runs it: ``onnxruntime`` or, for an engine, ``tensorrt`` by default.
        overwrite: Replace models of these names.
        settings: How Triton runs it.

    Returns:
        The names of the models.

    Raises:
        ArtifactError: The artifact is damaged.
        EngineError: The engine is damaged.
        RunnerError: Triton cannot run it in this way, or the place holds something else.
    """
    settings, path, final = settings or TritonSettings(), Path(artifact), Path(output)
    name = name or path.resolve().name
    if not _NAME.fullmatch(name):
        raise RunnerError(f"{name!r} cannot be the name of a model in Triton; give another one with --name")
    engine = open_engine(path) if is_engine(path) else None
    exported = engine or opened_with(check_artifact(path), lambda found: found)
    backend = backend or ("tensorrt" if engine else "onnxruntime")
    if backend not in BACKENDS:
        raise RunnerError(f"backend is {backend!r}; choose one of {', '.join(BACKENDS)}")
    if final.resolve().is_relative_to(path.resolve()):
        raise RunnerError(f"{final} lies within {path}; choose another folder for the repository")
    check_writable(final)
    models = model_names(exported, name, backend)
    problems = {model: partial(_problem, final / model, overwrite=overwrite) for model in models}
    found = next((said for problem in problems.values() if (said := problem())), None)
    if found:
        raise RunnerError(found)
    with ExitStack() as stack:
        folders = {model: stack.enter_context(staged_folder(final / model)) for model in models}
        write_models(exported, folders, backend, settings)
        for model, folder in folders.items():
            put_in_place(folder, final / model, problem=problems[model])
    return models


def _problem(model: Path, *, overwrite: bool) -> str | None:
    """Why a model's folder must not be replaced."""

    def ours(folder: Path) -> list[str] | None:
        return ["1", "warmup", "config.pbtxt"] if (folder / "config.pbtxt").is_file() else None

    return check_replaceable(model, ours=ours, overwrite=overwrite)

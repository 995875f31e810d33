"""Turns a file of the reference implementation into a PEFT folder."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path

from adakron_export.errors import CheckpointError
from adakron_export.files.staging import check_replaceable, check_writable, put_in_place, staged_folder

_log = logging.getLogger(__name__)

_WEIGHTS = "adapter_model.safetensors"


def convert(
    checkpoint: str | Path,
    output: str | Path,
    *,
    backbone: str | Path,
    task: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Turn a file of the reference implementation into a folder that PEFT and this package load.

    Variant, r, k, number of experts and Kronecker order are read off the file's keys and shapes.

    Args:
        checkpoint: The file (``pytorch_model_expert_soup.bin``, ``model.500.pt``), or a folder with the former.
        output: The PEFT folder to write.
        backbone: Folder or hub id of the backbone it was trained on.
        task: What it was trained for; inferred by default.
        overwrite: Replace a checkpoint that is there.

    Returns:
        The folder.

    Raises:
        CheckpointError: The file cannot be read safely, or does not fit the backbone; or it is a PEFT folder.
        BackboneError: The backbone cannot be loaded.
    """
    folder = Path(output)
    replaceable = partial(check_replaceable, folder, ours=_written_files, overwrite=overwrite)
    problem = replaceable()
    if problem:
        raise CheckpointError(problem)
    check_writable(folder)
    _log.info("load the checkpoint and its backbone")
    from adakron_export.checkpoints.checkpoint import find_checkpoint
    from adakron_export.checkpoints.loading import load_model

    found = find_checkpoint(checkpoint, backbone)
    if not found.is_reference:
        raise CheckpointError(f"{checkpoint} is a PEFT checkpoint already; there is nothing to convert")
    model = load_model(found, task=task)
    _log.info("write the PEFT folder")
    with staged_folder(folder) as staged:
        model.save_pretrained(str(staged), save_embedding_layers=False)
        model.get_base_model().config.save_pretrained(str(staged))
        put_in_place(staged, folder, problem=replaceable)
    return folder


def _written_files(folder: Path) -> list[str] | None:
    """What `convert` and PEFT write into a checkpoint; ``None`` for what is none."""
    return ["adapter_config.json", _WEIGHTS, "config.json", "README.md"] if _is_checkpoint(folder) else None


def _is_checkpoint(folder: Path) -> bool:
    return (folder / "adapter_config.json").is_file()

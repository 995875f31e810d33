"""Finds a checkpoint, its kind and its backbone.

A checkpoint is a folder as PEFT's `save_pretrained` writes it, a transformers folder without an adapter, the hub id of
either, a file of the reference implementation, or a folder with such a file in it.
"""

from __future__ import annotations

from pathlib import Path

from adakron_export.checkpoints import hub
from adakron_export.checkpoints.checkpoint import ADAPTER_CONFIG, UNFINISHED, Checkpoint
from adakron_export.checkpoints.kinds import KINDS
from adakron_export.checkpoints.peft_folder import adapter_settings
from adakron_export.checkpoints.plain import MODEL_CONFIG
from adakron_export.checkpoints.reference import PARTIAL_NAME
from adakron_export.errors import CheckpointError


def find_checkpoint(checkpoint: str | Path, backbone: str | Path | None = None) -> Checkpoint:
    """Find a checkpoint and its backbone.

    Args:
        checkpoint: PEFT folder, transformers folder, reference file, a folder that holds one, or hub id.
        backbone: Folder or hub id; what the checkpoint names when left out.

    Raises:
        CheckpointError: There is none, its kind cannot be exported, or its backbone is not known.
        BackboneError: Its backbone is not there.
    """
    path = _place(checkpoint)
    named = None if backbone is None else str(backbone)
    settings = adapter_settings(path) if (path / ADAPTER_CONFIG).is_file() else None
    for kind in KINDS.values():
        if kind.recognises(path, settings):
            return kind.find(path, settings, named)
    if (path / UNFINISHED).is_dir():
        raise CheckpointError(
            f"{checkpoint}: its training has not finished; go on with `adakron-export train -o {checkpoint} --resume`"
        )
    raise CheckpointError(
        f"{checkpoint} holds neither {ADAPTER_CONFIG} (a PEFT checkpoint), {MODEL_CONFIG} with weights (a whole "
        f"model), nor {PARTIAL_NAME} (the reference implementation's); give the folder that save_pretrained wrote, or "
        "the .bin or .pt file itself"
    )


def _place(checkpoint: str | Path) -> Path:
    """The folder, or the file of the reference implementation."""
    path = Path(checkpoint)
    if path.is_file():
        return path
    if not path.is_dir():
        return hub.checkpoint_folder(str(checkpoint), error=CheckpointError)
    partial = path / PARTIAL_NAME
    return partial if partial.is_file() and not (path / ADAPTER_CONFIG).is_file() else path

"""Turns a checkpoint of another implementation into a PEFT folder."""

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
    backbone: str | Path | None = None,
    task: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Turn a checkpoint of another implementation into a folder that PEFT and this package load.

    Of the AdaKron reference implementation's files, variant, r, k, number of experts and Kronecker order are read off
    the keys and shapes. AdapterHub's folders become bottlenecks of this package's own method, `BottleneckConfig`.

    Args:
        checkpoint: The reference implementation's file (``pytorch_model_expert_soup.bin``, ``model.500.pt``), a folder
            with the former, or a folder as AdapterHub's `save_adapter` writes it.
        output: The PEFT folder to write.
        backbone: Folder or hub id of the backbone it was trained on; what an AdapterHub folder names when left out.
        task: What it was trained for; inferred by default.
        overwrite: Replace a checkpoint that is there.

    Returns:
        The folder.

    Raises:
        CheckpointError: The checkpoint cannot be read safely, or does not fit the backbone; or it is a PEFT folder.
        BackboneError: The backbone cannot be loaded.
    """
    folder = Path(output)
    replaceable = partial(check_replaceable, folder, ours=_written_files, overwrite=overwrite)
    problem = replaceable()
    if problem:
        raise CheckpointError(problem)
    check_writable(folder)
    _log.info("load the checkpoint and its backbone")
    from adakron_export.checkpoints.finding import find_checkpoint
    from adakron_export.checkpoints.kinds import KINDS
    from adakron_export.checkpoints.loading import load_checkpoint

    found = find_checkpoint(checkpoint, backbone)
    if found.kind == "adapterhub-setup":
        raise CheckpointError(
            f"{checkpoint} has several adapters at once, which no PEFT folder holds; export it as it is"
        )
    if found.kind not in ("adakron-reference", "adapterhub"):
        raise CheckpointError(f"{checkpoint} is a {KINDS[found.kind].title} already; there is nothing to convert")
    model = load_checkpoint(found, task=task).peft_model
    _log.info("write the PEFT folder")
    with staged_folder(folder) as staged:
        model.save_pretrained(str(staged), save_embedding_layers=False)
        base = model.get_base_model()
        base.config.architectures = [type(base).__name__]
        base.config.save_pretrained(str(staged))
        put_in_place(staged, folder, problem=replaceable)
    return folder


def _written_files(folder: Path) -> list[str] | None:
    """What `convert` and PEFT write into a checkpoint; ``None`` for what is none."""
    return ["adapter_config.json", _WEIGHTS, "config.json", "README.md"] if _is_checkpoint(folder) else None


def _is_checkpoint(folder: Path) -> bool:
    return (folder / "adapter_config.json").is_file()

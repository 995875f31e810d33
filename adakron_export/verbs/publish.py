"""Puts a checkpoint or an artifact on the hub, as it lies in its folder."""

from __future__ import annotations

import logging
from pathlib import Path

from adakron_export.artifacts.artifact import is_artifact, open_artifact
from adakron_export.errors import CheckpointError, told_as
from adakron_export.extras import require

_log = logging.getLogger(__name__)

_CHECKPOINT = "adapter_config.json"


def push_to_hub(
    folder: str | Path,
    repository: str,
    *,
    private: bool = False,
    token: str | None = None,
) -> str:
    """Upload a folder; its ``README.md`` is the model card there.

    Args:
        folder: A checkpoint that was trained or converted, or an artifact.
        repository: The hub id, such as ``somebody/reviews``; it is made where it is not there.
        private: Make it private.
        token: Token of the hub; what `hf auth login` stored by default.

    Returns:
        The address of what was uploaded.

    Raises:
        ArtifactError: The artifact is damaged.
        CheckpointError: The folder is neither, or the hub refuses it.
    """
    path = Path(folder)
    if is_artifact(path):
        open_artifact(path)
    elif not (path / _CHECKPOINT).is_file():
        raise CheckpointError(
            f"{path} is neither a checkpoint ({_CHECKPOINT}) nor an artifact; there is nothing to push"
        )
    hub = require("huggingface_hub", extra="export")
    _log.info("push %s to %s", path, repository)
    with told_as(CheckpointError, f"{path} cannot be pushed to {repository}"):
        api = hub.HfApi(token=token)
        name = api.create_repo(repository, private=private, exist_ok=True).repo_id
        message = f"Upload {path.resolve().name} with adakron-export"
        return str(api.upload_folder(repo_id=name, folder_path=path, commit_message=message))

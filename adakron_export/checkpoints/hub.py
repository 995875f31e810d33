"""Folders from the hub: downloaded once, or read from its cache where there is no network."""

from __future__ import annotations

from pathlib import Path

from adakron_export.errors import AdaKronError

_METADATA = ("*.json", "*.txt", "*.model", "*.jinja", "*.codes")
_ADAPTERHUB = ("adapter.safetensors", "pytorch_adapter.bin", "model_head.safetensors", "pytorch_model_head.bin")
_ADAPTER = (*_METADATA, *_ADAPTERHUB, "adapter_*")
_SENTENCE = ("*_Dense/*", "*_LayerNorm/*")  # modules of sentence-transformers behind the backbone
_BACKBONE = (*_METADATA, *_SENTENCE, "model*.safetensors")
_OLD_BACKBONE = (*_METADATA, *_SENTENCE, "pytorch_model*.bin")


def checkpoint_folder(name: str, *, error: type[AdaKronError]) -> Path:
    """The folder of a checkpoint on the hub, with an adapter or a whole model; errors as of `backbone_folder`."""
    folder = _snapshot(name, _ADAPTER, None, error)
    return folder if list(folder.glob("adapter_*")) else backbone_folder(name, None, error=error)


def backbone_folder(name: str, revision: str | None, *, error: type[AdaKronError]) -> Path:
    """The folder of a backbone on the hub, with its safetensors, or where it has none its .bin files.

    Args:
        name: The hub id, such as ``google-bert/bert-base-uncased``.
        revision: Branch, tag or commit.
        error: What to raise where it cannot be had.
    """
    folder = _snapshot(name, _BACKBONE, revision, error)
    return folder if list(folder.glob("model*.safetensors")) else _snapshot(name, _OLD_BACKBONE, revision, error)


def check_dataset(name: str, *, error: type[AdaKronError]) -> None:
    """Raise at once where a data set cannot be had; `datasets` alone tries for half a minute.

    Its card is what is asked for, and is kept, so that a data set that was read once is found without network.
    """
    _snapshot(name, ("README.md",), None, error, repo_type="dataset")


def _snapshot(
    name: str,
    patterns: tuple[str, ...],
    revision: str | None,
    error: type[AdaKronError],
    *,
    repo_type: str | None = None,
) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    reasons: dict[type[Exception], str] = {
        HFValidationError: "no such file or folder",
        GatedRepoError: "this hub repository is gated; accept its terms on its page and run `hf auth login`",
        RepositoryNotFoundError: "no such folder, and no such hub repository; for a private one run `hf auth login`",
        RevisionNotFoundError: f"this hub repository has no revision {revision!r}",
        LocalEntryNotFoundError: (
            "no such folder, and the hub cannot be reached and has not been cached here; check the path or the network"
        ),
        OSError: "no such folder, and it cannot be read from the hub",
    }
    try:
        return Path(snapshot_download(name, repo_type=repo_type, allow_patterns=list(patterns), revision=revision))
    except tuple(reasons) as found:
        reason = next(text for kind, text in reasons.items() if isinstance(found, kind))
        raise error(f"{name}: {reason}") from found

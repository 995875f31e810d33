"""What a checkpoint is: where it lies, of which kind it is, and the backbone that it goes with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
UNFINISHED = "training"  # the folder of a run that goes on; it is gone when the checkpoint is there


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint that was found, and the backbone it goes with.

    Attributes:
        path: Its folder, or the reference implementation's file.
        weights: The file that holds the adapter's tensors; without an adapter, the first of the model's.
        backbone: Folder or hub id, as it was named.
        backbone_folder: Where that is on this machine.
        kind: Name of its row in `adakron_export.checkpoints.kinds.KINDS`.
    """

    path: Path
    weights: Path
    backbone: str
    backbone_folder: Path
    kind: str

    @property
    def folder(self) -> Path:
        """Where a tokenizer or a configuration would stand beside the adapter."""
        return self.path.parent if self.path.is_file() else self.path

"""The head of an AdapterHub checkpoint: the library's own, one of transformers, or none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any

import msgspec
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from adakron_export.checkpoints.backbone import load_backbone, load_headed
from adakron_export.checkpoints.checkpoint import Checkpoint
from adakron_export.checkpoints.flexible_head import HEAD, HEAD_MODULE, head_settings
from adakron_export.checkpoints.peft_folder import read_safetensors
from adakron_export.checkpoints.reference import read_pickled
from adakron_export.errors import CheckpointError, first_few
from adakron_export.files.records import read_object, record_of
from adakron_export.tasks import Task, infer_task, task_of_architecture

HEAD_CONFIG = "head_config.json"
HEAD_WEIGHTS = ("model_head.safetensors", "pytorch_model_head.bin")


def first_there(path: Path, names: tuple[str, ...]) -> Path | None:
    """The first of some files that is in a folder."""
    return next((path / name for name in names if (path / name).is_file()), None)


def read_tensors(file: Path) -> dict[str, Tensor]:
    """The tensors of a file, in float32."""
    tensors = read_safetensors(file) if file.suffix == ".safetensors" else read_pickled(file)
    return {name: tensor.float() for name, tensor in tensors.items()}


@dataclass(frozen=True, slots=True)
class _HeadFile:
    """What is read of ``head_config.json``."""

    config: dict[str, Any] | None = None
    model_class: str = ""
    name: str | None = None
    num_labels: Annotated[int, msgspec.Meta(gt=0, le=100_000)] | None = None
    label2id: dict[str, int] | None = None


@dataclass(frozen=True, slots=True)
class AdapterHubHead:
    """The head of a checkpoint: AdapterHub's own, one of transformers, or none.

    Attributes:
        settings: A flexible head's settings; ``None`` for any other.
        task: What it is for; ``None`` where there is none.
        tensors: Its weights, by the names that they have in the model.
        num_labels: How many outputs it has, where that is said.
        label2id: What they are called, where that is said.
    """

    settings: dict[str, Any] | None = None
    task: Task | None = None
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    num_labels: int | None = None
    label2id: Mapping[str, int] | None = None

    @classmethod
    def read(cls, folder: Path, name: str) -> AdapterHubHead:
        """Read it, if a folder has one.

        Args:
            folder: The folder.
            name: What the head is called, where its file does not say.

        Raises:
            CheckpointError: The head cannot be read, or is of a kind that is not exported.
        """
        file, weights = folder / HEAD_CONFIG, first_there(folder, HEAD_WEIGHTS)
        if weights is None:
            return cls()
        if not file.is_file():
            raise CheckpointError(f"{folder}: {weights.name} has no {HEAD_CONFIG} beside it")
        try:
            content, known = read_object(file), {row.name for row in fields(_HeadFile)}
            found = record_of({key: value for key, value in content.items() if key in known}, _HeadFile)
        except ValueError as error:
            raise CheckpointError(f"{file}: not readable ({error})") from error
        tensors = read_tensors(weights)
        if not found.config:
            task = task_of_architecture(found.model_class)
            return cls(None, task, tensors, found.num_labels, found.label2id)
        settings = head_settings(found.config, str(file))
        prefix = f"heads.{found.name or name}."
        foreign = [key for key in tensors if not key.startswith(prefix)]
        if foreign:
            raise CheckpointError(f"{weights}: {first_few(foreign)} is not of the head {prefix[6:-1]!r}")
        named = {f"{HEAD_MODULE}.{key.removeprefix(prefix)}": tensor for key, tensor in tensors.items()}
        return cls(found.config, settings.task, named, settings.num_labels, settings.label2id)

    @property
    def modules(self) -> list[str]:
        """The modules that it is made of."""
        return sorted({name.partition(".")[0] for name in self.tensors})

    def model(
        self, checkpoint: Checkpoint, config: PretrainedConfig, task: Task | None
    ) -> tuple[PreTrainedModel, set[str]]:
        """The backbone with a head of this form, and the parameters that its files do not have."""
        self._set_labels(config)
        wanted = task or self.task or infer_task(config)
        if self.settings is None or wanted is not self.task:
            if self.settings is not None:
                raise CheckpointError(f"{checkpoint.path}: its head is for {self.task}; leave --task out")
            return load_backbone(checkpoint.backbone, checkpoint.backbone_folder, config, wanted)
        setattr(config, HEAD, self.settings)
        return load_headed(checkpoint, config, wanted)

    def _set_labels(self, config: PretrainedConfig) -> None:
        if self.num_labels is not None and self.task is not Task.QUESTION_ANSWERING:
            config.num_labels = self.num_labels
        if self.label2id:
            config.label2id = dict(self.label2id)
            config.id2label = {index: label for label, index in self.label2id.items()}
        if self.settings is not None and "multilabel" in str(self.settings["head_type"]):
            config.problem_type = "multi_label_classification"

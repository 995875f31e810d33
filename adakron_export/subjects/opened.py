"""What was opened: an artifact, an engine or a checkpoint, each with its runner, its input space and its folders."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adakron_export.artifacts.adapters import (
    AdapterRecord,
    adapter_folder,
    read_adapter,
    read_record,
)
from adakron_export.artifacts.artifact import Artifact
from adakron_export.artifacts.engine import EngineFolder
from adakron_export.artifacts.manifest import SourceFile
from adakron_export.graph.layout import BankLayout
from adakron_export.graph.stacks import own_rows, rows_of
from adakron_export.subjects.space import exported_space, labels_of, model_space, read_config
from adakron_export.subjects.subject import Subject
from adakron_export.tasks import Task
from adakron_export.tokenization.companions import tokenizer_source

if TYPE_CHECKING:
    import onnx_ir as ir

    from adakron_export.checkpoints.checkpoint import Checkpoint
    from adakron_export.checkpoints.kinds import Loaded
    from adakron_export.checkpoints.task_model import TaskModel
    from adakron_export.runtimes.base import Array, ArtifactRunner, Runner
    from adakron_export.runtimes.eager import EagerRunner
    from adakron_export.runtimes.space import InputSpace


class Opened:
    """A subject that was opened.

    Attributes:
        subject: What was named.
        runner: What computes.
    """

    runner: Runner

    def __init__(self, subject: Subject, runner: Runner) -> None:
        self.subject = subject
        self.runner = runner

    @cached_property
    def space(self) -> InputSpace:
        """What it accepts."""
        raise NotImplementedError

    @property
    def task(self) -> Task:
        """What it is for."""
        raise NotImplementedError

    @property
    def config(self) -> Mapping[str, Any]:
        """Its configuration."""
        raise NotImplementedError

    @property
    def folders(self) -> tuple[Path, ...]:
        """Where its tokenizer and settings are: the first that has a file counts."""
        raise NotImplementedError


class _OpenedFolder(Opened):
    """An exported folder that was opened: its manifest and its configuration say what it is."""

    def __init__(self, subject: Subject, runner: Runner, exported: Artifact | EngineFolder) -> None:
        super().__init__(subject, runner)
        self._exported = exported

    @cached_property
    def space(self) -> InputSpace:
        """What it accepts, within an engine's shapes."""
        return exported_space(self._exported)

    @property
    def task(self) -> Task:
        """What its manifest says."""
        return Task(self._exported.manifest.task)

    @property
    def config(self) -> Mapping[str, Any]:
        """Its ``config.json``, with the labels of a bank's adapter."""
        return {**read_config(self._exported), **self.own_labels}

    @cached_property
    def _record(self) -> AdapterRecord | None:
        name = self.subject.adapter
        return None if name is None else read_record(adapter_folder(self._exported.folder, name))

    @property
    def own_labels(self) -> Mapping[str, Any]:
        """What the adapter of a bank says of labels; empty for anything else."""
        return labels_of(self._record) if self._record is not None else {}

    @property
    def folders(self) -> tuple[Path, ...]:
        """Itself."""
        return (self._exported.folder,)


class OpenedArtifact(_OpenedFolder):
    """An artifact that was opened."""

    runner: ArtifactRunner

    def __init__(self, subject: Subject, runner: ArtifactRunner, artifact: Artifact) -> None:
        super().__init__(subject, runner, artifact)
        self.artifact = artifact

    @property
    def adapter_source(self) -> SourceFile:
        """The checkpoint's file that its adapter was made of."""
        return self._record.source if self._record is not None else self.artifact.manifest.adapter_source

    def graph(self) -> ir.Model:
        """Its graph; of a bank the one of its adapter, as a model of one."""
        import onnx_ir as ir  # noqa: F811, RUF100

        graph, bank, name = ir.load(self.artifact.model), self.artifact.manifest.bank, self.subject.adapter
        if bank is None or name is None:
            return graph
        from adakron_export.graph.passes.bank import OneAdapterPass, rows_in

        stored = read_adapter(adapter_folder(self.artifact.folder, name))
        rows = stored.rows if bank.places is None else rows_in(graph, bank.layout, bank.adapters[name])
        return OneAdapterPass(bank.layout, own_rows(bank.layout, rows, stored.record.classes))(graph).model

    def foreign_default(self) -> str | None:
        """The stack in which the graph of a bank has other numbers than its first adapter; ``None`` where it has none.

        Programs that know nothing of banks run with these.
        """
        bank = self.artifact.manifest.bank
        if bank is None:
            return None
        import onnx_ir as ir  # noqa: F811, RUF100

        from adakron_export.graph.passes.bank import rows_in

        place = 0 if bank.places is None else bank.first_id
        own = rows_in(ir.load(self.artifact.model), bank.layout, place)
        first = read_adapter(adapter_folder(self.artifact.folder, bank.first)).rows
        return next((name for name, row in own.items() if not (row == first[name]).all()), None)


class OpenedEngine(_OpenedFolder):
    """An engine that was opened."""

    runner: ArtifactRunner

    def __init__(self, subject: Subject, runner: ArtifactRunner, engine: EngineFolder) -> None:
        super().__init__(subject, runner, engine)
        self.engine = engine


class OpenedCheckpoint(Opened):
    """A checkpoint that was loaded.

    Attributes:
        loaded: The checkpoint and its model, which can be folded; ``None`` for a model that was handed over.
    """

    runner: EagerRunner

    def __init__(self, subject: Subject, runner: EagerRunner, *, loaded: Loaded | None = None) -> None:
        super().__init__(subject, runner)
        self.loaded = loaded

    @property
    def checkpoint(self) -> Checkpoint | None:
        """Where it is; ``None`` for a model that was handed over."""
        return self.loaded.checkpoint if self.loaded is not None else None

    @property
    def eager(self) -> TaskModel:
        """The unfolded model."""
        return self.runner.model

    @cached_property
    def space(self) -> InputSpace:
        """What the model accepts."""
        return model_space(self.eager, tokenizer_folder(self.checkpoint) if self.checkpoint else None)

    @property
    def task(self) -> Task:
        """What the model is for."""
        return self.eager.task

    @property
    def config(self) -> Mapping[str, Any]:
        """The model's configuration, defaults included."""
        config: dict[str, Any] = self.eager.config.to_dict()
        return config

    @property
    def folders(self) -> tuple[Path, ...]:
        """The adapter's, and the backbone's."""
        return (self.checkpoint.folder, self.checkpoint.backbone_folder) if self.checkpoint else ()

    def folded(self, layout: BankLayout | None = None) -> TaskModel | None:
        """The model with its adapters folded, as by `fold`, or with an adapter of zeros at each place of a bank.

        ``None`` for one that was handed over.
        """
        if self.loaded is None:
            return None
        from adakron_export.checkpoints.task_model import TaskModel
        from adakron_export.graph.banking import with_places

        module = self.loaded.fold() if layout is None else with_places(self.loaded.peft_model, layout)
        return TaskModel(module, self.eager.task, pooling=self.eager.pooling)


def parameters_of(folded: TaskModel) -> dict[str, Array]:
    """The numbers that a folded model computes with, by the names that a graph has them by, in fp32."""
    seen: set[int] = set()
    found = {}
    for name, tensor in folded.state_dict().items():
        if tensor.is_floating_point() and tensor.data_ptr() not in seen:
            seen.add(tensor.data_ptr())
            found[name.removeprefix("model.")] = tensor.detach().float().cpu().numpy()
    return found


def bank_rows_of(opened: OpenedCheckpoint, layout: BankLayout) -> dict[str, Array]:
    """What a bank's graph takes of a checkpoint, without the labels that the checkpoint does not have."""
    from adakron_export.graph.banking import bank_weights

    assert opened.loaded is not None
    rows = rows_of(layout, bank_weights(opened.loaded.model))
    return own_rows(layout, rows, opened.eager.config.num_labels)


def bank_parameters_of(opened: OpenedCheckpoint, layout: BankLayout) -> dict[str, Array]:
    """The numbers that a bank's graph computes with for a checkpoint, by the names that the graph has them by."""
    folded = opened.folded(layout)
    assert folded is not None
    own = {place.module for place in layout.places} | {head.module for head in layout.heads}
    shared = {name: array for name, array in parameters_of(folded).items() if name.rpartition(".")[0] not in own}
    rows = bank_rows_of(opened, layout)
    return {**shared, **{name: row[None].astype("float32") for name, row in rows.items()}}


def tokenizer_folder(found: Checkpoint) -> Path:
    """Where a checkpoint's tokenizer is: beside the adapter, or with the backbone, as the artifact gets it."""
    return tokenizer_source((found.folder, found.backbone_folder)) or found.backbone_folder

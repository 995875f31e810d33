"""The one opener of whatever can run: an artifact, an engine or a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from enum import Enum
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adakron_export.artifacts.adapters import (
    AdapterRecord,
    adapter_folder,
    read_adapter,
    read_adapters,
    read_record,
)
from adakron_export.artifacts.artifact import Artifact, is_artifact, open_artifact, opened_with
from adakron_export.artifacts.engine import EngineFolder, is_engine, open_engine
from adakron_export.artifacts.manifest import Bank, SourceFile, Tuning
from adakron_export.errors import ArtifactError, RunnerError, first_few
from adakron_export.graph.layout import BankLayout
from adakron_export.graph.stacks import own_rows, rows_of
from adakron_export.runtimes.bank import BankRunner
from adakron_export.runtimes.graph_file import check_graph_file
from adakron_export.runtimes.table import runtime_on
from adakron_export.runtimes.tensorrt import TensorRTRunner
from adakron_export.subjects.space import exported_space, labels_of, model_space, read_config
from adakron_export.subjects.subject import Subject
from adakron_export.tasks import Task
from adakron_export.tokenization.companions import tokenizer_source

if TYPE_CHECKING:
    import onnx_ir as ir
    from peft import PeftModel

    from adakron_export.checkpoints.checkpoint import Checkpoint
    from adakron_export.checkpoints.task_model import TaskModel
    from adakron_export.runtimes.base import Array, ArtifactRunner, HoldingRunner, Runner
    from adakron_export.runtimes.eager import EagerRunner
    from adakron_export.runtimes.space import InputSpace


class Purpose(Enum):
    """What a subject is opened for."""

    RUN = "run"  # as fast as it goes
    COMPARE = "compare"  # half precision that would be computed in fp32 is emulated
    TIME = "time"  # launches on a GPU are recorded and replayed


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
        checkpoint: Where it is; ``None`` for a model that was handed over.
        eager: The unfolded model.
        peft_model: PEFT's form of the same model, which can be folded.
    """

    runner: EagerRunner

    def __init__(
        self, subject: Subject, runner: EagerRunner, *, checkpoint: Checkpoint | None = None,
        peft_model: PeftModel | None = None,
    ) -> None:  # fmt: skip
        super().__init__(subject, runner)
        self.checkpoint = checkpoint
        self.peft_model = peft_model

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

    def folded(self, *, biases: bool = True) -> TaskModel | None:
        """The model with its adapters folded, as by `fold`; ``None`` for one that was handed over."""
        if self.peft_model is None:
            return None
        from adakron_export.adapter.folding import fold
        from adakron_export.checkpoints.task_model import TaskModel

        return TaskModel(fold(self.peft_model, biases=biases), self.eager.task, pooling=self.eager.pooling)


def open_subject(subject: Subject, purpose: Purpose = Purpose.RUN) -> Opened:
    """Open an artifact in its runtime, an engine in TensorRT, or a checkpoint in eager PyTorch.

    Args:
        subject: What to open; its device is never replaced by another one.
        purpose: What for.

    Raises:
        ArtifactError: The artifact is damaged.
        EngineError: The engine is damaged, or does not belong to this machine.
        RunnerError: The device is not available.
        CheckpointError: The checkpoint cannot be read.
    """
    path = Path(subject.path)
    _refuse_useless(subject)
    if is_engine(path):
        engine = open_engine(path, allow_code=subject.allow_engine_code)
        return _open_engine(subject, engine, purpose)
    if path.is_dir() and is_artifact(path):
        runtime_on(subject.device)
        return opened_with(
            path, lambda artifact: _open_artifact(subject, artifact, purpose), skip_damaged=subject.skip_damaged
        )
    return _open_checkpoint(subject)


def _open_engine(subject: Subject, engine: EngineFolder, purpose: Purpose) -> OpenedEngine:
    inner = TensorRTRunner(engine, record_launches=purpose is Purpose.TIME)
    bank = engine.manifest.bank
    if bank is None:
        return OpenedEngine(subject, inner, engine)
    _check_adapter(subject, bank, purpose)
    runner = BankRunner(inner, read_adapters(engine.folder, bank))
    return OpenedEngine(subject, runner if subject.adapter is None else runner.adapter(subject.adapter), engine)


def _check_adapter(subject: Subject, bank: Bank, purpose: Purpose) -> None:
    """Raise where a bank is to be compared or timed, and nobody says as which of its adapters."""
    if subject.adapter is None and purpose is not Purpose.RUN:
        raise RunnerError(f"{subject.path} is a bank; name one of its adapters: {first_few(bank.adapters, 8)}")


def _refuse_useless(subject: Subject) -> None:
    """Refuse what would have no effect: it was handed over to have one.

    Raises:
        RunnerError: A setting of checkpoints is for an exported folder, or threads for an engine.
    """
    given = {"backbone": subject.backbone, "task": subject.task, "precision": subject.precision}
    useless = [name for name, value in given.items() if value not in (None, "fp32")]
    if subject.is_exported and useless:
        raise RunnerError(f"{subject.path} is exported, and {useless[0]} is for checkpoints; leave it out")
    if subject.adapter is not None and not is_bank(Path(subject.path)):
        raise RunnerError(f"{subject.path} is no bank, which an adapter is to be chosen from; leave it out")
    if subject.skip_damaged and (is_engine(Path(subject.path)) or not is_bank(Path(subject.path))):
        raise RunnerError(f"{subject.path} is no bank of an artifact, which skip_damaged is for; leave it out")
    if subject.threads is not None and is_engine(Path(subject.path)):
        raise RunnerError(f"{subject.path} is an engine, and threads are for CPUs; leave them out")


def _open_artifact(subject: Subject, artifact: Artifact, purpose: Purpose) -> OpenedArtifact:
    if subject.tuning is not None:
        artifact = replace(artifact, manifest=replace(artifact.manifest, tuning=Tuning(**subject.tuning)))
    runner = open_artifact_on(artifact, subject.device, purpose=purpose, threads=subject.threads)
    if artifact.manifest.bank is not None:
        _check_adapter(subject, artifact.manifest.bank, purpose)
    if subject.adapter is not None:
        assert isinstance(runner, BankRunner)
        runner = runner.adapter(subject.adapter)
    opened = OpenedArtifact(subject, runner, artifact)
    if purpose is not Purpose.RUN:
        _ = opened.space  # read while the files are known to be of this export
    return opened


def open_artifact_on(
    artifact: Artifact, device: str, *, purpose: Purpose = Purpose.RUN, threads: int | None = None
) -> ArtifactRunner:
    """Open an artifact with the runtime of a device; errors as of `open_subject`.

    For a comparison, half precision on the CPU is emulated operator by operator (`emulate`): ONNX Runtime has no bf16
    there, and computes fp16 in fp32 where it has no kernel, which would hide an overflow.
    """
    runtime = runtime_on(device)
    check_graph_file(artifact)
    emulated = purpose is Purpose.COMPARE and runtime.emulated and artifact.manifest.computes_in_half
    if emulated:
        runner = _emulated(artifact)
    else:
        runner = runtime.open(artifact, threads=threads, record_launches=purpose is Purpose.TIME)
    bank = artifact.manifest.bank
    return runner if bank is None else BankRunner(runner, read_adapters(artifact.folder, bank))


def _emulated(artifact: Artifact) -> HoldingRunner:
    import onnx_ir as ir

    from adakron_export.graph.emulation import emulate
    from adakron_export.probing.watching import graph_runner

    runner = graph_runner(emulate(ir.load(artifact.model)), artifact.manifest.in_fp32())
    runner.name = f"onnxruntime CPUExecutionProvider, emulated {artifact.manifest.spec.dtype}"
    return runner


def _open_checkpoint(subject: Subject) -> OpenedCheckpoint:
    from adakron_export.checkpoints.checkpoint import find_checkpoint
    from adakron_export.checkpoints.loading import load_model, task_model_of

    if subject.threads is not None:
        import torch

        torch.set_num_threads(subject.threads)
    found = find_checkpoint(subject.path, subject.backbone)
    model = load_model(found, task=subject.task)
    eager = task_model_of(found, model)
    if subject.precision == "fp64":
        eager = eager.double()
    return open_model(eager, subject, checkpoint=found, peft_model=model)


def open_model(
    eager: TaskModel, subject: Subject, *, checkpoint: Checkpoint | None = None, peft_model: PeftModel | None = None
) -> OpenedCheckpoint:
    """A loaded model in eager PyTorch."""
    from adakron_export.runtimes.eager import EagerRunner

    runner = EagerRunner(eager, device=subject.device)
    return OpenedCheckpoint(subject, runner, checkpoint=checkpoint, peft_model=peft_model)


def open_runner(
    path: str | Path, *, device: str = "cpu", threads: int | None = None, backbone: str | Path | None = None,
    adapter: str | None = None, allow_engine_code: bool = False, skip_damaged: bool = False,
) -> Runner:  # fmt: skip
    """Open an artifact in its runtime, an engine in TensorRT, or a checkpoint in eager PyTorch.

    Args:
        path: An artifact (needs no torch), an engine, whose plan is code that must be trusted, or a checkpoint as for
            `load_model`.
        device: Where an artifact runs, such as ``cpu``, ``openvino`` or ``cuda``; never replaced by another one. An
            engine runs on its GPU.
        threads: Threads per operator; the runtime's choice by default.
        backbone: The checkpoint's backbone, where it names none.
        adapter: The adapter of a bank that answers; without, each call names its own.
        allow_engine_code: Let host code run that an engine may bring along.
        skip_damaged: Leave out adapters of a bank whose files are damaged.

    Returns:
        A runner; of a bank without ``adapter`` what `open_bank` opens.

    Raises:
        ArtifactError: The artifact is damaged.
        EngineError: The engine is damaged, or does not belong to this machine.
        RunnerError: The device is not available.
        CheckpointError: The checkpoint cannot be read.
    """
    subject = Subject(
        path, backbone, device=device, threads=threads, allow_engine_code=allow_engine_code, adapter=adapter,
        skip_damaged=skip_damaged,
    )  # fmt: skip
    return open_subject(subject).runner


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
    from adakron_export.adapter.folding import adapter_tensors

    model = opened.peft_model
    assert model is not None
    tensors = {name: tensor.numpy() for name, tensor in adapter_tensors(model).items()}
    settings = model.active_peft_config
    rows = rows_of(layout, tensors, order=settings.kron_order, activation=settings.activation)
    return own_rows(layout, rows, opened.eager.config.num_labels)


def bank_parameters_of(opened: OpenedCheckpoint, layout: BankLayout) -> dict[str, Array]:
    """The numbers that a bank's graph computes with for a checkpoint, by the names that the graph has them by."""
    folded = opened.folded(biases=False)
    assert folded is not None
    own = {place.module for place in layout.places} | {head.module for head in layout.heads}
    shared = {name: array for name, array in parameters_of(folded).items() if name.rpartition(".")[0] not in own}
    rows = bank_rows_of(opened, layout)
    return {**shared, **{name: row[None].astype("float32") for name, row in rows.items()}}


def tokenizer_folder(found: Checkpoint) -> Path:
    """Where a checkpoint's tokenizer is: beside the adapter, or with the backbone, as the artifact gets it."""
    return tokenizer_source((found.folder, found.backbone_folder)) or found.backbone_folder


def open_bank(
    path: str | Path, *, device: str = "cpu", threads: int | None = None, skip_damaged: bool = False,
    allow_engine_code: bool = False,
) -> BankRunner:  # fmt: skip
    """Open a bank, so that each call names the adapters that answer; arguments and errors as of `open_runner`.

    Raises:
        ArtifactError: The folder is no bank.
    """
    runner = open_runner(
        path, device=device, threads=threads, skip_damaged=skip_damaged, allow_engine_code=allow_engine_code
    )
    if not isinstance(runner, BankRunner):
        raise ArtifactError(f"{path} is no bank; make one with `adakron-export bank create`")
    return runner


def is_bank(path: Path) -> bool:
    """Whether an exported folder has many adapters."""
    if is_engine(path):
        return open_engine(path).manifest.bank is not None
    return path.is_dir() and is_artifact(path) and open_artifact(path, wait=False).manifest.bank is not None


def task_of_exported(path: str | Path) -> str | None:
    """The task of an artifact or an engine; ``None`` for what is neither."""
    if is_engine(Path(path)):
        return open_engine(path).manifest.task
    return open_artifact(path).manifest.task if is_artifact(Path(path)) else None

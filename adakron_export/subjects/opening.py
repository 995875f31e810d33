"""The one opener of whatever can run: an artifact, an engine or a checkpoint."""

from __future__ import annotations

from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

from adakron_export.artifacts.adapters import (
    read_adapters,
)
from adakron_export.artifacts.artifact import Artifact, is_artifact, open_artifact, opened_with
from adakron_export.artifacts.engine import EngineFolder, is_engine, open_engine
from adakron_export.artifacts.manifest import Bank, Tuning
from adakron_export.errors import ArtifactError, RunnerError, first_few
from adakron_export.runtimes.bank import BankRunner
from adakron_export.runtimes.graph_file import check_graph_file
from adakron_export.runtimes.table import runtime_on
from adakron_export.runtimes.tensorrt import TensorRTRunner
from adakron_export.subjects.opened import Opened, OpenedArtifact, OpenedCheckpoint, OpenedEngine
from adakron_export.subjects.subject import Subject

if TYPE_CHECKING:
    from adakron_export.checkpoints.kinds import Loaded
    from adakron_export.checkpoints.task_model import TaskModel
    from adakron_export.runtimes.base import ArtifactRunner, HoldingRunner, Runner


class Purpose(Enum):
    """What a subject is opened for."""

    RUN = "run"  # as fast as it goes
    COMPARE = "compare"  # half precision that would be computed in fp32 is emulated
    TIME = "time"  # launches on a GPU are recorded and replayed


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
    from adakron_export.checkpoints.finding import find_checkpoint
    from adakron_export.checkpoints.loading import load_checkpoint, task_model_of

    if subject.threads is not None:
        import torch

        torch.set_num_threads(subject.threads)
    loaded = load_checkpoint(find_checkpoint(subject.path, subject.backbone), task=subject.task)
    eager = task_model_of(loaded)
    if subject.precision == "fp64":
        eager = eager.double()
    return open_model(eager, subject, loaded=loaded)


def open_model(eager: TaskModel, subject: Subject, *, loaded: Loaded | None = None) -> OpenedCheckpoint:
    """A loaded model in eager PyTorch."""
    from adakron_export.runtimes.eager import EagerRunner

    runner = EagerRunner(eager, device=subject.device)
    return OpenedCheckpoint(subject, runner, loaded=loaded)


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

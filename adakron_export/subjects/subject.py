"""Anything that can be run, named. Reading this costs nothing: the command line's options are made from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from adakron_export.artifacts.artifact import is_artifact
from adakron_export.artifacts.engine import is_engine
from adakron_export.errors import RunnerError
from adakron_export.options.fields import check_record, option
from adakron_export.runtimes.table import RUNTIMES
from adakron_export.tasks import SYNONYMS, Task, task_named

PRECISIONS = ("fp32", "fp64")


@dataclass(frozen=True, slots=True)
class Subject:
    """Anything that can be run.

    Attributes:
        path: An artifact, an engine, or a checkpoint as for `load_model`.
        tuning: What `tune` found, as plain data, in the place of the artifact's own.

    Raises:
        RunnerError: A value makes no sense.
    """

    path: str | Path
    backbone: str | Path | None = option(
        None, "Backbone of the checkpoint.", shown="what the checkpoint names", metavar="DIR_OR_ID"
    )
    task: str | None = option(None, "Task of the checkpoint.", shown="inferred", choices=[*Task], synonyms=SYNONYMS)
    device: str = option("cpu", "Device to run on; an engine runs on its GPU.", choices=[*RUNTIMES])
    precision: str = option("fp32", "Precision of a checkpoint in eager PyTorch.", choices=PRECISIONS)
    threads: int | None = option(None, "Threads per operator.", shown="the runtime's choice", metavar="N", least=1)
    allow_engine_code: bool = option(False, "Let host code run that an engine may bring along; it has your rights.")
    adapter: str | None = option(None, "Adapter of a bank that answers.", metavar="NAME")
    skip_damaged: bool = option(False, "Leave out adapters of a bank whose files are damaged.")
    tuning: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        """Take paths as texts and a task by its name, and refuse values that make no sense."""
        object.__setattr__(self, "path", str(self.path))
        if self.backbone is not None:
            object.__setattr__(self, "backbone", str(self.backbone))
        if self.task is not None:
            object.__setattr__(self, "task", task_named(self.task).value)
        check_record(self, RunnerError)

    def on(self, **changes: Any) -> Subject:
        """The same with other settings; ``None`` changes nothing."""
        return replace(self, **{name: value for name, value in changes.items() if value is not None})

    @property
    def is_exported(self) -> bool:
        """Whether it is an artifact or an engine, which need no torch."""
        path = Path(self.path)
        return is_engine(path) or (path.is_dir() and is_artifact(path))


def as_subject(what: str | Path | Subject, **settings: Any) -> Subject:
    """A plain path as a subject; other settings than the defaults are for plain paths alone."""
    return what if isinstance(what, Subject) else Subject(what, **settings)

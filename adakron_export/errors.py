"""What a user can get wrong.

AdaKronError                  base of all; the command line prints it and exits with code 2
├── CheckpointError           a checkpoint that cannot be read or does not fit its backbone
├── BackboneError             a backbone that cannot be loaded, or where no adapter can sit
├── AdapterConfigError        an impossible adapter configuration (also a ValueError)
├── AdapterUseError           something that these adapters cannot do (also a ValueError)
├── DataError                 labelled text that cannot be read or learned from
├── TrainingError             a recipe that cannot be trained, or a run that cannot be started or resumed
├── ExportError               a model, task or option that cannot be exported
├── ArtifactError             a folder that is not an artifact, or no longer what was written
├── EngineError               a TensorRT engine that cannot be built, or a folder that holds none
│   └── BuildError            TensorRT refused a graph, or failed to build it
├── RunnerError               a batch that does not fit a runner
├── SignatureError            a folder without a signature, or a key that cannot be read
│   └── BadSignatureError     what is there is not what the key's owner signed
├── ReportError               a report that cannot be written or read
└── MissingPackageError       an optional package is not installed (also an ImportError)
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator


class AdaKronError(Exception):
    """Base class: the message says what is wrong, where, and what to do."""


class CheckpointError(AdaKronError):
    """A checkpoint that cannot be read or does not fit its backbone."""


class BackboneError(AdaKronError):
    """A backbone that cannot be loaded, or where no adapter can sit."""


class AdapterConfigError(AdaKronError, ValueError):
    """An impossible adapter configuration."""


class AdapterUseError(AdaKronError, ValueError):
    """Something that these adapters cannot do, or names of adapters that are not there."""


class DataError(AdaKronError):
    """Labelled text that cannot be read or learned from."""


class TrainingError(AdaKronError):
    """A recipe that cannot be trained, or a run that cannot be started or resumed."""


class ExportError(AdaKronError):
    """A model, task or option that cannot be exported."""


class ArtifactError(AdaKronError):
    """A folder that is not an artifact, or no longer what was written."""


class EngineError(AdaKronError):
    """A TensorRT engine that cannot be built, or a folder that holds none."""


class BuildError(EngineError):
    """TensorRT refused a graph, or failed to build it."""


class RunnerError(AdaKronError):
    """A batch that does not fit a runner."""


class SignatureError(AdaKronError):
    """A folder without a signature, or a key that cannot be read."""


class BadSignatureError(SignatureError):
    """What is there is not what the key's owner signed."""


class ReportError(AdaKronError):
    """A report that cannot be written or read."""


class MissingPackageError(AdaKronError, ImportError):
    """An optional package is not installed."""


@contextlib.contextmanager
def told_as(error_class: type[AdaKronError], what: str) -> Iterator[None]:
    """Whatever a library raises in the block becomes one of our errors, with the first line of its message.

    For what reads a user's files: the exceptions of transformers, PEFT and their readers share no base class.

    Args:
        error_class: What to raise.
        what: The beginning of the message, such as ``backbone 'x' cannot be loaded``.
    """
    try:
        yield
    except AdaKronError:
        raise
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = " ".join(lines[:2])[:200] if lines else type(error).__name__
        raise error_class(f"{what}: {reason}") from error


def first_few(names: Iterable[str], limit: int = 5) -> str:
    """The first few names and how many more there are, for a message."""
    ordered = list(names)
    shown = ", ".join(ordered[:limit])
    return shown if len(ordered) <= limit else f"{shown} and {len(ordered) - limit} more"

"""What a model may be asked: texts or images of the kind that its task needs, and options that it has a use for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adakron_export.errors import RunnerError
from adakron_export.serving.settings import PredictOptions
from adakron_export.tasks import Task
from adakron_export.tokenization.encoding import Text

Given = Text | Path  # an image is the path of its file


@dataclass(frozen=True, slots=True)
class Questions:
    """Texts or images that were found to be fit for a model.

    Attributes:
        given: The texts or images.
        names: The adapter of a bank that answers each; ``None`` for another artifact.
        options: What was asked for beside.
    """

    given: tuple[Given, ...]
    names: tuple[str, ...] | None
    options: PredictOptions


def check_options(task: Task, options: PredictOptions) -> None:
    """Raise unless a task has a use for each option."""
    if options.top_k is not None and task not in (
        Task.TEXT_CLASSIFICATION, Task.IMAGE_CLASSIFICATION, Task.FILL_MASK
    ):  # fmt: skip
        raise RunnerError(f"top_k is for classification of texts or images and for fill-mask; {task} has one answer")
    for name in ("max_new_tokens", "num_beams"):
        if getattr(options, name) is not None:
            check_writes(task, name)


def check_writes(task: Task, name: str) -> None:
    """Raise unless an option of writing is for this task."""
    if not task.writes:
        raise RunnerError(f"{name} is for text-generation; this model is for {task}")
    if name != "max_new_tokens" and task is Task.TEXT_GENERATION:
        raise RunnerError(f"{name} needs a cache; export the model as text-generation-with-past")


def fit_image(file: Any, index: int) -> Path:
    """The path of an image.

    Raises:
        RunnerError: The image is something else; the message has its number.
    """
    if not isinstance(file, (str, Path)):
        raise RunnerError(f"image {index} is {file!r:.60}; the path of an image file is needed")
    return Path(file)


def fit_text(text: Any, index: int, task: Task) -> Text:
    """A text, or a pair where the task takes one.

    Raises:
        RunnerError: The text is something else; the message has its number.
    """
    if isinstance(text, Mapping):
        if text.keys() != {"question", "context"}:
            raise RunnerError(f"text {index} has {', '.join(map(str, text))}; a mapping has a question and a context")
        text = (text["question"], text["context"])
    if isinstance(text, list):
        text = tuple(text)
    parts = text if isinstance(text, tuple) else (text,)
    if not all(isinstance(part, str) for part in parts) or (isinstance(text, tuple) and len(text) != 2):
        raise RunnerError(f"text {index} is {text!r:.60}; a string or a pair of strings is needed")
    if task is Task.QUESTION_ANSWERING and not isinstance(text, tuple):
        raise RunnerError(f"text {index} is a question without a context; give both: --text QUESTION --pair CONTEXT")
    if isinstance(text, tuple) and task not in (Task.QUESTION_ANSWERING, Task.TEXT_CLASSIFICATION):
        raise RunnerError(f"text {index} is a pair, which {task} has no use for; give one text")
    return text  # type: ignore[no-any-return]

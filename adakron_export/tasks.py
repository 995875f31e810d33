"""What a model is exported for: names of tasks, and of caches, their synonyms and classes, as `optimum` has them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from adakron_export.errors import ExportError

if TYPE_CHECKING:
    from transformers import PretrainedConfig


PAST, PRESENT = "past_key_values.", "present."  # how inputs and outputs begin that hold keys and values


class Task(StrEnum):
    """A task that can be exported; the names are those of `optimum` and of the hub."""

    TEXT_CLASSIFICATION = "text-classification"
    TOKEN_CLASSIFICATION = "token-classification"
    QUESTION_ANSWERING = "question-answering"
    FEATURE_EXTRACTION = "feature-extraction"
    FILL_MASK = "fill-mask"
    TEXT_GENERATION = "text-generation"
    TEXT_GENERATION_WITH_PAST = "text-generation-with-past"
    IMAGE_CLASSIFICATION = "image-classification"

    @property
    def trained(self) -> Task:
        """What a model is trained for: whether it keeps a cache is decided when it is exported."""
        return Task.TEXT_GENERATION if self is Task.TEXT_GENERATION_WITH_PAST else self

    @property
    def writes(self) -> bool:
        """Whether it writes text."""
        return self.trained is Task.TEXT_GENERATION


def without_cache(names: Iterable[str]) -> tuple[str, ...]:
    """Names of inputs or outputs, without those of keys and values."""
    return tuple(name for name in names if not name.startswith((PAST, PRESENT)))


# Names of `optimum` and of transformers' pipelines.
SYNONYMS = {
    "sequence-classification": Task.TEXT_CLASSIFICATION.value,
    "sentiment-analysis": Task.TEXT_CLASSIFICATION.value,
    "ner": Task.TOKEN_CLASSIFICATION.value,
    "default": Task.FEATURE_EXTRACTION.value,
    "sentence-similarity": Task.FEATURE_EXTRACTION.value,
    "masked-lm": Task.FILL_MASK.value,
    "causal-lm": Task.TEXT_GENERATION.value,
    "causal-lm-with-past": Task.TEXT_GENERATION_WITH_PAST.value,
}
_PEFT_TASK_TYPES = {
    "SEQ_CLS": Task.TEXT_CLASSIFICATION,
    "TOKEN_CLS": Task.TOKEN_CLASSIFICATION,
    "QUESTION_ANS": Task.QUESTION_ANSWERING,
    "CAUSAL_LM": Task.TEXT_GENERATION,
    "FEATURE_EXTRACTION": Task.FEATURE_EXTRACTION,
}


def peft_task_type(task: Task) -> str | None:
    """PEFT's name of a task, where it has one."""
    return next((name for name, value in _PEFT_TASK_TYPES.items() if value is task.trained), None)


def task_named(name: str) -> Task:
    """The task of a name or synonym, such as ``sequence-classification``.

    Raises:
        ExportError: No such task can be exported.
    """
    try:
        return Task(SYNONYMS.get(name, name))
    except ValueError as error:
        raise ExportError(
            f"task {name!r} cannot be exported; choose one of {', '.join(task.value for task in Task)}"
        ) from error


def infer_task(config: PretrainedConfig, *, peft_task: str | None = None) -> Task:
    """The task of a checkpoint: what PEFT recorded, else what the backbone's architecture is for.

    Args:
        config: The backbone's configuration.
        peft_task: ``task_type`` of the adapter's configuration.

    Raises:
        ExportError: The architecture's task cannot be exported.
    """
    if peft_task in _PEFT_TASK_TYPES:
        return _PEFT_TASK_TYPES[str(peft_task)]
    architectures = getattr(config, "architectures", None) or []
    if not architectures:
        return Task.FEATURE_EXTRACTION
    return task_of_architecture(architectures[0])


def task_of_architecture(name: str) -> Task:
    """The task of a model class's name, such as ``BertForMaskedLM``; a headless class extracts features.

    Raises:
        ExportError: Its task cannot be exported.
    """
    for task in Task:
        if task not in (Task.FEATURE_EXTRACTION, Task.TEXT_GENERATION_WITH_PAST) and name in _class_names(task):
            return task
    if name in _class_names(Task.FEATURE_EXTRACTION):
        return Task.FEATURE_EXTRACTION
    raise ExportError(
        f"no task is known for the architecture {name!r}; pass --task with one of "
        f"{', '.join(task.value for task in Task)}"
    )


def _class_names(task: Task) -> set[str]:
    names: set[str] = set()
    mapping: Mapping[Any, Any] = auto_class(task)._model_mapping._model_mapping
    for value in mapping.values():
        names.update(value if isinstance(value, (tuple, list)) else (value,))
    return names


def auto_class(task: Task) -> Any:
    """The `AutoModelFor...` class of a task."""
    import transformers
    from optimum.exporters.tasks import TasksManager

    name = TasksManager._TRANSFORMERS_TASKS_TO_MODEL_LOADERS[task.trained.value]
    return getattr(transformers, name)

"""The batch a model is traced with, made by `optimum`'s dummy input generators."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from adakron_export.adapter.task_model import Signature
from adakron_export.tasks import Task

_BATCH, _TOKENS = 2, 8  # no axis may be 0 or 1: torch.export takes those for constants


def sample_batch(config: Any, task: Task, signature: Signature) -> dict[str, Tensor]:
    """Every input of the signature, random, 2 texts of 8 tokens or 2 images."""
    from optimum.utils import DummyTextInputGenerator, DummyVisionInputGenerator
    from optimum.utils.normalized_config import NormalizedConfigManager

    normalized = NormalizedConfigManager.get_normalized_config_class(config.model_type)(config)
    if "pixel_values" in signature.inputs:
        generator = DummyVisionInputGenerator(task.value, normalized, batch_size=_BATCH)
    else:
        generator = DummyTextInputGenerator(task.value, normalized, batch_size=_BATCH, sequence_length=_TOKENS)
    return {name: generator.generate(name, framework="pt") for name in signature.inputs}

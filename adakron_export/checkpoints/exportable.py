"""What must not be exported, and why: found before it is."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from adakron_export.errors import ArtifactError, ExportError
from adakron_export.tasks import Task
from adakron_export.tokenization.encoding import is_plain, largest_id, padding_id

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from adakron_export.checkpoints.kinds import Loaded
    from adakron_export.checkpoints.task_model import TaskModel

_log = logging.getLogger(__name__)
_ROUNDING = 1e-6  # by which an adapter that adds nothing may differ: DoRA computes the norms of the weights


def check_trained(loaded: Loaded, eager: TaskModel, batch: Mapping[str, Tensor]) -> None:
    """An adapter that changes nothing was not trained: nobody wants to ship the bare backbone unawares.

    Args:
        loaded: The checkpoint.
        eager: Its model, behind its signature.
        batch: Inputs to run it on.

    Raises:
        ExportError: The outputs are those of the bare backbone.
    """
    import torch

    if not loaded.adapts:
        return
    inputs = [batch[name] for name in eager.signature.inputs]
    with torch.no_grad():
        adapted = eager(*inputs)
        with loaded.bare():
            bare = eager(*inputs)
    if all(
        torch.allclose(one, other, rtol=_ROUNDING, atol=_ROUNDING) for one, other in zip(adapted, bare, strict=True)
    ):
        raise ExportError(
            f"{loaded.checkpoint.path}: the adapter changes nothing of what its backbone answers; was it saved before "
            "training? --force (force=True) exports it all the same"
        )


def check_padding(model: PreTrainedModel) -> None:
    """A decoder that classifies looks for its last token that is no padding.

    Raises:
        ExportError: The model does not know what padding is.
    """
    if hasattr(model, "score") and padding_id(model.config.to_dict()) is None:
        raise ExportError(
            f"a {type(model).__name__} needs a padding token to find the last token of each text; set pad_token_id "
            "in the config.json beside the adapter (for GPT-2 its end-of-text token, 50256, is usual)"
        )


def check_positions(model: PreTrainedModel) -> None:
    """Rotations that depend on the longest text of a batch are beyond a static graph.

    Raises:
        ExportError: The model has such rotations.
    """
    settings = model.config.to_dict()
    rope = settings.get("rope_parameters") or settings.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type")) if isinstance(rope, dict) else None
    if kind in ("dynamic", "longrope"):
        raise ExportError(
            f"rope_type {kind!r} rotates by the length of the longest text in a batch, which a graph cannot; set "
            "another one in the config.json beside the adapter, such as linear or yarn, and check the model with it"
        )


def check_tokenizer(folder: Path, model: TaskModel) -> bool:
    """Whether ``tokenizer.json`` is all that is needed; one that does not fit the model is refused.

    Raises:
        ExportError: The tokenizer does not fit the model.
    """
    try:
        plain = is_plain(folder, decodes=model.task.writes or model.task is Task.FILL_MASK)
        largest = largest_id(folder)
    except ArtifactError as error:  # it may need packages that are not here
        _log.warning("%s", error)
        return False
    size = getattr(model.config, "vocab_size", None)
    if size is not None and largest >= size:
        raise ExportError(
            f"the tokenizer has a token {largest}, where the model's embedding has {size} rows; it is of another "
            "model, or tokens were added and the embedding was not saved with the adapter"
        )
    return plain

"""What must not be exported, and why: found before it is."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from adakron_export.errors import ArtifactError, ExportError
from adakron_export.tasks import Task
from adakron_export.tokenization.encoding import is_plain, largest_id, padding_id

if TYPE_CHECKING:
    from peft import PeftModel

    from adakron_export.checkpoints.task_model import TaskModel

_log = logging.getLogger(__name__)


def check_trained(source: Path, model: PeftModel) -> None:
    """An adapter whose up-projection is zero is the identity: nobody wants to ship the bare backbone unawares.

    Raises:
        ExportError: They all are.
    """
    from adakron_export.checkpoints.loading import adapter_layers

    ups = [layer.networks(model.active_adapter)[2] for layer in adapter_layers(model.get_base_model()).values()]
    if not any(bool(parameter.any()) for up in ups for parameter in up.parameters()):
        raise ExportError(
            f"{source}: every up-projection is zero, so the adapters change nothing; was it saved before "
            "training? --force (force=True) exports it all the same"
        )


def check_padding(model: PeftModel) -> None:
    """A decoder that classifies looks for its last token that is no padding.

    Raises:
        ExportError: The model does not know what padding is.
    """
    base = model.get_base_model()
    decoder = hasattr(base, "score")
    if decoder and padding_id(base.config.to_dict()) is None:
        raise ExportError(
            f"a {type(base).__name__} needs a padding token to find the last token of each text; set pad_token_id "
            "in the config.json beside the adapter (for GPT-2 its end-of-text token, 50256, is usual)"
        )


def check_positions(model: PeftModel) -> None:
    """Rotations that depend on the longest text of a batch are beyond a static graph.

    Raises:
        ExportError: The model has such rotations.
    """
    settings = model.get_base_model().config.to_dict()
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
        plain = is_plain(folder, decodes=model.task in (Task.TEXT_GENERATION, Task.FILL_MASK))
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

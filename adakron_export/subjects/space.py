"""What a model or an artifact accepts, so that batches can be made for it. Needs no torch for an artifact."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from adakron_export.artifacts.adapters import AdapterRecord
from adakron_export.artifacts.artifact import Artifact
from adakron_export.artifacts.engine import EngineFolder
from adakron_export.backbones.table import backbone_row
from adakron_export.errors import AdaKronError, ArtifactError, told_as
from adakron_export.files.records import read_object, record_of
from adakron_export.runtimes.space import InputSpace
from adakron_export.tasks import Task, without_cache
from adakron_export.tokenization.encoding import padding_id

if TYPE_CHECKING:
    from adakron_export.checkpoints.task_model import TaskModel

Size = Annotated[int, msgspec.Meta(gt=0, le=2**24)]
VALIDATED_LENGTH = 2048  # decoders name 100,000 positions and more, which no CPU can run in a minute
VALIDATED_LOGITS = 2**25  # of a batch of two texts: 0.3 GB a copy in fp64, of which a comparison makes several


@dataclass(frozen=True, slots=True)
class _Config:
    """What is read of a ``config.json``."""

    model_type: str | None = None
    id2label: dict[Annotated[str, msgspec.Meta(pattern="^[0-9]{1,7}$")], str] | None = None
    problem_type: str | None = None
    num_labels: Size | None = None
    vocab_size: Size | None = None
    type_vocab_size: Annotated[int, msgspec.Meta(ge=0, le=2**24)] | None = None
    max_position_embeddings: Size | None = None
    pad_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    local_attention: int | None = None
    is_decoder: bool | None = None
    image_size: Size | list[Size] | None = None
    num_channels: Size | None = None


_SETTINGS = {row.name for row in fields(_Config)}


def model_space(model: TaskModel, folder: Path | None = None) -> InputSpace:
    """What a loaded model accepts.

    Args:
        model: The model.
        folder: Where its tokenizer is.
    """
    from adakron_export.checkpoints.task_model import position_limit

    longest = position_limit(model.model)
    return _space(model.signature.texts, model.config.to_dict(), longest, folder, model.task)


def exported_space(exported: Artifact | EngineFolder) -> InputSpace:
    """What an artifact or an engine accepts, by its manifest and its configuration.

    Raises:
        ArtifactError: The configuration cannot be read.
    """
    names = without_cache(info.name for info in exported.manifest.inputs)
    try:
        manifest = exported.manifest
        space = _space(names, read_config(exported), manifest.max_length, exported.folder, Task(manifest.task))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        path = exported.folder / "config.json"
        raise ArtifactError(f"{path}: not a usable configuration ({type(error).__name__}: {error})") from error
    if isinstance(exported, Artifact):
        tokens = tuple(token for token in exported.calibration_tokens() if 0 <= token < space.vocab_size)
        return replace(space, vocabulary=tokens)
    bounds = exported.manifest.bounds
    return replace(space, bounds=bounds, max_length=min(space.max_length, max(high[1] for _, high in bounds)))


def read_config(exported: Artifact | EngineFolder) -> dict[str, Any]:
    """The ``config.json`` of an artifact or an engine.

    Raises:
        ArtifactError: The configuration cannot be read.
    """
    path = exported.folder / "config.json"
    try:
        content = read_object(path)
        record_of({name: content[name] for name in content.keys() & _SETTINGS}, _Config)
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path}: not a readable configuration ({error})") from error
    return content


def labels_of(record: AdapterRecord) -> dict[str, Any]:
    """What an adapter of a bank says of its labels, in the place of the bank's ``config.json``.

    Raises:
        ArtifactError: The labels make no sense.
    """
    try:
        record_of({name: value for name, value in record.labels.items() if name in _SETTINGS}, _Config)
    except ValueError as error:
        raise ArtifactError(f"the adapter's labels are not readable ({error}); add it again") from error
    return record.labels


def full_config(exported: Artifact | EngineFolder) -> dict[str, Any]:
    """The same with what transformers takes where nothing is written, if it is installed.

    Raises:
        ArtifactError: The configuration cannot be read.
    """
    written = read_config(exported)
    if importlib.util.find_spec("transformers") is None:
        return written
    from transformers import AutoConfig

    with told_as(ArtifactError, f"{exported.folder / 'config.json'}: not a readable configuration"):
        return dict(AutoConfig.from_pretrained(str(exported.folder), trust_remote_code=False).to_dict())


def _space(
    names: tuple[str, ...], config: Mapping[str, Any], longest: int | None, folder: Path | None, task: Task
) -> InputSpace:
    if "pixel_values" in names:
        size = config["image_size"]
        height, width = size if isinstance(size, list | tuple) else (size, size)
        shape = (config.get("num_channels", 3), height, width)
        return InputSpace(names, vocab_size=0, pad_id=0, max_length=0, image_shape=shape)
    special, frame = _special_tokens(folder)
    vocab_size = int(config["vocab_size"])
    many_logits = longest is None and (task.writes or task is Task.FILL_MASK)  # learned positions are all tried
    return InputSpace(
        names,
        vocab_size=vocab_size,
        pad_id=padding_id(config) or 0,
        max_length=min(longest or config.get("max_position_embeddings") or VALIDATED_LENGTH, VALIDATED_LENGTH),
        tried_length=max(1, VALIDATED_LOGITS // (2 * vocab_size)) if many_logits else None,
        special_ids=frozenset(special.values()),
        frame=frame,
        # An encoder that is made to look back alone may hold a first token that attends to nothing.
        left_padding=backbone_row(config).left_padding and not config.get("is_decoder"),
        token_types=max(1, config.get("type_vocab_size") or 1),
    )


def _special_tokens(folder: Path | None) -> tuple[dict[str, int], tuple[int, int] | None]:
    """Special tokens with their ids, and the two that frame a text, from a tokenizer's files."""
    if folder is None or not (folder / "tokenizer.json").is_file():
        return {}, None
    try:
        added = read_object(folder / "tokenizer.json").get("added_tokens") or []
        special = {row["content"]: int(row["id"]) for row in added if row.get("special")}
        settings = read_object(folder / "tokenizer_config.json")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise AdaKronError(f"{folder}: its tokenizer cannot be read ({type(error).__name__}: {error})") from error
    names = [settings.get("cls_token"), settings.get("sep_token")]
    found = [special.get(name["content"] if isinstance(name, dict) else name) for name in names if name]
    frame = (found[0], found[1]) if len(found) == 2 and None not in found else None
    return special, frame  # type: ignore[return-value]

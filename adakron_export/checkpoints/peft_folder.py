"""Loads PEFT folders: AdaKron's, and those of PEFT's own methods."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import peft
from peft import PeftConfig, PeftModel, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

from adakron_export.adapter.bottleneck.config import BOTTLENECK
from adakron_export.adapter.bounds import check_patterns, check_tensors_of_file
from adakron_export.adapter.config import PEFT_TYPE
from adakron_export.adapter.merging import UNMERGEABLE
from adakron_export.checkpoints.backbone import (
    backbone_folder,
    check_head,
    load_config,
    load_headed,
    resize_embeddings,
    set_labels,
)
from adakron_export.checkpoints.checkpoint import ADAPTER_CONFIG, ADAPTER_WEIGHTS, Checkpoint
from adakron_export.errors import CheckpointError, first_few, told_as
from adakron_export.files.records import read_object, record_of
from adakron_export.tasks import Task, infer_task

_KINDS = {PEFT_TYPE.value: "adakron", BOTTLENECK.value: "bottleneck"}
_PATTERNS = ("target_modules", "exclude_modules", "layers_pattern", "feedforward_modules")
_PATTERN_KEYS = ("rank_pattern", "alpha_pattern")
_LARGEST, _WIDEST = 2**53, 2**16  # of any number, and of what widths and ranks are made of
_RANKS = ("r", "init_r", "target_r", "num_vectors", "vector_length")
_REFUSED = {  # settings of PEFT's methods that make an answer depend on more than the text, or need what is not here
    "alora_invocation_tokens": "starts at tokens that call it, in each text",
    "arrow_config": "chooses its experts anew for each token",
    "megatron_config": "is for layers of Megatron",
    "use_qalora": "is for weights of GPTQ",
}


@dataclass(frozen=True, slots=True)
class _Settings:
    """What is read of ``adapter_config.json`` before PEFT reads it."""

    peft_type: str | None = None
    base_model_name_or_path: str | None = None
    revision: str | None = None
    task_type: str | None = None
    target_modules: list[str] | str | None = None
    exclude_modules: list[str] | str | None = None
    layers_pattern: list[str] | str | None = None
    layers_to_transform: list[int] | int | None = None
    modules_to_save: list[str] | None = None
    rank_pattern: dict[str, Any] | None = field(default_factory=dict)
    alpha_pattern: dict[str, Any] | None = field(default_factory=dict)
    feedforward_modules: list[str] | str | None = None


def adapter_settings(folder: Path) -> dict[str, Any]:
    """What ``adapter_config.json`` says.

    Raises:
        CheckpointError: The file cannot be read.
    """
    content = _read_json(folder / ADAPTER_CONFIG)
    try:
        record_of({row.name: content[row.name] for row in fields(_Settings) if row.name in content}, _Settings)
    except ValueError as error:
        raise CheckpointError(f"{folder / ADAPTER_CONFIG}: not readable ({error})") from error
    return content


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return read_object(path)
    except ValueError as error:
        raise CheckpointError(f"{path}: not readable ({error})") from error


def is_adakron(_path: Path, settings: Mapping[str, Any] | None) -> bool:
    """Whether a folder holds AdaKron adapters."""
    return settings is not None and settings.get("peft_type") == PEFT_TYPE


def is_bottleneck(_path: Path, settings: Mapping[str, Any] | None) -> bool:
    """Whether a folder holds bottleneck adapters, as PEFT saves them."""
    return settings is not None and settings.get("peft_type") == BOTTLENECK


def is_peft(_path: Path, settings: Mapping[str, Any] | None) -> bool:
    """Whether a folder holds an adapter of another method of PEFT."""
    return settings is not None and settings.get("peft_type") not in (None, PEFT_TYPE, BOTTLENECK)


def find_peft(path: Path, settings: Mapping[str, Any] | None, backbone: str | None) -> Checkpoint:
    """The folder and its backbone.

    Raises:
        CheckpointError: The method cannot be exported, or the folder lacks weights or a backbone's name.
        BackboneError: The backbone is not there.
    """
    assert settings is not None
    method = str(settings["peft_type"])
    _check_method(path, method, settings)
    weights = path / ADAPTER_WEIGHTS
    if not weights.is_file():
        raise CheckpointError(
            f"{path}: {ADAPTER_WEIGHTS} is missing; save the adapter with save_pretrained() (safetensors)"
        )
    named = backbone or settings.get("base_model_name_or_path")
    if not named:
        raise CheckpointError(f"{path}: names no backbone; pass --backbone with its folder or hub id")
    place = beside(path, str(named))
    found = backbone_folder(place, None if backbone else settings.get("revision"))
    return Checkpoint(path, weights, place, found, _KINDS.get(method, "peft"))


def _check_method(path: Path, method: str, settings: Mapping[str, Any]) -> None:
    """Raise a `CheckpointError` where a method, or a setting of it, cannot become a graph."""
    if method in UNMERGEABLE:
        raise CheckpointError(f"{path}: {method} {UNMERGEABLE[method]}, which an exported graph has no place for")
    if method not in PEFT_TYPE_TO_CONFIG_MAPPING:
        raise CheckpointError(f"{path}: peft_type is {method!r:.60}, which PEFT {peft.__version__} does not know")
    known = {row.name for row in fields(PEFT_TYPE_TO_CONFIG_MAPPING[method])}
    unknown = [name for name, value in settings.items() if name not in known and value]
    if unknown:
        raise CheckpointError(
            f"{path / ADAPTER_CONFIG}: {first_few(sorted(unknown))} is no setting of {method} in PEFT "
            f"{peft.__version__}; install the release that saved it"
        )
    refused = next((name for name in _REFUSED if settings.get(name)), None)
    if refused is not None:
        raise CheckpointError(
            f"{path}: {refused} is set, so that the adapter {_REFUSED[refused]}; it cannot be exported"
        )
    for name, value in settings.items():
        limit = _WIDEST if name in _RANKS else _LARGEST
        if isinstance(value, int) and abs(value) > limit:
            raise CheckpointError(f"{path / ADAPTER_CONFIG}: {name} is {value:.3g}; it must be at most {limit}")


def beside(folder: Path, named: str) -> str:
    """A backbone named by a relative path may lie inside the checkpoint, and only there, beside PEFT's reading."""
    inside = (folder / named).resolve()
    if not Path(named).is_absolute() and inside.is_relative_to(folder.resolve()) and inside.is_dir():
        return str(inside)
    return named


def load_peft(checkpoint: Checkpoint, task: Task | None) -> PeftModel:
    """Load a PEFT checkpoint, unmerged; errors as of `load_model`."""
    tensors = read_safetensors(checkpoint.weights)
    settings = adapter_settings(checkpoint.path)
    config = load_config(checkpoint)
    set_labels(config, {key.removeprefix("base_model.model."): value for key, value in tensors.items()})
    task = task or infer_task(config, peft_task=settings.get("task_type"))
    model, new = load_headed(checkpoint, config, task)
    embeddings = resize_embeddings(model, tensors)
    names = [name for name, _ in model.named_modules()]
    patterns = [settings.get(name) for name in _PATTERNS]
    patterns += [key for name in _PATTERN_KEYS for key in settings.get(name) or ()]
    check_patterns(patterns, names, CheckpointError, str(checkpoint.path / ADAPTER_CONFIG))
    with told_as(CheckpointError, f"{checkpoint.path / ADAPTER_CONFIG} does not fit the backbone"):
        adapter = PeftConfig.from_pretrained(str(checkpoint.path))
        adapter.inference_mode = True
        adapter.base_model_name_or_path = checkpoint.backbone  # where it was found, which PEFT compares
        loaded = with_adapter(model, adapter)
    expected = get_peft_model_state_dict(loaded, save_embedding_layers=False)
    expected |= {name: tensor for name, tensor in loaded.state_dict().items() if name in embeddings}
    check_tensors(checkpoint, expected=expected, found=tensors)
    check_head(checkpoint, new, {key.removeprefix("base_model.model.") for key in tensors})
    loaded.load_adapter(str(checkpoint.path), "default")
    return loaded


def with_adapter(model: PreTrainedModel, adapter: PeftConfig, *, name: str = "default") -> PeftModel:
    """`get_peft_model` without the warning that it sets off in transformers.

    PEFT 0.21 reads `is_gradient_checkpointing`, which transformers 5.2x deprecates; drop this when it does not.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        return get_peft_model(model, adapter, adapter_name=name)


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint's file.

    Raises:
        CheckpointError: The file cannot be read, or one of them is not plain, real and finite.
    """
    from safetensors import SafetensorError

    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not a readable safetensors file ({error})") from error
    check_tensors_of_file(path, tensors)
    return tensors


def check_tensors(checkpoint: Checkpoint, *, expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    """Raise unless ``found`` has exactly the tensors of ``expected``, in their shapes."""
    problems = []
    missing = sorted(expected.keys() - found.keys())
    extra = sorted(found.keys() - expected.keys())
    misshapen = [
        f"{name} is {list(found[name].shape)} where {list(expected[name].shape)} is expected"
        for name in sorted(expected.keys() & found.keys())
        if found[name].shape != expected[name].shape
    ]
    for title, names in (("missing", missing), ("unexpected", extra), ("misshapen", misshapen)):
        if names:
            problems.append(f"{len(names)} {title}: {first_few(names, 3)}")
    if problems:
        raise CheckpointError(
            f"{checkpoint.weights} does not fit the backbone {checkpoint.backbone!r}; {'; '.join(problems)}"
        )

"""Checkpoints: finds one and its backbone, and holds both to account.

A checkpoint is a folder as PEFT's `save_pretrained` writes it, a file of the reference implementation, a folder
with such a file in it, or the hub id of the first.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from adakron_export.adapter.bounds import check_config_file, check_finite, check_patterns, check_tensors_of_file
from adakron_export.adapter.config import PEFT_TYPE, AdaKronConfig
from adakron_export.checkpoints import hub
from adakron_export.checkpoints.leftovers import check_leftovers, check_settings
from adakron_export.checkpoints.reference import PARTIAL_NAME, is_reference_name
from adakron_export.errors import BackboneError, CheckpointError, first_few, told_as
from adakron_export.files.records import read_object, record_of
from adakron_export.tasks import Task, auto_class, infer_task

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
UNFINISHED = "training"  # the folder of a run that goes on; it is gone when the checkpoint is there


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint that was found, and the backbone it goes with.

    Attributes:
        path: Its folder, or the reference implementation's file.
        backbone: Folder or hub id, as it was named.
        backbone_folder: Where that is on this machine.
        is_reference: Whether ``path`` is a file of the reference implementation.
    """

    path: Path
    backbone: str
    backbone_folder: Path
    is_reference: bool

    @property
    def folder(self) -> Path:
        """Where a tokenizer or a configuration would stand beside the adapter."""
        return self.path.parent if self.is_reference else self.path

    @property
    def weights(self) -> Path:
        """The file that holds the adapter's tensors."""
        return self.path if self.is_reference else self.path / ADAPTER_WEIGHTS


def find_checkpoint(checkpoint: str | Path, backbone: str | Path | None = None) -> Checkpoint:
    """Find a checkpoint and its backbone.

    Args:
        checkpoint: PEFT folder, reference file, a folder that holds one, or hub id.
        backbone: Folder or hub id; what the checkpoint names when left out.

    Raises:
        CheckpointError: There is none, or its backbone is not known.
        BackboneError: Its backbone is not there.
    """
    path = Path(checkpoint)
    if path.is_dir() and not (path / ADAPTER_CONFIG).is_file() and (path / PARTIAL_NAME).is_file():
        path = path / PARTIAL_NAME
    if path.is_file():
        return _reference_checkpoint(path, backbone)
    folder = path if path.is_dir() else hub.adapter_folder(str(checkpoint), error=CheckpointError)
    if not (folder / ADAPTER_CONFIG).is_file():
        if (folder / UNFINISHED).is_dir():
            raise CheckpointError(
                f"{checkpoint}: its training has not finished; go on with "
                f"`adakron-export train -o {checkpoint} --resume`"
            )
        raise CheckpointError(
            f"{checkpoint} holds neither {ADAPTER_CONFIG} (a PEFT checkpoint) nor {PARTIAL_NAME} (the reference "
            "implementation's); give the folder that save_pretrained wrote, or the .bin or .pt file itself"
        )
    settings = _adapter_settings(folder)
    if settings.get("peft_type") != PEFT_TYPE:
        raise CheckpointError(
            f"{folder}: a {settings.get('peft_type')} adapter, not {PEFT_TYPE.value}; merge it into its backbone with "
            "PEFT's merge_and_unload() and export that with optimum"
        )
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise CheckpointError(
            f"{folder}: {ADAPTER_WEIGHTS} is missing; save the adapter with save_pretrained() (safetensors)"
        )
    named = backbone or settings.get("base_model_name_or_path")
    if not named:
        raise CheckpointError(f"{folder}: names no backbone; pass --backbone with its folder or hub id")
    found = _beside(folder, str(named))
    revision = None if backbone else settings.get("revision")
    return Checkpoint(folder, found, _backbone_folder(found, revision), is_reference=False)


def _reference_checkpoint(path: Path, backbone: str | Path | None) -> Checkpoint:
    if not is_reference_name(path):
        raise CheckpointError(
            f"{path} is a {path.suffix or 'nameless'} file; a checkpoint is a PEFT folder, or a .bin, .pt or .pth "
            "file of the reference implementation"
        )
    if backbone is None:
        raise CheckpointError(f"{path} does not name its backbone; pass --backbone with its folder or hub id")
    return Checkpoint(path, str(backbone), _backbone_folder(str(backbone), None), is_reference=True)


def _backbone_folder(name: str, revision: str | None) -> Path:
    return Path(name) if Path(name).is_dir() else hub.backbone_folder(name, revision, error=BackboneError)


def _beside(folder: Path, named: str) -> str:
    """A backbone named by a relative path may lie inside the checkpoint, and only there, beside PEFT's reading."""
    inside = (folder / named).resolve()
    if not Path(named).is_absolute() and inside.is_relative_to(folder.resolve()) and inside.is_dir():
        return str(inside)
    return named


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
    rank_pattern: dict[str, int] = field(default_factory=dict)


def _adapter_settings(folder: Path) -> dict[str, Any]:
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


def load_config(checkpoint: Checkpoint) -> PretrainedConfig:
    """The model's configuration: what lies beside the adapter (it has the labels), else the backbone's.

    Raises:
        BackboneError: Neither can be read.
    """
    beside = not checkpoint.is_reference and (checkpoint.path / "config.json").is_file()
    source = checkpoint.path if beside else checkpoint.backbone_folder
    with told_as(BackboneError, f"backbone {str(source)!r} cannot be loaded"):
        return read_config(source, checkpoint.backbone_folder)


def read_config(folder: Path, weights: Path) -> PretrainedConfig:
    """A configuration that fits the weights in a folder, without settings that change nothing of what comes out.

    Kernels of attention that are not installed would be refused, chunks of the FFN limit the length of texts, and
    tuples have no names.
    """
    check_config_file(folder, weight_files(weights))
    config = AutoConfig.from_pretrained(str(folder), trust_remote_code=False, attn_implementation=None)
    config._attn_implementation = None
    config.return_dict = True
    if getattr(config, "chunk_size_feed_forward", 0):
        config.chunk_size_feed_forward = 0
    return config


def load_backbone(name: str, folder: Path, config: PretrainedConfig, task: Task) -> tuple[PreTrainedModel, set[str]]:
    """The backbone in fp32, and the parameters that its files do not have (a new head).

    Args:
        name: What it is called, in messages and in the checkpoint that will be saved.
        folder: Where it is on this machine.
        config: Configuration with the labels of the task.
        task: The task, which decides the head.

    Raises:
        BackboneError: The backbone cannot be loaded, or is another architecture.
    """
    check_settings(name, config)
    level, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        with told_as(BackboneError, f"backbone {name!r} cannot be loaded"):
            model, info = auto_class(task).from_pretrained(
                str(folder),
                config=config,
                dtype=torch.float32,
                ignore_mismatched_sizes=True,  # a head of another size is replaced by the checkpoint's; see below
                output_loading_info=True,
                trust_remote_code=False,
            )
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()
    check_leftovers(name, model, info["unexpected_keys"])
    check_finite(name, model)
    if task is Task.TEXT_GENERATION:
        _check_causal(name, model)
    model.name_or_path = name  # what PEFT writes down, also where the hub's cache holds it
    mismatched = [str(row[0]) for row in info.get("mismatched_keys", ())]
    new = {*info["missing_keys"], *mismatched}
    if task is Task.FEATURE_EXTRACTION:  # nothing reads its pooler
        new = {key for key in new if not key.startswith("pooler.")}
    body = [key for key in new if key.startswith(f"{model.base_model_prefix}.") and ".pooler." not in key]
    if body:
        raise BackboneError(
            f"backbone {name!r} lacks tensors of a {type(model).__name__}, or has them in another "
            f"shape: {first_few(sorted(body))}"
        )
    return model, new


def _check_causal(name: str, model: PreTrainedModel) -> None:
    """Raise where a later token changes what comes before: such a model has seen what it should write."""
    ids = torch.tensor([[4, 5, 6, 7], [4, 5, 6, 8]]) % model.config.vocab_size
    with torch.no_grad():
        first, second = model.eval()(input_ids=ids).logits[:, 0]
    if not torch.allclose(first, second, rtol=1e-4, atol=1e-4):
        raise BackboneError(
            f"backbone {name!r}: its {type(model).__name__} looks at later tokens, so that it cannot learn to write; "
            'set "is_decoder": true in its config.json, or take a decoder, such as GPT-2 or Qwen'
        )


def load_peft(checkpoint: Checkpoint, task: Task | None) -> PeftModel:
    """Load a PEFT checkpoint; see `load_model`."""
    tensors = _read_safetensors(checkpoint.weights)
    settings = _adapter_settings(checkpoint.path)
    config = load_config(checkpoint)
    set_labels(config, {key.removeprefix("base_model.model."): value for key, value in tensors.items()})
    task = task or infer_task(config, peft_task=settings.get("task_type"))
    model, new = load_backbone(checkpoint.backbone, checkpoint.backbone_folder, config, task)
    embeddings = _resize_embeddings(model, tensors)
    names = [name for name, _ in model.named_modules()]
    patterns = [settings.get(name) for name in ("target_modules", "exclude_modules", "layers_pattern")]
    ranks = settings.get("rank_pattern")
    check_patterns([*patterns, *(ranks if isinstance(ranks, dict) else ())], names, CheckpointError,
                   str(checkpoint.path / ADAPTER_CONFIG))  # fmt: skip
    with told_as(CheckpointError, f"{checkpoint.path / ADAPTER_CONFIG} does not fit the backbone"):
        adapter = AdaKronConfig.from_pretrained(str(checkpoint.path))
        adapter.inference_mode = True
        adapter.base_model_name_or_path = checkpoint.backbone  # where it was found, which PEFT compares
        loaded = with_adapter(model, adapter)
    expected = get_peft_model_state_dict(loaded, save_embedding_layers=False)
    expected |= {name: tensor for name, tensor in loaded.state_dict().items() if name in embeddings}
    check_tensors(checkpoint, expected=expected, found=tensors)
    check_head(checkpoint, new, {key.removeprefix("base_model.model.") for key in tensors})
    loaded.load_adapter(str(checkpoint.path), "default")
    return loaded


def _resize_embeddings(model: PreTrainedModel, tensors: Mapping[str, Tensor]) -> set[str]:
    """Give the model as many tokens as the checkpoint's embedding, which PEFT saves where tokens were added.

    Returns:
        The names of the embeddings that the checkpoint holds, of the input and the output.
    """
    prefix = "base_model.model."
    layers = {
        id(layer) for layer in (model.get_input_embeddings(), model.get_output_embeddings()) if layer is not None
    }
    names = {
        f"{prefix}{name}.{part}"
        for name, module in model.named_modules()
        if id(module) in layers
        for part in ("weight", "bias")
    }
    found = names & tensors.keys()
    sizes = {len(tensors[name]) for name in found}
    if len(sizes) == 1 and sizes != {model.get_input_embeddings().num_embeddings}:
        model.resize_token_embeddings(sizes.pop(), mean_resizing=False)
    return found


def with_adapter(model: PreTrainedModel, adapter: AdaKronConfig) -> PeftModel:
    """`get_peft_model` without the warning that it sets off in transformers.

    PEFT 0.21 reads `is_gradient_checkpointing`, which transformers 5.2x deprecates; drop this when it does not.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        return get_peft_model(model, adapter)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
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


def check_head(checkpoint: Checkpoint, new: set[str], saved: set[str]) -> None:
    """Raise where a head is neither in the backbone's files nor in the checkpoint: it would be random."""
    random = sorted(new - saved)
    if random:
        raise CheckpointError(
            f"{checkpoint.path}: the head is in neither the checkpoint nor the backbone {checkpoint.backbone!r}, and "
            f"would be random: {first_few(random)}; save it with the adapter (modules_to_save), or pass --task "
            "feature-extraction"
        )


def set_labels(config: PretrainedConfig, tensors: Mapping[str, Tensor]) -> None:
    """Take the number of labels from the head, where the configuration does not know it."""
    for name in (
        "classifier.weight",
        "classifier.out_proj.weight",
        "score.weight",
        "qa_outputs.weight",
    ):
        if name in tensors and tensors[name].ndim and config.num_labels != tensors[name].shape[0]:
            names = dict(config.id2label or {})
            config.num_labels = tensors[name].shape[0]  # which gives all labels new names
            config.id2label = {index: names.get(index, f"LABEL_{index}") for index in range(config.num_labels)}
            config.label2id = {label: index for index, label in config.id2label.items()}


def backbone_files(checkpoint: Checkpoint) -> list[Path]:
    """The backbone's configuration and weight files."""
    config = checkpoint.backbone_folder / "config.json"
    return [file for file in (config, *weight_files(checkpoint.backbone_folder)) if file.is_file()]


def weight_files(folder: Path) -> list[Path]:
    """The files with a backbone's tensors."""
    return sorted(folder.glob("model*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))

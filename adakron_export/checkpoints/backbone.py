"""Loads backbones, and holds them to account: no tensor lacks, is left over, or would be random."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from adakron_export.adapter.bounds import check_config_file, check_finite
from adakron_export.checkpoints import hub
from adakron_export.checkpoints.checkpoint import Checkpoint
from adakron_export.checkpoints.flexible_head import HEAD, HEAD_MODULE, head_settings, with_flexible_head
from adakron_export.checkpoints.leftovers import check_leftovers, check_settings
from adakron_export.errors import BackboneError, CheckpointError, first_few, told_as
from adakron_export.tasks import Task, auto_class

_LAST_TOKEN = ("gpt2", "llama", "mistral", "qwen2", "qwen3")  # where AdapterHub's heads read a text's last token


def backbone_folder(name: str, revision: str | None = None) -> Path:
    """Where a backbone is on this machine.

    Args:
        name: Folder or hub id.
        revision: Branch, tag or commit of the hub.

    Raises:
        BackboneError: The folder is not there.
    """
    return Path(name) if Path(name).is_dir() else hub.backbone_folder(name, revision, error=BackboneError)


def load_config(checkpoint: Checkpoint) -> PretrainedConfig:
    """The model's configuration: what lies beside the adapter (it has the labels), else the backbone's.

    Raises:
        BackboneError: Neither can be read.
    """
    beside = (checkpoint.path / "config.json").is_file()
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


def load_headed(checkpoint: Checkpoint, config: PretrainedConfig, task: Task) -> tuple[PreTrainedModel, set[str]]:
    """`load_backbone` of a checkpoint's backbone, with the head that the configuration asks for.

    Raises:
        CheckpointError: A flexible head's settings are not known, or its model has no pooler that it reads.
    """
    head = getattr(config, HEAD, None)
    if head is None or task is Task.FEATURE_EXTRACTION:
        return load_backbone(checkpoint.backbone, checkpoint.backbone_folder, config, task)
    settings = head_settings(head, str(checkpoint.path))
    if settings.task is not task:
        raise CheckpointError(f"{checkpoint.path}: its head is for {settings.task}; leave --task out")
    pooled = settings.use_pooler
    body, new = load_backbone(
        checkpoint.backbone, checkpoint.backbone_folder, config, Task.FEATURE_EXTRACTION, reads_pooler=pooled
    )
    if config.model_type in _LAST_TOKEN or (pooled and getattr(body, "pooler", None) is None):
        raise CheckpointError(
            f"{checkpoint.path}: a flexible head on a {config.model_type} reads what that has not: "
            f"{'a pooled output' if pooled else 'a first token'}"
        )
    prefix = body.base_model_prefix
    model = with_flexible_head(body, config, task)
    heads = {name for name, _ in model.named_parameters() if name.startswith(f"{HEAD_MODULE}.")}
    return model, {*(f"{prefix}.{name}" for name in new), *heads}


def load_backbone(
    name: str, folder: Path, config: PretrainedConfig, task: Task, *, reads_pooler: bool = False
) -> tuple[PreTrainedModel, set[str]]:
    """The backbone in fp32, and the parameters that its files do not have (a new head).

    Args:
        name: What it is called, in messages and in the checkpoint that will be saved.
        folder: Where it is on this machine.
        config: Configuration with the labels of the task.
        task: The task, which decides the head.
        reads_pooler: Whether a head of ours reads the pooler of a backbone without one.

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
    if task is Task.FEATURE_EXTRACTION and not reads_pooler:
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


def resize_embeddings(model: PreTrainedModel, tensors: Mapping[str, Tensor]) -> set[str]:
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
        for part in ("weight", "bias", "base_layer.weight", "token_adapter.base_layer.weight")
    }
    found = names & tensors.keys()
    sizes = {len(tensors[name]) for name in found}
    if len(sizes) == 1 and sizes != {model.get_input_embeddings().num_embeddings}:
        model.resize_token_embeddings(sizes.pop(), mean_resizing=False)
    return found


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

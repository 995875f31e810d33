"""The model of a run: a frozen backbone with fresh adapters and head, and its tokenizer."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from transformers import AutoTokenizer, PretrainedConfig, PreTrainedModel

from adakron_export.checkpoints import hub
from adakron_export.checkpoints.backbone import load_backbone, read_config
from adakron_export.checkpoints.peft_folder import with_adapter
from adakron_export.checkpoints.task_model import position_limit
from adakron_export.data.labels import REGRESSION, Labels
from adakron_export.errors import BackboneError, TrainingError, told_as
from adakron_export.tasks import Task, auto_class, peft_task_type
from adakron_export.tokenization.encoding import padding_id
from adakron_export.training.methods import adapter_config, is_adapter
from adakron_export.training.recipe import Recipe

_IN_LAYER = re.compile(r"\.(\d+)\.")  # of a module's name: layers are numbered, embeddings and heads are not
_LONGEST = 512  # by default; backbones without learned positions have no end of their own
_LONGEST_WINDOW = 384  # a question and a piece of its context, as usual for SQuAD


@dataclass(frozen=True, slots=True)
class BackboneSource:
    """Where a backbone comes from.

    Attributes:
        name: Absolute folder or hub id, which the checkpoint will name.
        folder: Where it is on this machine.
        revision: The commit that was found on the hub.
    """

    name: str
    folder: Path
    revision: str | None


@dataclass(frozen=True, slots=True)
class ParameterCounts:
    """How many numbers a model has, by what becomes of them."""

    adapters: int
    norms: int
    head: int
    total: int

    @property
    def trainable(self) -> int:
        """Adapters, norms and head."""
        return self.adapters + self.norms + self.head

    def table(self) -> str:
        """As people read it."""
        rows = (("adapters", self.adapters), ("norms", self.norms), ("head", self.head),
                ("frozen", self.total - self.trainable))  # fmt: skip
        lines = [f"{name:<10}{count:>14,}{count / self.total:>9.2%}" for name, count in rows if count]
        lines.append(f"{'trained':<10}{self.trainable:>14,}{self.trainable / self.total:>9.2%}")
        return "\n".join(lines)


def find_backbone(recipe: Recipe) -> BackboneSource:
    """The backbone's folder, downloaded where it is named by a hub id.

    Raises:
        BackboneError: The backbone is not there, or the hub cannot be reached.
    """
    path = Path(recipe.backbone)
    if path.is_dir():
        if recipe.revision:
            raise BackboneError(f"{path} is a folder, which has no revision {recipe.revision!r}; leave --revision out")
        return BackboneSource(str(path.resolve()), path.resolve(), None)
    folder = hub.backbone_folder(recipe.backbone, recipe.revision, error=BackboneError)
    return BackboneSource(recipe.backbone, folder, folder.name)  # the cache names its folders by commit


def load_tokenizer(source: BackboneSource) -> Any:
    """The backbone's tokenizer, with a padding token.

    Raises:
        BackboneError: There is none, or only a slow one.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(source.folder), trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise BackboneError(f"backbone {source.name!r} has no usable tokenizer: {reason}") from error
    if not tokenizer.is_fast:
        raise BackboneError(f"backbone {source.name!r} has only a slow tokenizer; words and offsets need a fast one")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    return tokenizer


def make_config(config: PretrainedConfig, task: Task, labels: Labels, tokenizer: Any) -> PretrainedConfig:
    """The backbone's configuration with the task's labels and a padding token."""
    if labels.problem_type == REGRESSION:
        config.num_labels = 1
    elif labels.names:
        config.id2label = labels.id2label
        config.label2id = {name: index for index, name in labels.id2label.items()}
    if labels.problem_type:
        config.problem_type = labels.problem_type
    if task is Task.QUESTION_ANSWERING:
        config.num_labels = 2
    if padding_id(config.to_dict()) is None:
        config.pad_token_id = tokenizer.pad_token_id
    return config


def load_trainable(source: BackboneSource, recipe: Recipe, task: Task, labels: Labels, tokenizer: Any) -> PeftModel:
    """The backbone with fresh adapters and a fresh head; all else is frozen.

    Raises:
        BackboneError: The backbone cannot be loaded, or adapters cannot sit in it.
    """
    with told_as(BackboneError, f"backbone {source.name!r} cannot be loaded"):
        config = read_config(source.folder, source.folder)
    config = make_config(config, task, labels, tokenizer)
    with dropout_of(config, recipe.dropout):
        model, new = load_backbone(source.name, source.folder, config, task)
    model.config.architectures = [type(model).__name__]
    return add_adapters(model, recipe, task, new=new, revision=source.revision)


def empty_trainable(config: PretrainedConfig, recipe: Recipe, task: Task) -> PeftModel:
    """The same with tensors that have shapes and no content, for counting (torch's ``meta`` device)."""
    with torch.device("meta"):
        model = auto_class(task).from_config(config, trust_remote_code=False)
        return add_adapters(model, recipe, task, new=set(), revision=None)


def add_adapters(
    model: PreTrainedModel, recipe: Recipe, task: Task, *, new: set[str], revision: str | None
) -> PeftModel:
    """Put adapters into a model.

    Args:
        model: The model with its head.
        recipe: Size and kind of the adapters.
        task: What it is for; PEFT trains the head of a classifier whole.
        new: Parameters that the backbone's files do not have, and which are trained whole.
        revision: Branch, tag or commit of the backbone.
    """
    prefix = f"{model.base_model_prefix}."
    fresh = sorted({name.removeprefix(prefix).partition(".")[0] for name in new})
    layers = _layers_of(model.config, recipe)
    norms = norms_beside_adapters(model, layers) if recipe.norm_learning_rate is not None else []
    pooler = []
    if recipe.pooler_scale != 1:
        if "pooler" in fresh:
            raise TrainingError("pooler_scale is for a pooler that the backbone brings; this one is new and trained")
        pooler = [scale_pooler(model, recipe.pooler_scale)]
    common = {
        "layers_to_transform": layers,
        "task_type": peft_task_type(task),
        "modules_to_save": [*fresh, *norms, *pooler] or None,
        "revision": revision,
    }
    adapter = adapter_config(recipe, common)
    with told_as(TrainingError, f"{recipe.method} cannot sit in a {type(model).__name__}"):
        tuned = with_adapter(model, adapter)
    for name in pooler:
        tuned.get_submodule(f"base_model.model.{name}").requires_grad_(requires_grad=False)  # saved, and not trained
    return tuned


def scale_pooler(model: PreTrainedModel, factor: float) -> str:
    """Multiply the weights of a backbone's pooler, in place.

    A sentence encoder leaves it as it was initialised, with weights so small that its tanh is a straight line. Wider
    ones make features of it that a head can tell apart.

    Returns:
        The pooler's name.

    Raises:
        TrainingError: The backbone has none, or has a trained one, which has biases.
    """
    name = f"{model.base_model_prefix}.pooler"
    dense = getattr(getattr(model.base_model, "pooler", None), "dense", None)
    if not isinstance(dense, nn.Linear):
        raise TrainingError(f"pooler_scale is for backbones with a pooler; {type(model).__name__} has none")
    with torch.no_grad():
        if dense.bias is not None and not dense.bias.is_meta and bool(dense.bias.any()):
            raise TrainingError(
                "pooler_scale is for a pooler that was never trained; this one has biases: leave it at 1"
            )
        dense.weight.mul_(factor)
    return name


def _layers_of(config: PretrainedConfig, recipe: Recipe) -> list[int] | None:
    wanted, count = recipe.layer_indices(), getattr(config, "num_hidden_layers", None)
    if wanted is not None and count is not None and wanted[-1] >= count:
        raise TrainingError(f"layers is {recipe.layers!r}; the backbone has layers 0 to {count - 1}")
    return wanted


def norms_beside_adapters(model: nn.Module, layers: list[int] | None) -> list[str]:
    """The names of the normalisations within the layers, or within these; those of embeddings and head are others."""
    return [
        name
        for name, module in model.named_modules()
        if type(module).__name__.endswith("Norm")
        and (found := _IN_LAYER.search(name)) is not None
        and (layers is None or int(found[1]) in layers)
    ]


def trained_part(name: str) -> str:
    """What a trained parameter belongs to: ``adapters``, ``norms`` or ``head``."""
    if is_adapter(name):
        return "adapters"
    return "norms" if _IN_LAYER.search(name) else "head"


def count_parameters(model: nn.Module) -> ParameterCounts:
    """Adapters, norms, head and everything; a frozen copy that PEFT keeps of what is trained whole is not counted."""
    counts = Counter[str]()
    for name, parameter in model.named_parameters():
        if ".original_module." in name:
            continue
        counts["total"] += parameter.numel()
        if parameter.requires_grad:
            counts[trained_part(name)] += parameter.numel()
    return ParameterCounts(counts["adapters"], counts["norms"], counts["head"], counts["total"])


def longest_input(model: nn.Module, tokenizer: Any, recipe: Recipe, task: Task) -> int:
    """How many tokens a text may have.

    Raises:
        TrainingError: The recipe asks for more than the backbone has positions.
    """
    limit = position_limit(model)
    if recipe.max_length is not None:
        if limit is not None and recipe.max_length > limit:
            raise TrainingError(f"max_length is {recipe.max_length}; the backbone has {limit} positions")
        return recipe.max_length
    usual = _LONGEST_WINDOW if task is Task.QUESTION_ANSWERING else _LONGEST
    return int(min(usual, tokenizer.model_max_length, limit or usual))


@contextmanager
def dropout_of(config: PretrainedConfig, share: float | None) -> Iterator[None]:
    """Build a model with this dropout; the configuration that is saved keeps the backbone's own."""
    names = [
        name for name, value in vars(config).items()
        if ("dropout" in name or name.endswith("pdrop")) and isinstance(value, float)
    ] if share is not None else []  # fmt: skip
    before = {name: getattr(config, name) for name in names}
    for name in names:
        setattr(config, name, share)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(config, name, value)

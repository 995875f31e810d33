"""The table of kinds of checkpoints: how each is recognised, found, loaded, folded and described.

A new kind is a row here and a file beside.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, fields
from pathlib import Path
from typing import Any, cast

from peft import PeftConfig, PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import PreTrainedModel

from adakron_export.adapter.bottleneck.config import BOTTLENECK
from adakron_export.adapter.bottleneck.folding import fold_bottlenecks
from adakron_export.adapter.config import PEFT_TYPE
from adakron_export.adapter.folding import fold as fold_adakron
from adakron_export.adapter.merging import merge
from adakron_export.checkpoints.adapterhub import find_adapterhub, is_adapterhub, load_adapterhub
from adakron_export.checkpoints.adapterhub_setup import describe_setup, find_setup, is_setup, load_setup
from adakron_export.checkpoints.checkpoint import Checkpoint
from adakron_export.checkpoints.peft_folder import find_peft, is_adakron, is_bottleneck, is_peft, load_peft
from adakron_export.checkpoints.plain import find_plain, fold_plain, is_plain_model, load_plain
from adakron_export.checkpoints.reference_loading import find_reference, is_reference, load_reference
from adakron_export.checkpoints.task_model import cache_shapes
from adakron_export.tasks import Task, task_of_architecture

_DESCRIBED = (
    "r", "k", "activation", "kron_order", "num_experts", "scale", "rank_pattern", "layers_to_transform",
)  # fmt: skip
Settings = Mapping[str, Any] | None


@dataclass(frozen=True, slots=True)
class AdapterKind:
    """A row.

    Attributes:
        name: What messages and manifests call it.
        title: What a checkpoint of it is called.
        recognises: Whether a path, with the content of its ``adapter_config.json``, is of it.
        find: The checkpoint of a path, and of a backbone where one is named.
        load: Its eager model, with the adapter unfolded.
        fold: Makes a static module of that model, without anything of PEFT.
        describe: What manifest and `inspect` say of the adapter.
    """

    name: str
    title: str
    recognises: Callable[[Path, Settings], bool]
    find: Callable[[Path, Settings, str | None], Checkpoint]
    load: Callable[[Checkpoint, Task | None], PeftModel | PreTrainedModel]
    fold: Callable[[Any], nn.Module]
    describe: Callable[[Loaded], dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Loaded:
    """A checkpoint that was loaded.

    Attributes:
        checkpoint: Where it lies.
        model: The eager model: PEFT's form of it, or transformers' own where there is no adapter.
        asked: The task that was asked for; ``None`` where nobody did.
    """

    checkpoint: Checkpoint
    model: PeftModel | PreTrainedModel
    asked: Task | None = None

    @property
    def kind(self) -> AdapterKind:
        """Its row of the table."""
        return KINDS[self.checkpoint.kind]

    @property
    def base(self) -> PreTrainedModel:
        """What computes: transformers' model, in which the adapter's layers sit."""
        return base_of(self.model)

    @property
    def task(self) -> Task:
        """What it was loaded for; what writes keeps a cache, unless it was asked not to."""
        task = task_of_architecture(type(self.base).__name__)
        if not task.writes:
            return task
        return self.asked or (Task.TEXT_GENERATION_WITH_PAST if cache_shapes(self.base) else task)

    @property
    def adapts(self) -> bool:
        """Whether there is an adapter."""
        return isinstance(self.model, PeftModel)

    @property
    def peft_model(self) -> PeftModel:
        """PEFT's form of it, of a kind that has one."""
        assert isinstance(self.model, PeftModel)
        return self.model

    def fold(self) -> nn.Module:
        """As a static module; see `fold`."""
        return self.kind.fold(self.model)

    def describe(self) -> dict[str, Any]:
        """What the manifest says of the adapter."""
        return {"kind": self.kind.name, **self.kind.describe(self)}

    @contextlib.contextmanager
    def bare(self) -> Iterator[None]:
        """Within this, the adapter adds nothing; its head stays."""
        layers = [module for module in self.model.modules() if isinstance(module, BaseTunerLayer)]
        for layer in layers:
            layer.enable_adapters(enabled=False)
        try:
            yield
        finally:
            for layer in layers:
                layer.enable_adapters(enabled=True)


def base_of(model: nn.Module) -> PreTrainedModel:
    """The model of transformers in a loaded one."""
    return cast(PreTrainedModel, model.get_base_model() if isinstance(model, PeftModel) else model)


def fold(model: nn.Module) -> nn.Module:
    """A loaded model as a static module: its adapter folded or merged, its dropout gone, nothing of PEFT left.

    Computed in float64 and cast back. What no adapter changes shares its storage with ``model``, which stays as it is.

    Args:
        model: What `load_model` returned, or any `PeftModel` of a method that can be exported.

    Raises:
        ExportError: Not exactly one adapter is active, or it cannot be folded.
    """
    if not isinstance(model, PeftModel):
        return fold_plain(model)
    own = {PEFT_TYPE: "adakron", BOTTLENECK: "bottleneck"}
    return KINDS[own.get(model.active_peft_config.peft_type, "peft")].fold(model)


def _describe_adakron(loaded: Loaded) -> dict[str, Any]:
    settings = loaded.peft_model.active_peft_config.to_dict()
    return {**{key: settings[key] for key in _DESCRIBED}, "peft_type": settings["peft_type"].value}


def _describe_peft(loaded: Loaded) -> dict[str, Any]:
    """The method, its rank, and each setting that is not the default and counts after training."""
    config: PeftConfig = loaded.peft_model.active_peft_config
    settings, common = config.to_dict(), {row.name for row in fields(PeftConfig)}
    own = [row for row in fields(config) if row.name in settings.keys() - common]
    described = {row.name: _plain(settings[row.name]) for row in own if _counts(row, settings[row.name])}
    return {"peft_type": settings["peft_type"].value, **described}


def _counts(row: Field[Any], value: Any) -> bool:
    """Whether a setting says something of a trained adapter that is not so by default."""
    for_training = row.name.endswith("dropout") or (row.name.startswith("init_") and not isinstance(value, str))
    return not for_training and value is not None and (row.name == "r" or value != _default(row))


def _default(row: Field[Any]) -> Any:
    return row.default if row.default_factory is MISSING else row.default_factory()


def _plain(value: Any) -> Any:
    """A setting as plain data; a list that PEFT writes down twice, once."""
    if isinstance(value, set | frozenset):
        return sorted(value)
    if isinstance(value, list) and all(isinstance(part, str) for part in value):
        return list(dict.fromkeys(value))
    return value if isinstance(value, str | int | float | bool | list | dict | None) else str(value)


KINDS = {
    row.name: row
    for row in (
        AdapterKind("adakron", "PEFT checkpoint", is_adakron, find_peft, load_peft, fold_adakron, _describe_adakron),
        AdapterKind(
            "adakron-reference", "file of the reference implementation", is_reference, find_reference, load_reference,
            fold_adakron, _describe_adakron,
        ),
        AdapterKind(
            "bottleneck", "PEFT checkpoint", is_bottleneck, find_peft, load_peft, fold_bottlenecks, _describe_peft,
        ),
        AdapterKind(
            "adapterhub", "checkpoint of AdapterHub", is_adapterhub, find_adapterhub, load_adapterhub, fold,
            _describe_peft,
        ),
        AdapterKind("peft", "PEFT checkpoint", is_peft, find_peft, load_peft, merge, _describe_peft),
        AdapterKind(
            "adapterhub-setup", "setup of AdapterHub", is_setup, find_setup, load_setup, fold_bottlenecks,
            lambda loaded: describe_setup(loaded.checkpoint),
        ),
        AdapterKind("none", "transformers model", is_plain_model, find_plain, load_plain, fold_plain, lambda _: {}),
    )
}  # fmt: skip

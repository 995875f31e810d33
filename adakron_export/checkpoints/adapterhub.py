"""Reads AdapterHub's checkpoints: folders as `save_adapter` of the library `adapters` writes them, without it.

A folder has ``adapter_config.json`` with a ``config`` part, ``adapter.safetensors`` or ``pytorch_adapter.bin``, and
where a head was saved ``head_config.json`` with ``model_head.safetensors`` or ``pytorch_model_head.bin``. Bottlenecks
become this package's own PEFT method. Compacter's weights are sums of Kronecker products (Mahabadi et al., NeurIPS
2021, equations 4 to 6), which are multiplied out in float64.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any

import msgspec
import torch
from peft import PeftModel
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from adakron_export.adapter.bottleneck.config import BottleneckConfig, Position
from adakron_export.adapter.bottleneck.tuner import PREFIX
from adakron_export.adapter.tuner import layer_index
from adakron_export.backbones.table import backbone_row
from adakron_export.checkpoints.backbone import (
    backbone_folder,
    check_head,
    load_backbone,
    load_config,
    load_headed,
)
from adakron_export.checkpoints.checkpoint import ADAPTER_CONFIG, Checkpoint
from adakron_export.checkpoints.flexible_head import HEAD, HEAD_MODULE, head_settings
from adakron_export.checkpoints.peft_folder import (
    adapter_settings,
    beside,
    check_tensors,
    read_safetensors,
    with_adapter,
)
from adakron_export.checkpoints.reference import read_pickled
from adakron_export.errors import AdapterConfigError, CheckpointError, first_few, told_as
from adakron_export.files.records import read_object, record_of
from adakron_export.tasks import Task, infer_task, task_of_architecture

WEIGHTS = ("adapter.safetensors", "pytorch_adapter.bin")
HEAD_CONFIG = "head_config.json"
HEAD_WEIGHTS = ("model_head.safetensors", "pytorch_model_head.bin")
SETUP = "adapter_setup.json"
_REFUSED_KINDS = {
    "lora": "LoRA; save it with PEFT",
    "mtl_lora": "LoRA of several tasks",
    "prefix_tuning": "trained keys and values beside the text's own",
    "prompt_tuning": "trained vectors in front of each text",
    "reft": "ReFT",
    "union": "a union of several methods",
}
_TRAINING = {  # which change nothing of a trained adapter
    "dropout", "init_weights", "init_weights_seed", "learn_phm", "hypercomplex_nonlinearity", "phm_c_init",
    "phm_init_range", "stochastic_depth",
}  # fmt: skip
_SAME = (  # by the same name in our configuration
    "original_ln_before", "original_ln_after", "ln_before", "ln_after", "residual_before_ln",
    "adapter_residual_before_ln", "use_gating", "scaling", "reduction_factor",
)  # fmt: skip
_REFUSED = {"inv_adapter": "invertible adapters", "cross_adapter": "adapters behind cross-attention",
            "invertible_adapter": "invertible adapters"}  # fmt: skip
_ENDS = ("left", "right")
_IGNORED = {"inv_adapter_reduction_factor", "architecture"}
_ADAPTER = re.compile(r"(?P<layer>.*?\.\d+)\.(?P<where>[\w.]+)\.adapters\.(?P<name>[^.]+)\.(?P<part>.+)")
_SHARED = re.compile(r"(.*\.)?shared_parameters\.(?P<name>[^.]+)\.(?P<part>\w+)")


@dataclass(frozen=True, slots=True)
class Settings:
    """AdapterHub's `BnConfig`, as far as it changes what a trained adapter answers; the defaults are that class's."""

    mh_adapter: bool
    output_adapter: bool
    reduction_factor: float | dict[str, float]
    non_linearity: str
    original_ln_before: bool = False
    original_ln_after: bool = True
    ln_before: bool = False
    ln_after: bool = False
    is_parallel: bool = False
    scaling: float | str = 1.0
    use_gating: bool = False
    residual_before_ln: bool | str = True
    adapter_residual_before_ln: bool = False
    leave_out: list[int] = field(default_factory=list)
    phm_layer: bool = False
    phm_dim: int = 4
    phm_rank: int = 1
    phm_bias: bool = True
    factorized_phm_W: bool = True  # noqa: N815 - AdapterHub's name
    shared_W_phm: bool = False  # noqa: N815
    shared_phm_rule: bool = True
    factorized_phm_rule: bool = False

    @property
    def position(self) -> Position:
        """Where adapters sit."""
        if self.mh_adapter and self.output_adapter:
            return Position.BOTH
        return Position.ATTENTION if self.mh_adapter else Position.FFN


def is_adapterhub(_path: Path, settings: Mapping[str, Any] | None) -> bool:
    """Whether a folder holds an adapter of AdapterHub's library: its configuration has a part of its own."""
    return settings is not None and "peft_type" not in settings and "config" in settings


def find_adapterhub(path: Path, settings: Mapping[str, Any] | None, backbone: str | None) -> Checkpoint:
    """The folder and its backbone.

    Raises:
        CheckpointError: The method cannot be exported, or the folder lacks weights or a backbone's name.
        BackboneError: The backbone is not there.
    """
    assert settings is not None
    _settings_of(path, settings)  # refuses at once what cannot be taken
    weights = _first(path, WEIGHTS)
    if weights is None:
        raise CheckpointError(
            f"{path}: neither {' nor '.join(WEIGHTS)} is there; save the adapter with save_adapter()"
        )
    named = backbone or settings.get("model_name")
    if not isinstance(named, str) or not named:
        raise CheckpointError(f"{path}: names no backbone; pass --backbone with its folder or hub id")
    place = beside(path, named)
    return Checkpoint(path, weights, place, backbone_folder(place), "adapterhub")


def _first(path: Path, names: tuple[str, ...]) -> Path | None:
    return next((path / name for name in names if (path / name).is_file()), None)


def _settings_of(path: Path, settings: Mapping[str, Any]) -> Settings:
    """The configuration of bottlenecks, in AdapterHub's own terms.

    Raises:
        CheckpointError: The method is another one, or a setting is not known or impossible.
    """
    file, config = path / ADAPTER_CONFIG, settings["config"]
    if not isinstance(config, dict):
        raise CheckpointError(f"{file}: config is {config!r:.60}; save the adapter with a current release of adapters")
    kind = config.get("architecture")
    if kind is not None:
        raise CheckpointError(
            f"{file}: the adapter is {_REFUSED_KINDS.get(str(kind), repr(kind)[:60])}, which is not read from "
            "AdapterHub's files; bottlenecks and Compacter are"
        )
    refused = next((name for name in _REFUSED if config.get(name)), None)
    if refused is not None:
        raise CheckpointError(f"{file}: {refused} asks for {_REFUSED[refused]}, which are not exported")
    known = {row.name for row in fields(Settings)}
    unknown = sorted(config.keys() - {*known, *_TRAINING, *_REFUSED, *_IGNORED})
    if unknown:
        raise CheckpointError(f"{file}: {first_few(unknown)} is no setting that is known; a newer release saved it")
    try:
        found = record_of(
            {key: value for key, value in config.items() if key in known and value is not None}, Settings
        )
    except ValueError as error:
        raise CheckpointError(f"{file}: not readable ({error})") from error
    if not found.mh_adapter and not found.output_adapter:
        raise CheckpointError(f"{file}: neither mh_adapter nor output_adapter is set, so there is no adapter")
    _config_of(path, found)
    return found


def _config_of(path: Path, settings: Settings) -> BottleneckConfig:
    """The same in ours.

    Raises:
        CheckpointError: A setting is impossible.
    """
    try:
        return BottleneckConfig(
            activation=settings.non_linearity,
            position=str(settings.position),
            parallel=settings.is_parallel,
            inference_mode=True,
            **{name: getattr(settings, name) for name in _SAME},
        )
    except AdapterConfigError as error:
        raise CheckpointError(f"{path / ADAPTER_CONFIG}: {error}") from error


def load_adapterhub(checkpoint: Checkpoint, task: Task | None) -> PeftModel:
    """Load an AdapterHub checkpoint as a PEFT model; errors as of `load_model`."""
    content = adapter_settings(checkpoint.path)
    settings = _settings_of(checkpoint.path, content)
    adapter = _config_of(checkpoint.path, settings)
    head = _Head.read(checkpoint, str(content.get("name")))
    config = load_config(checkpoint)
    model, new = head.model(checkpoint, config, task)
    row = backbone_row(model.config.to_dict())
    names = [name for name, _ in model.named_modules() if row.layer and re.fullmatch(row.layer, name)]
    if settings.leave_out:
        adapter.layers_to_transform = sorted({int(layer_index(name) or 0) for name in names} - {*settings.leave_out})
    adapter.modules_to_save = head.modules or None
    adapter.base_model_name_or_path = checkpoint.backbone
    with told_as(CheckpointError, f"{checkpoint.path / ADAPTER_CONFIG} does not fit the backbone"):
        loaded = with_adapter(model, adapter)
    places = {
        (layer_index(name), place): f"{name}.{row.block_names[place]}"
        for name in names
        for place in ("attention", "ffn")
        if adapter.position in (place, Position.BOTH) and layer_index(name) not in settings.leave_out
    }
    tensors = {**_adapter_tensors(checkpoint, settings, places), **head.tensors}
    tensors = {f"base_model.model.{name}": tensor for name, tensor in tensors.items()}
    check_tensors(checkpoint, expected=get_peft_model_state_dict(loaded, save_embedding_layers=False), found=tensors)
    check_head(checkpoint, new, {key.removeprefix("base_model.model.") for key in tensors})
    set_peft_model_state_dict(loaded, tensors)
    return loaded


def _read(file: Path) -> dict[str, Tensor]:
    """The tensors of a file, in float32."""
    tensors = read_safetensors(file) if file.suffix == ".safetensors" else read_pickled(file)
    return {name: tensor.float() for name, tensor in tensors.items()}


@dataclass(frozen=True, slots=True)
class _HeadFile:
    """What is read of ``head_config.json``."""

    config: dict[str, Any] | None = None
    model_class: str = ""
    name: str | None = None
    num_labels: Annotated[int, msgspec.Meta(gt=0, le=100_000)] | None = None
    label2id: dict[str, int] | None = None


@dataclass(frozen=True, slots=True)
class _Head:
    """The head of a checkpoint: AdapterHub's own, one of transformers, or none.

    Attributes:
        settings: A flexible head's settings; ``None`` for any other.
        task: What it is for; ``None`` where there is none.
        tensors: Its weights, by the names that they have in the model.
        num_labels: How many outputs it has, where that is said.
        label2id: What they are called, where that is said.
    """

    settings: dict[str, Any] | None = None
    task: Task | None = None
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    num_labels: int | None = None
    label2id: Mapping[str, int] | None = None

    @classmethod
    def read(cls, checkpoint: Checkpoint, name: str) -> _Head:
        """Read it, if there is one.

        Raises:
            CheckpointError: The head cannot be read, or is of a kind that is not exported.
        """
        file, weights = checkpoint.path / HEAD_CONFIG, _first(checkpoint.path, HEAD_WEIGHTS)
        if weights is None:
            return cls()
        if not file.is_file():
            raise CheckpointError(f"{checkpoint.path}: {weights.name} has no {HEAD_CONFIG} beside it")
        try:
            content, known = read_object(file), {row.name for row in fields(_HeadFile)}
            found = record_of({key: value for key, value in content.items() if key in known}, _HeadFile)
        except ValueError as error:
            raise CheckpointError(f"{file}: not readable ({error})") from error
        tensors = _read(weights)
        if not found.config:
            task = task_of_architecture(found.model_class)
            return cls(None, task, tensors, found.num_labels, found.label2id)
        settings = head_settings(found.config, str(file))
        prefix = f"heads.{found.name or name}."
        foreign = [key for key in tensors if not key.startswith(prefix)]
        if foreign:
            raise CheckpointError(f"{weights}: {first_few(foreign)} is not of the head {prefix[6:-1]!r}")
        named = {f"{HEAD_MODULE}.{key.removeprefix(prefix)}": tensor for key, tensor in tensors.items()}
        return cls(found.config, settings.task, named, settings.num_labels, settings.label2id)

    @property
    def modules(self) -> list[str]:
        """The modules that it is made of."""
        return sorted({name.partition(".")[0] for name in self.tensors})

    def model(
        self, checkpoint: Checkpoint, config: PretrainedConfig, task: Task | None
    ) -> tuple[PreTrainedModel, set[str]]:
        """The backbone with a head of this form, and the parameters that its files do not have."""
        self._set_labels(config)
        wanted = task or self.task or infer_task(config)
        if self.settings is None or wanted is not self.task:
            if self.settings is not None:
                raise CheckpointError(f"{checkpoint.path}: its head is for {self.task}; leave --task out")
            return load_backbone(checkpoint.backbone, checkpoint.backbone_folder, config, wanted)
        setattr(config, HEAD, self.settings)
        return load_headed(checkpoint, config, wanted)

    def _set_labels(self, config: PretrainedConfig) -> None:
        if self.num_labels is not None and self.task is not Task.QUESTION_ANSWERING:
            config.num_labels = self.num_labels
        if self.label2id:
            config.label2id = dict(self.label2id)
            config.id2label = {index: label for label, index in self.label2id.items()}
        if self.settings is not None and "multilabel" in str(self.settings["head_type"]):
            config.problem_type = "multi_label_classification"


def _adapter_tensors(
    checkpoint: Checkpoint, settings: Settings, places: Mapping[tuple[int | None, str], str]
) -> dict[str, Tensor]:
    """The adapters' weights, by the names that our layers give them; each tensor of the file is used once.

    Args:
        checkpoint: The checkpoint.
        settings: What its configuration says.
        places: The projection of each adapter, by its layer, and whether it is behind attention or the FFN.
    """
    tensors = _read(checkpoint.weights)
    parts: dict[str, dict[str, Tensor]] = {module: {} for module in places.values()}
    shared: dict[str, Tensor] = {}
    unknown = []
    for key, tensor in tensors.items():
        found, common = _ADAPTER.fullmatch(key), _SHARED.fullmatch(key)
        module = places.get((layer_index(f"{found['layer']}."), _behind(found["where"]))) if found else None
        if found and module is not None:
            parts[module][found["part"]] = tensor
        elif common:
            shared[common["part"]] = tensor
        else:
            unknown.append(key)
    if unknown:
        raise CheckpointError(
            f"{checkpoint.weights}: {first_few(unknown)} is no part of a bottleneck that is known here"
        )
    result: dict[str, Tensor] = {}
    for module, own in parts.items():
        reader = _Parts(f"{checkpoint.weights}: {module}", own, shared, settings)
        result |= {f"{module}.{PREFIX}{name}": tensor for name, tensor in reader.adapter().items()}
    return result


def _behind(where: str) -> str:
    """What an adapter stands behind, by the module that the file names."""
    if "cross" in where:
        return "cross-attention"
    return "attention" if "attention" in where else "ffn"


class _Parts:
    """The tensors of one adapter, each of which is taken once."""

    def __init__(
        self, where: str, own: Mapping[str, Tensor], shared: Mapping[str, Tensor], settings: Settings
    ) -> None:
        self._where, self._own, self._shared, self._settings = where, dict(own), shared, settings

    def adapter(self) -> dict[str, Tensor]:
        """The weights of one bottleneck, by the names that they have in our layer.

        Raises:
            CheckpointError: Some lack, or are left over.
        """
        settings, found = self._settings, dict[str, Tensor]()
        if settings.ln_before:
            found |= {f"norm_before.{part}": self._norm_before(part) for part in ("weight", "bias")}
        found |= self._projection("down", f"adapter_down.{1 if settings.ln_before else 0}")
        found |= self._projection("up", "adapter_up")
        for wanted, ours, theirs in (("ln_after", "norm_after", "adapter_norm_after"), ("use_gating", "gate", "gate")):
            if getattr(settings, wanted):
                found |= {f"{ours}.{part}": self._take(f"{theirs}.{part}") for part in ("weight", "bias")}
        if isinstance(settings.scaling, str):
            found["scaling"] = self._take("scaling")
        if self._own:
            raise CheckpointError(f"{self._where}: {first_few(sorted(self._own))} is left over")
        return found

    def _take(self, name: str) -> Tensor:
        if name not in self._own:
            raise CheckpointError(f"{self._where}: {name} is missing")
        return self._own.pop(name)

    def _norm_before(self, part: str) -> Tensor:
        """The file has it twice: by its name, and as the first of the layers that lead down."""
        named = self._take(f"adapter_norm_before.{part}")
        if not self._take(f"adapter_down.0.{part}").equal(named):
            raise CheckpointError(f"{self._where}: its LayerNorm is there twice, with different numbers")
        return named

    def _projection(self, ours: str, theirs: str) -> dict[str, Tensor]:
        if not self._settings.phm_layer:
            return {f"{ours}.{part}": self._take(f"{theirs}.{part}") for part in ("weight", "bias")}
        settings = self._settings
        weight = self._factor(
            f"W_{ours}" if settings.shared_W_phm else f"{theirs}.W",
            is_shared=settings.shared_W_phm, factorised=settings.factorized_phm_W,
        )  # fmt: skip
        rule = self._factor(
            "phm_rule" if settings.shared_phm_rule else f"{theirs}.phm_rule",
            is_shared=settings.shared_phm_rule, factorised=settings.factorized_phm_rule,
        )  # fmt: skip
        if rule.shape[0] != weight.shape[0]:
            raise CheckpointError(f"{self._where}: {len(rule)} rules for {len(weight)} weights")
        product = sum((torch.kron(a, b) for a, b in zip(rule, weight, strict=True)), torch.zeros(()).double())
        bias = self._take(f"{theirs}.b") if self._settings.phm_bias else torch.zeros(product.shape[1])
        return {f"{ours}.weight": product.T.float().contiguous(), f"{ours}.bias": bias}

    def _factor(self, name: str, *, is_shared: bool, factorised: bool) -> Tensor:
        """One side of the Kronecker products, ``[n, a, b]``, in float64."""
        if factorised:
            left, right = (self._factor(f"{name}_{end}", is_shared=is_shared, factorised=False) for end in _ENDS)
            if (left.shape[0], left.shape[2]) != (right.shape[0], right.shape[1]):
                raise CheckpointError(f"{self._where}: {name} has factors that do not fit")
            return torch.bmm(left, right)
        if not is_shared:
            found = self._take(name)
        elif name in self._shared:
            found = self._shared[name]
        else:
            raise CheckpointError(f"{self._where}: the shared {name} is missing")
        if found.dim() != 3:
            raise CheckpointError(f"{self._where}: {name} has {found.dim()} axes; it must have 3")
        return found.double()

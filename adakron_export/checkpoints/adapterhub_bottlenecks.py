"""AdapterHub's bottlenecks, Compacter's among them, in our own terms.

Compacter's weights are sums of Kronecker products (Mahabadi et al., NeurIPS 2021, equations 4 to 6), which are
multiplied out in float64.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from adakron_export.adapter.bottleneck.config import BottleneckConfig, Position
from adakron_export.adapter.bottleneck.tuner import PREFIX
from adakron_export.adapter.tuner import layer_index
from adakron_export.backbones.table import backbone_row
from adakron_export.checkpoints.adapterhub_settings import settings_as
from adakron_export.checkpoints.checkpoint import ADAPTER_CONFIG
from adakron_export.errors import AdapterConfigError, CheckpointError, first_few

_TRAINING = {  # which change nothing of a trained adapter
    "dropout", "init_weights", "init_weights_seed", "learn_phm", "hypercomplex_nonlinearity", "phm_c_init",
    "phm_init_range", "stochastic_depth",
}  # fmt: skip
_SAME = (  # by the same name in our configuration
    "original_ln_before", "original_ln_after", "ln_before", "ln_after", "residual_before_ln",
    "adapter_residual_before_ln", "use_gating", "scaling", "reduction_factor",
)  # fmt: skip
_REFUSED = {
    "cross_adapter": "adapters behind cross-attention",
    "invertible_adapter": "invertible adapters in the form of the library's first release",
}
_COUPLING = {"F.0": "f_in", "F.2": "f_out", "G.0": "g_in", "G.2": "g_out"}
_INVERTIBLE = re.compile(r"(.*\.)?invertible_adapters\.[^.]+\.(?P<part>[FG]\.[02])\.(?P<kind>weight|bias)")
_LARGEST = 2**27  # numbers of a weight that is multiplied out
_ENDS = ("left", "right")
_ADAPTER = re.compile(r"(?P<layer>.*?\.\d+)\.(?P<where>[\w.]+)\.adapters\.(?P<name>[^.]+)\.(?P<part>.+)")
_SHARED = re.compile(r"(.*\.)?shared_parameters\.(?P<name>[^.]+)\.(?P<part>\w+)")


@dataclass(frozen=True, slots=True)
class BottleneckSettings:
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
    inv_adapter: str | None = None
    inv_adapter_reduction_factor: float | None = None
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


def bottleneck_settings(path: Path, config: Mapping[str, Any]) -> BottleneckSettings:
    """The configuration of bottlenecks, in AdapterHub's own terms.

    Raises:
        CheckpointError: The method is another one, or a setting is not known or impossible.
    """
    found = settings_as(BottleneckSettings, path, config, refused=_REFUSED, ignored={*_TRAINING, "architecture"})
    if not found.mh_adapter and not found.output_adapter:
        raise CheckpointError(
            f"{path / ADAPTER_CONFIG}: neither mh_adapter nor output_adapter is set, so there is no adapter"
        )
    _config_of(path, found)
    return found


def _config_of(path: Path, settings: BottleneckSettings) -> BottleneckConfig:
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
            invertible=settings.inv_adapter,
            invertible_reduction_factor=settings.inv_adapter_reduction_factor or 2.0,
            **{name: getattr(settings, name) for name in _SAME},
        )
    except AdapterConfigError as error:
        raise CheckpointError(f"{path / ADAPTER_CONFIG}: {error}") from error


def bottleneck_adapter_of(
    path: Path, config: Mapping[str, Any], model: PreTrainedModel, tensors: Mapping[str, Tensor]
) -> tuple[BottleneckConfig, dict[str, Tensor]]:
    """An adapter of a folder, for a backbone.

    Args:
        path: The folder.
        config: The configuration, in AdapterHub's terms.
        model: The backbone.
        tensors: The adapter's weights, in AdapterHub's names.

    Returns:
        Our configuration, and the weights in our names.

    Raises:
        CheckpointError: A setting is impossible, or the weights do not fit.
    """
    settings = bottleneck_settings(path, config)
    adapter, row = _config_of(path, settings), backbone_row(model.config.to_dict())
    names = [name for name, _ in model.named_modules() if row.layer and re.fullmatch(row.layer, name)]
    if settings.leave_out:
        adapter.layers_to_transform = sorted({int(layer_index(name) or 0) for name in names} - {*settings.leave_out})
    places = {
        (layer_index(name), place): f"{name}.{row.block_names[place]}"
        for name in names
        for place in ("attention", "ffn")
        if adapter.position in (place, Position.BOTH) and layer_index(name) not in settings.leave_out
    }
    invertible = {key: found for key in tensors if (found := _INVERTIBLE.fullmatch(key)) and settings.inv_adapter}
    embeddings = next((name for name, _ in model.named_modules() if name.rpartition(".")[2] == "embeddings"), "")
    coupling = {
        f"{embeddings}.{PREFIX}{_COUPLING[found['part']]}.{found['kind']}": tensors[key]
        for key, found in invertible.items()
    }
    others = {key: tensor for key, tensor in tensors.items() if key not in invertible}
    return adapter, {**_adapter_tensors(str(path), others, settings, places), **coupling}


def _adapter_tensors(
    where: str,
    tensors: Mapping[str, Tensor],
    settings: BottleneckSettings,
    places: Mapping[tuple[int | None, str], str],
) -> dict[str, Tensor]:
    """The adapters' weights, by the names that our layers give them; each tensor of the file is used once.

    Args:
        where: The folder, for messages.
        tensors: The weights, in AdapterHub's names.
        settings: What the configuration says.
        places: The projection of each adapter, by its layer, and whether it is behind attention or the FFN.
    """
    parts: dict[str, dict[str, Tensor]] = {module: {} for module in places.values()}
    shared: dict[str, Tensor] = {}
    unknown = []
    for key, tensor in tensors.items():
        found, common = _ADAPTER.fullmatch(key), _SHARED.fullmatch(key)
        module = places.get((layer_index(f"{found['layer']}."), behind(found["where"]))) if found else None
        if found and module is not None:
            parts[module][found["part"]] = tensor
        elif common:
            shared[common["part"]] = tensor
        else:
            unknown.append(key)
    if unknown:
        raise CheckpointError(f"{where}: {first_few(unknown)} is no part of a bottleneck that is known")
    result: dict[str, Tensor] = {}
    used: set[str] = set()
    for module, own in parts.items():
        reader = _Parts(f"{where}: {module}", own, shared, settings)
        result |= {f"{module}.{PREFIX}{name}": tensor for name, tensor in reader.adapter().items()}
        used |= reader.used
    if shared.keys() - used:
        raise CheckpointError(f"{where}: the shared {first_few(sorted(shared.keys() - used))} is left over")
    return result


def behind(where: str) -> str:
    """What an adapter stands behind, by the module that the file names."""
    if "cross" in where:
        return "cross-attention"
    return "attention" if "attention" in where or "attn" in where else "ffn"


class _Parts:
    """The tensors of one adapter, each of which is taken once."""

    def __init__(
        self, where: str, own: Mapping[str, Tensor], shared: Mapping[str, Tensor], settings: BottleneckSettings
    ) -> None:
        self._where, self._own, self._shared, self._settings = where, dict(own), shared, settings
        self.used: set[str] = set()  # of what is shared

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
        self._check_size(ours, rule.shape[1] * weight.shape[1] * rule.shape[2] * weight.shape[2])
        product = sum((torch.kron(a, b) for a, b in zip(rule, weight, strict=True)), torch.zeros(()).double())
        bias = self._take(f"{theirs}.b") if self._settings.phm_bias else torch.zeros(product.shape[1])
        return {f"{ours}.weight": product.T.float().contiguous(), f"{ours}.bias": bias}

    def _check_size(self, name: str, numbers: int) -> None:
        """Small factors can ask for a product that fills the memory."""
        if numbers > _LARGEST:
            raise CheckpointError(f"{self._where}: {name} would be multiplied out to {numbers:.3g} numbers")

    def _factor(self, name: str, *, is_shared: bool, factorised: bool) -> Tensor:
        """One side of the Kronecker products, ``[n, a, b]``, in float64."""
        if factorised:
            left, right = (self._factor(f"{name}_{end}", is_shared=is_shared, factorised=False) for end in _ENDS)
            if (left.shape[0], left.shape[2]) != (right.shape[0], right.shape[1]):
                raise CheckpointError(f"{self._where}: {name} has factors that do not fit")
            self._check_size(name, left.shape[0] * left.shape[1] * right.shape[2])
            return torch.bmm(left, right)
        if not is_shared:
            found = self._take(name)
        elif name in self._shared:
            found = self._shared[name]
            self.used.add(name)
        else:
            raise CheckpointError(f"{self._where}: the shared {name} is missing")
        if found.dim() != 3:
            raise CheckpointError(f"{self._where}: {name} has {found.dim()} axes; it must have 3")
        return found.double()

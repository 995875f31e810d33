"""The table of methods that are trained: each one's configuration, made of a recipe."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from peft import LoraConfig, PeftConfig

from adakron_export.adapter.bottleneck.config import BottleneckConfig
from adakron_export.adapter.bottleneck.tuner import PREFIX as BOTTLENECK_PREFIX
from adakron_export.adapter.config import AdaKronConfig
from adakron_export.adapter.tuner import PREFIX as ADAKRON_PREFIX
from adakron_export.training.recipe import METHOD_SETTINGS, Recipe


@dataclass(frozen=True, slots=True)
class Method:
    """A row.

    Attributes:
        name: What a recipe calls it.
        title: What a model card calls it.
        prefix: How the names of its parameters begin.
        configure: Makes its configuration of a recipe, and of what is the same for all.
    """

    name: str
    title: str
    prefix: str
    configure: Callable[[Recipe, dict[str, Any]], PeftConfig]


def _adakron(recipe: Recipe, common: dict[str, Any]) -> PeftConfig:
    return AdaKronConfig(
        r=recipe.r or 48, k=recipe.k, num_experts=recipe.num_experts, kron_order=recipe.kron_order, **common
    )


def _bottleneck(recipe: Recipe, common: dict[str, Any]) -> PeftConfig:
    return BottleneckConfig(
        r=recipe.r,
        reduction_factor=recipe.reduction_factor,
        position=recipe.position,
        parallel=recipe.parallel,
        activation=recipe.activation,
        scaling=recipe.scaling,
        original_ln_before=recipe.original_ln_before,
        **common,
    )


def _lora(recipe: Recipe, common: dict[str, Any]) -> PeftConfig:
    r = recipe.r or 8
    return LoraConfig(r=r, lora_alpha=recipe.lora_alpha or 2 * r, **common)


METHODS = {
    row.name: row
    for row in (
        Method("adakron", "AdaKron adapters", ADAKRON_PREFIX, _adakron),
        Method("bottleneck", "bottleneck adapters", BOTTLENECK_PREFIX, _bottleneck),
        Method("lora", "LoRA", "lora_", _lora),
    )
}


def adapter_config(recipe: Recipe, common: dict[str, Any]) -> PeftConfig:
    """The configuration of the recipe's method.

    Args:
        recipe: The recipe.
        common: Settings that PEFT's configurations share: layers, task, modules that are saved whole.

    Raises:
        AdapterConfigError: A setting is impossible.
    """
    return METHODS[recipe.method].configure(recipe, common)


def described(recipe: Mapping[str, Any]) -> str:
    """The method of a recipe as plain data, and its size, for a model card."""
    row = METHODS[recipe.get("method", "adakron")]
    if row.name == "adakron":
        sizes = {"r": recipe["r"] or 48, "k": recipe["k"]}
    else:
        sizes = {name: recipe.get(name) for name in ("r", *METHOD_SETTINGS[row.name])}
    shown = ", ".join(f"{name}={value}" for name, value in sizes.items() if value is not None)
    return f"{row.title} ({shown})" if shown else row.title


def is_adapter(parameter: str) -> bool:
    """Whether a parameter belongs to an adapter of one of these methods."""
    return any(f".{row.prefix}" in parameter for row in METHODS.values())

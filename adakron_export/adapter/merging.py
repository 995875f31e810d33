"""Folds PEFT's own methods: their adapters are merged into the weights, and nothing of PEFT is left."""

from __future__ import annotations

import copy
from typing import cast

from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import ModulesToSaveWrapper
from torch import nn

from adakron_export.adapter.folding import active_adapter, put, shared_memo, without_dropout
from adakron_export.errors import ExportError, first_few, told_as

_PROMPTS = "puts trained vectors in front of each text"
_ATTENDED = "lets attention read trained keys and values beside the text's own"
UNMERGEABLE = {
    "PROMPT_TUNING": _PROMPTS,
    "MULTITASK_PROMPT_TUNING": _PROMPTS,
    "P_TUNING": _PROMPTS,
    "CPT": _PROMPTS,
    "PREFIX_TUNING": _ATTENDED,
    "CARTRIDGE": _ATTENDED,
    "ADAPTION_PROMPT": _ATTENDED,
    "XLORA": "weighs its experts anew for each token",
    "LILY": "chooses its experts anew for each token",
    "POLY": "mixes its modules by a task id that comes with each text",
    "SHADOW": "runs a second network beside the backbone",
}


def merge(model: PeftModel) -> nn.Module:
    """The model without PEFT: the active adapter merged into the weights, dropout gone.

    Computed in float64 and cast back. What no adapter touches shares its storage with ``model``, which stays as it is.
    A weight that a module without an adapter shares, as a head its embedding, is untied before: only the adapted one
    changes.

    Args:
        model: The loaded model.

    Raises:
        ExportError: Not exactly one adapter is active, or its method does not merge.
    """
    adapter = active_adapter(model)
    method = model.active_peft_config.peft_type.value
    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    adapted = {id(tensor) for layer in layers for tensor in (*layer.parameters(), *layer.buffers())}  # type: ignore[attr-defined]
    merged: PeftModel = copy.deepcopy(model, shared_memo(model, without=adapted))
    for name, module in list(merged.named_modules()):  # before PEFT does, which cannot with every method
        if isinstance(module, ModulesToSaveWrapper):
            put(merged, name, module.modules_to_save[adapter])
    for layer in [module for module in merged.modules() if isinstance(module, BaseTunerLayer)]:
        _own_weights(layer.get_base_layer())
        cast(nn.Module, layer).double()
    with told_as(ExportError, f"a {method} adapter cannot be merged into its backbone, which an export needs"):
        plain = cast(nn.Module, merged.merge_and_unload(safe_merge=True))
    left = [name for name, module in plain.named_modules() if isinstance(module, BaseTunerLayer)]
    if left:
        raise ExportError(f"a {method} adapter cannot be merged into {first_few(left)}")
    plain.to(next(model.parameters()).dtype)
    return without_dropout(plain.requires_grad_(requires_grad=False))


def _own_weights(module: nn.Module) -> None:
    """Give a module weights that no other one has."""
    for part in module.modules():
        for name, parameter in part.named_parameters(recurse=False):
            part._parameters[name] = nn.Parameter(parameter.detach().clone(), requires_grad=False)

"""What a bank takes of a loaded adapter, and the module that a bank's graph is captured from."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from peft import PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import ModulesToSaveWrapper
from torch import Tensor, nn

from adakron_export.adapter.bottleneck.config import BOTTLENECK, OPERATOR_ACTIVATIONS, BottleneckConfig
from adakron_export.adapter.bottleneck.folding import fold_bottlenecks, scaled_weights
from adakron_export.adapter.bottleneck.invertible import InvertibleLayer
from adakron_export.adapter.bottleneck.layer import BottleneckLayer, Order
from adakron_export.adapter.config import PEFT_TYPE, Activation, KronOrder
from adakron_export.adapter.folding import (
    KronAdapter,
    active_adapter,
    folded_weights,
    put,
    shared_memo,
    without_dropout,
)
from adakron_export.adapter.layer import AdaKronLayer
from adakron_export.adapter.lora import LowRankAdapter, check_low_rank, lora_weights
from adakron_export.checkpoints.flexible_head import HEAD, HeadSettings, head_settings
from adakron_export.errors import ExportError, first_few
from adakron_export.graph.layout import BankLayout, Form, Kind
from adakron_export.graph.stacks import AdapterWeights

_NAMES: Mapping[Any, Kind] = {PEFT_TYPE: "adakron", BOTTLENECK: "bottleneck", "LORA": "lora"}


def bank_weights(model: nn.Module) -> AdapterWeights:
    """What a bank takes of a loaded model.

    Raises:
        ExportError: Its adapter is none that a bank can hold.
    """
    if not isinstance(model, PeftModel):
        raise ExportError("it has no adapter")
    adapter = active_adapter(model)
    method = model.peft_config[adapter].peft_type
    if method not in _NAMES:
        raise ExportError(
            f"its adapter is {getattr(method, 'value', method)}; a bank holds AdaKron, bottlenecks or LoRA"
        )
    kind = _NAMES[method]
    weights = _READ[kind](model, adapter)
    heads = {
        f"{name}.{part}": tensor
        for name, module in saved_modules(model).items()
        for part, tensor in module.named_parameters()
    }
    tensors = {name: tensor.detach().float().contiguous().numpy() for name, tensor in {**weights[0], **heads}.items()}
    return AdapterWeights(kind, tensors, head_form=_head_form(model), **weights[1])


def saved_modules(model: PeftModel) -> dict[str, nn.Module]:
    """The modules that PEFT saves with the active adapter, by the names that they have in the folded model."""
    adapter = active_adapter(model)
    return {
        name: module.modules_to_save[adapter]
        for name, module in model.get_base_model().named_modules()
        if isinstance(module, ModulesToSaveWrapper)
    }


def with_places(model: PeftModel, layout: BankLayout) -> nn.Module:
    """The model with an adapter of zeros at each place of a bank, and nothing of PEFT; it shares the storage.

    Args:
        model: A loaded model of the bank's backbone, whatever its own adapter's places.
        layout: What the graph is to take.

    Raises:
        ExportError: The model has no such place.
    """
    plain = _without_adapter(model)
    modules = dict(plain.named_modules())
    lacking = [place.module for place in layout.places if place.module not in modules]
    if lacking:
        raise ExportError(f"the bank has adapters of {first_few(lacking)}, which this {type(plain).__name__} lacks")
    if layout.kind == "bottleneck":
        return _with_bottlenecks(plain, layout)
    for place in layout.places:
        projection = modules[place.module]
        if layout.kind == "lora":
            module: nn.Module = LowRankAdapter(projection, layout.width, reads=place.reads, hidden=place.hidden)
        else:
            module = _kron_of_zeros(projection, layout, place.hidden)
        put(plain, place.module, module)
    return without_dropout(plain)


def _without_adapter(model: PeftModel) -> nn.Module:
    adapter, base = active_adapter(model), model.get_base_model()
    plain = copy.deepcopy(base, shared_memo(base))
    plain.__dict__.pop("peft_config", None)  # by which PEFT takes it for one with an adapter
    for name, module in list(plain.named_modules()):
        if isinstance(module, BottleneckLayer) and module.around is not None:
            module.around.release()
        if isinstance(module, ModulesToSaveWrapper):
            put(plain, name, module.modules_to_save[adapter])
        elif isinstance(module, BaseTunerLayer):
            put(plain, name, module.get_base_layer())
    return cast(nn.Module, plain)


def _kron_of_zeros(projection: nn.Module, layout: BankLayout, hidden: int) -> KronAdapter:
    width, k = layout.width, layout.k
    shapes = {
        "a1_weight": (hidden, width), "a1_bias": (width,), "a2_weight": (hidden, k), "a2_bias": (k,),
        "up_weight": (width * k, hidden),
    }  # fmt: skip
    zeros = {name: cast(Tensor, projection.weight).new_zeros(shape) for name, shape in shapes.items()}
    return KronAdapter(projection, zeros, order=KronOrder.A2_A1, activation=Activation(layout.activations[0]))


def _with_bottlenecks(plain: nn.Module, layout: BankLayout) -> nn.Module:
    form = layout.form
    residuals: dict[str, bool | str] = {"output": True, "read": False, "sum": "post_add"}
    config = BottleneckConfig(
        r=layout.width,
        activation=layout.activations[0],
        target_modules=[place.module for place in layout.places],
        parallel=form.reads == "stream",
        original_ln_before=form.reads == "sum",
        original_ln_after=form.norm_after,
        residual_before_ln=residuals[form.adds_to],
    )
    with torch.random.fork_rng():
        return fold_bottlenecks(get_peft_model(plain, config), biases=False)


def _read_adakron(model: PeftModel, adapter: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    found: dict[str, Tensor] = {}
    for name, layer in _layers(model, AdaKronLayer):
        if adapter in layer.settings:
            found |= {f"{name}.{part}": tensor for part, tensor in folded_weights(layer, adapter).items()}
    settings = model.active_peft_config
    return found, {"activation": str(settings.activation), "order": str(settings.kron_order)}


def _read_bottlenecks(model: PeftModel, adapter: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    if any(adapter in layer.activations for _, layer in _layers(model, InvertibleLayer)):
        raise ExportError("it has a coupling block behind the embeddings (invertible)")
    settings = model.active_peft_config
    own = [name for name in ("ln_before", "ln_after", "use_gating") if getattr(settings, name)]
    if own:
        raise ExportError(f"its adapters have more than down and up ({own[0]})")
    if settings.activation not in OPERATOR_ACTIVATIONS:
        raise ExportError(
            f"its activation is {settings.activation}; a bank computes {', '.join(OPERATOR_ACTIVATIONS)}"
        )
    found: dict[str, Tensor] = {}
    for name, layer in _layers(model, BottleneckLayer):
        if adapter in layer.settings:
            found |= {f"{name}.{part}": tensor for part, tensor in scaled_weights(layer.adapter(adapter)).items()}
    return found, {"activation": settings.activation, "form": form_of(Order(settings))}


def _read_lora(model: PeftModel, adapter: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    check_low_rank(model.active_peft_config)
    found: dict[str, Tensor] = {}
    for name, layer in _layers(model, LoraLayer):
        if adapter in layer.lora_A or adapter in layer.lora_embedding_A:
            found |= {f"{name}.{part}": tensor for part, tensor in lora_weights(name, layer, adapter).items()}
    return found, {"activation": "identity"}


_READ: dict[Kind, Callable[[PeftModel, str], tuple[dict[str, Tensor], dict[str, Any]]]] = {
    "adakron": _read_adakron, "bottleneck": _read_bottlenecks, "lora": _read_lora,
}  # fmt: skip


def form_of(order: Order) -> Form:
    """How a bottleneck with an order of AdapterHub's sits in its layer."""
    if not order.reads_sum:
        return Form("stream" if order.parallel else "output", "output", order.norm_after)
    adds_to = {True: "output", False: "read", "post_add": "sum"}[order.residual]
    return Form("sum", adds_to, order.norm_after)  # type: ignore[arg-type]


def _layers(model: PeftModel, kind: type) -> list[tuple[str, Any]]:
    return [(name, module) for name, module in model.get_base_model().named_modules() if isinstance(module, kind)]


def _head_form(model: PeftModel) -> str:
    """What is fixed of a head of AdapterHub's: all but its labels."""
    settings = getattr(model.get_base_model().config, HEAD, None)
    if settings is None:
        return ""
    head: HeadSettings = head_settings(settings, HEAD)
    pooled = ", pooled" if head.use_pooler else ""
    return f"{head.head_type}, {head.layers} layers, {head.activation_function}{pooled}"

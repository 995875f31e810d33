"""The bottleneck layer: a projection, and the adapters that change what it puts out."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.nn import functional
from transformers.activations import ACT2FN

from adakron_export.adapter.bottleneck.config import LEARNED, BottleneckConfig
from adakron_export.adapter.bottleneck.fusion import Fusion
from adakron_export.adapter.layer import ACTIVATIONS
from adakron_export.errors import AdapterUseError

CANNOT_MERGE = (
    "bottleneck adapters are non-linear and cannot be merged into the weights; unload() gives the backbone without "
    "them, and `adakron-export onnx` folds them into a graph"
)


def activate(name: str) -> Callable[[Tensor], Tensor]:
    """The function of an activation's stored name."""
    own: dict[str, Callable[[Tensor], Tensor]] = {
        **{activation.value: function for activation, function in ACTIVATIONS.items()},
        "leaky_relu": functional.leaky_relu,
        "identity": lambda value: value,
    }
    return own[name] if name in own else cast("Callable[[Tensor], Tensor]", ACT2FN[name])


class Held:
    """What one module of a layer leaves for another: a tensor for each thread, taken once.

    It is no module, so that copying a model copies it along, and tracing takes no notice of it.
    """

    def __init__(self) -> None:
        self._tensors: dict[int, Tensor] = {}

    def put(self, tensor: Tensor) -> None:
        """Leave a tensor."""
        self._tensors[threading.get_ident()] = tensor

    def take(self) -> Tensor | None:
        """Take it away."""
        return self._tensors.pop(threading.get_ident(), None)


class _KeepInput:
    """A hook that leaves the input of a module."""

    def __init__(self, held: Held) -> None:
        self.held = held

    def __call__(self, _module: nn.Module, args: tuple[Any, ...]) -> None:
        self.held.put(args[0])


class _Replace:
    """A hook that gives out what was left, in the place of a module's own output."""

    def __init__(self, held: Held) -> None:
        self.held = held

    def __call__(self, _module: nn.Module, _args: Any, output: Tensor) -> Tensor:
        left = self.held.take()
        return output if left is None else left


class Surroundings:
    """What an adapter needs of its layer beside the projection.

    Attributes:
        stream: The stream that the projection's output is added to, left by the module that reads it.
        norm: The LayerNorm of the sum; empty where the backbone has none.
        instead: What that LayerNorm gives out in the place of its own.
    """

    def __init__(self, source: nn.Module, norm: nn.Module | None) -> None:
        self.stream, self.instead = Held(), Held()
        self.norm = () if norm is None else (norm,)  # in a tuple, or it would be a second name of the same module
        self._hooks = [source.register_forward_pre_hook(_KeepInput(self.stream))]
        if norm is not None:
            self._hooks.append(norm.register_forward_hook(_Replace(self.instead)))

    def release(self) -> None:
        """Let the other modules be what they were."""
        for hook in self._hooks:
            hook.remove()


class Order:
    """In which order adapter, residuals and LayerNorms follow one another: AdapterHub's, by its flags."""

    def __init__(self, config: BottleneckConfig) -> None:
        self.parallel = config.parallel
        self.reads_sum = config.original_ln_before and not config.parallel
        self.norm_after = config.original_ln_after
        self.residual = config.residual_before_ln
        self.residual_inside = config.adapter_residual_before_ln and not config.parallel

    def read(self, hidden: Tensor, stream: Tensor | None, norm: nn.Module | None) -> tuple[Tensor, Tensor]:
        """What an adapter reads, and what it is added to."""
        if self.parallel:
            return cast(Tensor, stream), hidden
        if not self.reads_sum:
            return hidden, hidden
        total = hidden + cast(Tensor, stream)
        read = total if norm is None else norm(total)
        return read, {True: hidden, False: read, "post_add": total}[self.residual]

    def add(self, delta: Tensor, residual: Tensor, norm: nn.Module | None) -> Tensor:
        """What the adapter adds, added; ``norm`` is the adapter's own."""
        if norm is None:
            return residual + delta
        return cast(Tensor, norm(residual + delta) if self.residual_inside else norm(delta) + residual)

    def close(self, out: Tensor, stream: Tensor | None, around: Surroundings | None) -> Tensor:
        """What the projection puts out, so that the layer goes on as it should.

        The layer itself adds the stream and applies its LayerNorm: where neither is wanted, they are undone.
        """
        if self.norm_after:
            return out
        assert around is not None
        if around.norm:
            around.instead.put(out)
            return out
        return out - cast(Tensor, stream)


@dataclass(frozen=True, slots=True)
class Bottleneck:
    """One adapter of a layer: down, activation, up, and what its configuration asks for beside."""

    down: nn.Linear
    up: nn.Linear
    order: Order
    activation: str
    scale: Tensor | float
    dropout: nn.Module
    norm_before: nn.LayerNorm | None
    norm_after: nn.LayerNorm | None
    gate: nn.Linear | None

    def projected(self, read: Tensor) -> Tensor:
        """What comes up again, scaled; all ``[batch, tokens, hidden]``."""
        normed = read if self.norm_before is None else self.norm_before(read)
        up: Tensor = self.up(activate(self.activation)(self.down(normed)))
        return up if isinstance(self.scale, float) and self.scale == 1.0 else up * self.scale

    def delta(self, read: Tensor) -> Tensor:
        """What is added, before an own LayerNorm; all ``[batch, tokens, hidden]``."""
        delta = self.dropout(self.projected(read))
        if self.gate is not None:
            delta = delta * torch.sigmoid(self.gate(read)).mean(dim=1, keepdim=True)
        return cast(Tensor, delta)

    def __call__(self, read: Tensor, residual: Tensor) -> Tensor:
        """What the adapter makes of what it reads and what it is added to; it computes in its own dtype."""
        own = self.down.weight.dtype
        out = self.order.add(self.delta(read.to(own)), residual.to(own), self.norm_after)
        return out.to(residual.dtype)


class BottleneckLayer(nn.Module, BaseTunerLayer):  # type: ignore[misc,unused-ignore]
    """The projection behind attention or FFN, with adapters.

    Several active adapters follow one another, as in AdapterHub's `Stack`.

    Args:
        base_layer: The projection.
        hidden: Width of its output.
        around: The rest of its layer; ``None`` where no adapter needs it.
    """

    adapter_layer_names = (
        "bottleneck_down", "bottleneck_up", "bottleneck_norm_before", "bottleneck_norm_after", "bottleneck_gate",
        "bottleneck_scaling",
    )  # fmt: skip
    other_param_names = ("settings", "bottleneck_dropout")
    # What PEFT's base class has, said for the type checker: torch's own answer for any attribute is Tensor or Module.
    active_adapters: list[str]
    get_base_layer: Callable[[], nn.Module]
    set_adapter: Callable[..., None]
    _move_adapter_to_device_of_base_layer: Callable[[str], None]

    def __init__(self, base_layer: nn.Module, *, hidden: int, around: Surroundings | None) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.hidden = hidden
        self.around = around
        self.bottleneck_down, self.bottleneck_up = nn.ModuleDict(), nn.ModuleDict()
        self.bottleneck_norm_before, self.bottleneck_norm_after = nn.ModuleDict(), nn.ModuleDict()
        self.bottleneck_gate, self.bottleneck_dropout = nn.ModuleDict(), nn.ModuleDict()
        self.bottleneck_scaling = nn.ParameterDict()
        self.settings: dict[str, tuple[Order, str, float]] = {}
        self.fusion: Fusion | None = None
        self._disable_adapters = False
        self._active_adapter: list[str] = []
        self.merged_adapters: list[str] = []

    def update_layer(self, adapter_name: str, config: BottleneckConfig, *, width: int) -> None:
        """Add an adapter of a width."""
        up = nn.Linear(width, self.hidden)
        if config.init_weights:
            nn.init.zeros_(up.weight)
            nn.init.zeros_(up.bias)
        self.bottleneck_down[adapter_name] = nn.Linear(self.hidden, width)
        self.bottleneck_up[adapter_name] = up
        if config.ln_before:
            self.bottleneck_norm_before[adapter_name] = nn.LayerNorm(self.hidden)
        if config.ln_after:
            self.bottleneck_norm_after[adapter_name] = nn.LayerNorm(self.hidden)
        if config.use_gating:
            self.bottleneck_gate[adapter_name] = nn.Linear(self.hidden, 1)
        if config.scaling in LEARNED:
            size = self.hidden if config.scaling == "channel" else 1
            self.bottleneck_scaling[adapter_name] = nn.Parameter(torch.ones(size))
        self.bottleneck_dropout[adapter_name] = nn.Dropout(config.dropout) if config.dropout else nn.Identity()
        factor = 1.0 if config.scaling in LEARNED else float(config.scaling)
        self.settings[adapter_name] = (Order(config), config.activation, factor)
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters or [adapter_name], inference_mode=config.inference_mode)

    def adapter(self, name: str) -> Bottleneck:
        """An adapter by name."""
        order, activation, factor = self.settings[name]

        def part(modules: nn.ModuleDict) -> Any:
            return modules[name] if name in modules else None  # noqa: SIM401 - ModuleDict has no get

        scaling = self.bottleneck_scaling
        return Bottleneck(
            down=part(self.bottleneck_down),
            up=part(self.bottleneck_up),
            order=order,
            activation=activation,
            scale=scaling.get(name, factor),
            dropout=part(self.bottleneck_dropout),
            norm_before=part(self.bottleneck_norm_before),
            norm_after=part(self.bottleneck_norm_after),
            gate=part(self.bottleneck_gate),
        )

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:  # noqa: ARG002, RUF100
        """Never: see `CANNOT_MERGE`."""
        raise AdapterUseError(CANNOT_MERGE)

    def unmerge(self) -> None:
        """Never: nothing is merged."""
        raise AdapterUseError(CANNOT_MERGE)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The projection's output, as the active adapters change it."""
        hidden: Tensor = self.base_layer(x, *args, **kwargs)
        stream = self.around.stream.take() if self.around is not None else None
        names = [name for name in self.active_adapters if name in self.settings]
        if self.disable_adapters or not names:
            return hidden
        return composed(hidden, stream, self.around, [self.adapter(name) for name in names], self.fusion)


def composed(
    hidden: Tensor,
    stream: Tensor | None,
    around: Surroundings | None,
    adapters: Sequence[Bottleneck],
    fusion: Fusion | None,
) -> Tensor:
    """What a projection puts out with its adapters, one after the other, or fused.

    Args:
        hidden: What the projection puts out itself.
        stream: The stream that it is added to.
        around: The rest of the layer.
        adapters: The active adapters, in their order.
        fusion: What fuses them.
    """
    norm = around.norm[0] if around is not None and around.norm else None
    last = adapters[-1].order
    if fusion is not None:
        read, residual = last.read(hidden, stream, norm)
        query = hidden if fusion.query_before_ln else read
        hidden = fusion(query, [adapter.projected(read) for adapter in adapters], residual)
    else:
        for adapter in adapters:
            hidden = adapter(*adapter.order.read(hidden, stream, norm))
    return last.close(hidden, stream, around)

"""The AdaKron layer: a projection followed by its adapters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.nn import functional

from adakron_export.adapter.config import Activation, AdaKronConfig, KronOrder
from adakron_export.errors import AdapterUseError

BASE = "__base__"  # PEFT's name for no adapter
CANNOT_MERGE = (
    "AdaKron adapters are non-linear and cannot be merged into the weights; unload() gives the backbone without them, "
    "and `adakron-export onnx` folds them into a graph"
)
ACTIVATIONS = {
    Activation.GELU: functional.gelu,
    Activation.GELU_TANH: lambda value: functional.gelu(value, approximate="tanh"),
    Activation.RELU: functional.relu,
    Activation.SILU: functional.silu,
    Activation.TANH: torch.tanh,
}


def kron_rows(left: Tensor, right: Tensor) -> Tensor:
    """Kronecker product along the last axis.

    Args:
        left: ``[..., a]``.
        right: ``[..., b]``.

    Returns:
        ``[..., a * b]``; entry ``i * b + j`` is ``left[i] * right[j]``.
    """
    return (left.unsqueeze(-1) * right.unsqueeze(-2)).flatten(-2)


def adapter_delta(a1: Tensor, a2: Tensor, *, order: KronOrder, activation: Activation) -> Tensor:
    """What the up-projection reads: ``activation(left (x) right)``, ``[..., r]``.

    Args:
        a1: ``[..., r / k]``.
        a2: ``[..., k]``.
        order: Order of the product: the name of the left factor comes first.
        activation: Applied to the product.
    """
    left, right = (a2, a1) if order is KronOrder.A2_A1 else (a1, a2)
    return ACTIVATIONS[activation](kron_rows(left, right))


class SmallNetwork(nn.Module):
    """A linear layer, or a mixture of them: one drawn per pass in training, their soup at inference.

    The scores are a buffer, not a parameter: random routing gives them no gradient, as in AdaMix
    (Wang et al., EMNLP 2022), so distributed training does not wait for one.

    Args:
        in_features: Width of the input.
        out_features: Width of the output.
        num_experts: Networks in the mixture; 1 has neither an expert axis nor scores.
    """

    expert_scores: Tensor

    def __init__(self, in_features: int, out_features: int, num_experts: int = 1) -> None:
        super().__init__()
        self.num_experts = num_experts
        experts = () if num_experts == 1 else (num_experts,)
        self.weight = nn.Parameter(torch.empty(*experts, out_features, in_features))
        self.bias = nn.Parameter(torch.empty(*experts, out_features))
        if num_experts > 1:
            self.register_buffer("expert_scores", torch.zeros(num_experts))

    def reset_parameters(self) -> None:
        """Draw the weights as `torch.nn.Linear` does and zero the biases."""
        for weight in self.weight.unbind() if self.num_experts > 1 else (self.weight,):
            nn.init.kaiming_uniform_(weight, a=5**0.5)
        nn.init.zeros_(self.bias)
        if self.num_experts > 1:
            nn.init.zeros_(self.expert_scores)

    def soup(self, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
        """The one linear layer that runs at inference: ``[out, in]`` and ``[out]``.

        Args:
            dtype: Where the average is computed; the weights' own by default.
        """
        weight, bias = self.weight.to(dtype), self.bias.to(dtype)
        if self.num_experts == 1:
            return weight, bias
        shares = torch.softmax(self.expert_scores.to(dtype or weight.dtype), dim=0)
        return torch.einsum("e,eoi->oi", shares, weight), torch.einsum("e,eo->o", shares, bias)

    def current(self) -> tuple[Tensor, Tensor]:
        """The linear layer of this pass: a random expert in training, the soup at inference."""
        if self.training and self.num_experts > 1:
            # An index that is a tensor: a number would break compiled graphs.
            drawn = torch.randint(self.num_experts, (1,), device=self.weight.device)
            return self.weight.index_select(0, drawn).squeeze(0), self.bias.index_select(0, drawn).squeeze(0)
        return self.soup()

    def forward(self, hidden: Tensor) -> Tensor:
        """``[..., in]`` to ``[..., out]``."""
        return functional.linear(hidden, *self.current())


class AdaKronLayer(nn.Module, BaseTunerLayer):  # type: ignore[misc,unused-ignore]
    """The FFN's output projection, any module, with adapters on its output.

    Several active adapters add their deltas, as PEFT's other methods do.

    Args:
        base_layer: The projection; only its output is read, so Linear, Conv1D and quantised ones all fit.
        adapter_name: The first adapter.
        config: Its configuration.
        in_features: Width of the projection's input, where it is known.
        hidden: Width of its output.
        r: Width of the Kronecker product in this layer.
    """

    adapter_layer_names = ("adakron_a1", "adakron_a2", "adakron_up")
    other_param_names = ("settings", "scaling", "_scales", "adakron_dropout")
    cast_input_dtype_enabled = True
    # What PEFT's base class has, said for the type checker: torch's own answer for any attribute is Tensor or Module.
    active_adapters: list[str]
    get_base_layer: Callable[[], nn.Module]
    set_adapter: Callable[..., None]
    _move_adapter_to_device_of_base_layer: Callable[[str], None]
    _cast_input_dtype: Callable[[Tensor, torch.dtype], Tensor]

    def __init__(
        self, base_layer: nn.Module, adapter_name: str, config: AdaKronConfig, *, in_features: int | None, hidden: int,
        r: int,
    ) -> None:  # fmt: skip
        super().__init__()
        self.base_layer = base_layer
        self.in_features, self.out_features = in_features, hidden
        self.adakron_a1 = nn.ModuleDict()
        self.adakron_a2 = nn.ModuleDict()
        self.adakron_up = nn.ModuleDict()
        self.adakron_dropout = nn.ModuleDict()
        self.settings: dict[str, tuple[KronOrder, Activation]] = {}
        self.scaling: dict[str, float] = {}
        self._scales: dict[str, float] = {}  # as configured
        self._disable_adapters = False
        self.merged_adapters: list[str] = []
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, config, r=r)

    def update_layer(self, adapter_name: str, config: AdaKronConfig, *, r: int) -> None:
        """Add an adapter.

        It starts as the identity because the up-projection starts at zero. The small networks start as any
        linear layer: were they zero too, the product would have no gradient and nothing would ever learn.

        The biases of the k-wide one start at 1, -1, 1, ...: without biases the product of two linear functions of
        ``hidden`` is the same for ``-hidden``, and training would begin blind to its sign. So the up-projection first
        reads ``gelu(a1)`` and ``gelu(-a1)``, as of a bottleneck adapter, and the product grows out of that.
        """
        self.adakron_a1[adapter_name] = SmallNetwork(self.out_features, r // config.k)
        self.adakron_a2[adapter_name] = SmallNetwork(self.out_features, config.k, config.num_experts)
        self.adakron_up[adapter_name] = SmallNetwork(r, self.out_features)
        self.adakron_dropout[adapter_name] = nn.Dropout(config.dropout) if config.dropout else nn.Identity()
        self.scaling[adapter_name] = self._scales[adapter_name] = config.scale
        self.settings[adapter_name] = (KronOrder(config.kron_order), Activation(config.activation))
        for network in self.networks(adapter_name):
            network.reset_parameters()
        if config.init_weights:
            _, second, up = self.networks(adapter_name)
            nn.init.zeros_(up.weight)
            with torch.no_grad():
                second.bias[..., 0::2] = 1.0
                second.bias[..., 1::2] = -1.0
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def networks(self, adapter_name: str) -> tuple[SmallNetwork, SmallNetwork, SmallNetwork]:
        """The two small networks and the up-projection of an adapter."""
        parts = (self.adakron_a1[adapter_name], self.adakron_a2[adapter_name], self.adakron_up[adapter_name])
        return cast("tuple[SmallNetwork, SmallNetwork, SmallNetwork]", parts)

    def set_scale(self, adapter: str, scale: float) -> None:
        """Multiply what an adapter adds by ``scale``, beside its configured factor; as LoRA's layers have it."""
        if adapter in self.scaling:
            self.scaling[adapter] = scale * self._scales[adapter]

    def scale_layer(self, scale: float) -> None:
        """Multiply what the active adapters add by ``scale`` more."""
        for name in self.active_adapters:
            if name in self.scaling:
                self.scaling[name] *= scale

    def unscale_layer(self, scale: float | None = None) -> None:
        """Take `scale_layer` back, or all such factors."""
        for name in self.active_adapters:
            if name in self.scaling:
                self.scaling[name] = self._scales[name] if scale is None else self.scaling[name] / scale

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:  # noqa: ARG002, RUF100
        """Never: see `CANNOT_MERGE`."""
        raise AdapterUseError(CANNOT_MERGE)

    def unmerge(self) -> None:
        """Never: nothing is merged."""
        raise AdapterUseError(CANNOT_MERGE)

    def delta(self, hidden: Tensor, adapter_name: str) -> Tensor:
        """What one adapter adds to ``hidden``, both ``[batch, tokens, hidden]``."""
        order, activation = self.settings[adapter_name]
        first, second, up = self.networks(adapter_name)
        # Both at once: two narrow products read (and in training, send gradients to) the whole of hidden twice.
        (first_weight, first_bias), (second_weight, second_bias) = first.current(), second.current()
        weight, bias = torch.cat((first_weight, second_weight)), torch.cat((first_bias, second_bias))
        read = self.adakron_dropout[adapter_name](self._cast_input_dtype(hidden, weight.dtype))
        both = functional.linear(read, weight, bias)
        a1, a2 = both.split((len(first_bias), len(second_bias)), dim=-1)  # [batch, tokens, r / k], [batch, tokens, k]
        product = adapter_delta(a1, a2, order=order, activation=activation)  # [batch, tokens, r]
        delta: Tensor = up(product)
        scale = self.scaling[adapter_name]
        return (delta if scale == 1.0 else delta * scale).to(hidden.dtype)

    def forward(self, x: Tensor, *args: Any, adapter_names: Sequence[str] | None = None, **kwargs: Any) -> Tensor:
        """The projection's output plus what the active adapters add.

        Args:
            x: ``[batch, tokens, intermediate]``.
            args: For the projection.
            adapter_names: The adapter of each text instead of the active ones; ``__base__`` for none (PEFT's mixed
                batches).
            kwargs: For the projection.

        Raises:
            AdapterUseError: There are more or fewer names than texts.
        """
        hidden: Tensor = self.base_layer(x, *args, **kwargs)
        if self.disable_adapters:
            return hidden
        if adapter_names is not None:
            return self._mixed(hidden, adapter_names)
        deltas = [self.delta(hidden, name) for name in self.active_adapters if name in self.settings]
        for delta in deltas:
            hidden = hidden + delta
        return hidden

    def _mixed(self, hidden: Tensor, adapter_names: Sequence[str]) -> Tensor:
        if len(hidden) != len(adapter_names):
            raise AdapterUseError(
                f"there are {len(adapter_names)} adapter_names for a batch of {len(hidden)}; each text needs one, "
                f"{BASE!r} for none"
            )
        mixed = hidden.clone()
        for name in dict.fromkeys(adapter_names):
            if name in self.settings:
                rows = torch.tensor([index for index, each in enumerate(adapter_names) if each == name])
                rows = rows.to(hidden.device)
                mixed[rows] += self.delta(hidden[rows], name)
        return mixed

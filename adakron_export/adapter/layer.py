"""The AdaKron layer: a projection followed by its adapters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.nn import functional

from adakron_export.adapter.config import Activation, AdaKronConfig, KronOrder

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
        order: Which of the two is the left factor.
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
            drawn = int(torch.randint(self.num_experts, ()))
            return self.weight[drawn], self.bias[drawn]
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
        hidden: Width of the projection's output.
    """

    adapter_layer_names = ("adakron_a1", "adakron_a2", "adakron_up")
    other_param_names = ()
    # What PEFT's base class has, said for the type checker: torch's own answer for any attribute is Tensor or Module.
    active_adapters: list[str]
    get_base_layer: Callable[[], nn.Module]
    set_adapter: Callable[..., None]
    _move_adapter_to_device_of_base_layer: Callable[[str], None]

    def __init__(self, base_layer: nn.Module, adapter_name: str, config: AdaKronConfig, hidden: int) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.hidden = hidden
        self.adakron_a1 = nn.ModuleDict()
        self.adakron_a2 = nn.ModuleDict()
        self.adakron_up = nn.ModuleDict()
        self.settings: dict[str, tuple[KronOrder, Activation]] = {}
        self._disable_adapters = False
        self.merged_adapters: list[str] = []
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, config)

    def update_layer(self, adapter_name: str, config: AdaKronConfig) -> None:
        """Add an adapter.

        It starts as the identity because the up-projection starts at zero. The small networks start as any
        linear layer: were they zero too, the product would have no gradient and nothing would ever learn.

        The biases of the k-wide one start at 1, -1, 1, ...: without biases the product of two linear functions of
        ``hidden`` is the same for ``-hidden``, and training would begin blind to its sign. So the up-projection first
        reads ``gelu(a1)`` and ``gelu(-a1)``, as of a bottleneck adapter, and the product grows out of that.
        """
        self.adakron_a1[adapter_name] = SmallNetwork(self.hidden, config.r // config.k)
        self.adakron_a2[adapter_name] = SmallNetwork(self.hidden, config.k, config.num_experts)
        self.adakron_up[adapter_name] = SmallNetwork(config.r, self.hidden)
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

    def delete_adapter(self, adapter_name: str) -> None:
        """Remove an adapter."""
        super().delete_adapter(adapter_name)
        self.settings.pop(adapter_name, None)

    def delta(self, hidden: Tensor, adapter_name: str) -> Tensor:
        """What one adapter adds to ``hidden``, both ``[batch, tokens, hidden]``."""
        order, activation = self.settings[adapter_name]
        first, second, up = self.networks(adapter_name)
        # Both at once: two narrow products read (and in training, send gradients to) the whole of hidden twice.
        (first_weight, first_bias), (second_weight, second_bias) = first.current(), second.current()
        weight, bias = torch.cat((first_weight, second_weight)), torch.cat((first_bias, second_bias))
        both = functional.linear(hidden.to(weight.dtype), weight, bias)
        a1, a2 = both.split((len(first_bias), len(second_bias)), dim=-1)  # [batch, tokens, r / k], [batch, tokens, k]
        product = adapter_delta(a1, a2, order=order, activation=activation)  # [batch, tokens, r]
        delta: Tensor = up(product)
        return delta.to(hidden.dtype)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """The projection's output plus what the active adapters add."""
        hidden: Tensor = self.base_layer(*args, **kwargs)
        if self.disable_adapters:
            return hidden
        deltas = [self.delta(hidden, name) for name in self.active_adapters if name in self.settings]
        for delta in deltas:
            hidden = hidden + delta
        return hidden

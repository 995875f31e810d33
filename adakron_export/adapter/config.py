"""The configuration of AdaKron adapters."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, StrEnum
from typing import Any

from peft import PeftConfig

from adakron_export.errors import AdapterConfigError

PEFT_TYPE = "ADAKRON"


class KronOrder(StrEnum):
    """Which small network is the left factor of the Kronecker product."""

    A2_A1 = "a2_a1"
    A1_A2 = "a1_a2"


class Activation(StrEnum):
    """What is applied to the Kronecker product."""

    GELU = "gelu"
    GELU_TANH = "gelu_tanh"
    RELU = "relu"
    SILU = "silu"
    TANH = "tanh"


def _choice(enum: type[Enum], value: Any, name: str) -> str:
    choices = [member.value for member in enum]
    if value not in choices:
        raise AdapterConfigError(f"{name} is {value!r}; choose one of {', '.join(choices)}")
    return str(enum(value).value)


@dataclass
class AdaKronConfig(PeftConfig):  # type: ignore[misc,unused-ignore]
    """Configuration of AdaKron (Braga et al., LREC-COLING 2024) for `peft.get_peft_model`.

    With ``h`` the output of the FFN's second projection, ``[batch, tokens, hidden]``:

    ``a1 = h A1^T + b1`` (``r / k`` wide), ``a2 = h A2^T + b2`` (``k`` wide),
    ``y = h + activation(a2 (x) a1) B^T + b``.

    Args:
        r: Width of the Kronecker product, the adapter size.
        k: Width of the second small network; it divides ``r``.
        activation: Applied to the product: ``gelu`` (exact), ``gelu_tanh``, ``relu``, ``silu``, ``tanh``.
        kron_order: ``a2_a1`` (the paper's encoders) or ``a1_a2`` (the reference's GPT-2 code).
        num_experts: Networks in the mixture on the k-wide side. One is drawn per forward pass in training,
            their softmax-weighted average (soup) is used at inference.
        target_modules: Names or a regular expression of the FFN's output projections. Chosen by the backbone's
            architecture when left out.
        exclude_modules: Names or a regular expression of modules to leave alone.
        layers_to_transform: Index or indices of the layers that get an adapter; all when left out.
        layers_pattern: Name of the list of layers, where the first number in a module's name is not the layer's.
        modules_to_save: Other modules to train and save whole, such as ``classifier``.
        init_weights: Start as the identity: the up-projection is zero. ``False`` draws it like the other
            two, which is for tests.

    Raises:
        AdapterConfigError: ``r``, ``k``, ``num_experts``, ``activation`` or ``kron_order`` is impossible.
    """

    r: int = field(default=48, metadata={"help": "Width of the Kronecker product"})
    k: int = field(default=4, metadata={"help": "Width of the second small network"})
    activation: str = field(default="gelu", metadata={"help": "Applied to the product"})
    kron_order: str = field(default="a2_a1", metadata={"help": "a2_a1 or a1_a2"})
    num_experts: int = field(default=1, metadata={"help": "Experts on the k-wide side"})
    target_modules: list[str] | str | None = field(default=None)
    exclude_modules: list[str] | str | None = field(default=None)
    layers_to_transform: list[int] | int | None = field(default=None)
    layers_pattern: list[str] | str | None = field(default=None)
    modules_to_save: list[str] | None = field(default=None)
    init_weights: bool = field(default=True, metadata={"help": "Start as the identity"})

    def __post_init__(self) -> None:
        """Check the values and bring them to their stored form."""
        super().__post_init__()
        self.peft_type = PEFT_TYPE
        for name in ("r", "k", "num_experts"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise AdapterConfigError(f"{name} is {value!r}; it must be a whole number of at least 1")
        if self.r % self.k:
            raise AdapterConfigError(
                f"r={self.r} is not divisible by k={self.k}; the Kronecker product of an r/k-wide and a k-wide "
                f"vector must be r wide. The nearest sizes are r={self.r // self.k * self.k or self.k} "
                f"and r={(self.r // self.k + 1) * self.k}"
            )
        self.activation = _choice(Activation, self.activation, "activation")
        self.kron_order = _choice(KronOrder, self.kron_order, "kron_order")
        if isinstance(self.target_modules, (set, tuple)):
            self.target_modules = sorted(self.target_modules)

"""The configuration of AdaKron adapters."""

from __future__ import annotations

import operator
from dataclasses import dataclass, field
from enum import Enum, StrEnum
from pathlib import Path
from typing import Any

from peft import PeftConfig

from adakron_export.errors import AdapterConfigError


class AdaKronType(str, Enum):  # noqa: UP042 - PEFT takes apart the `str` of such a member
    """The method's name as PEFT has those of its own: its ``value`` is read, and what stands behind the dot."""

    ADAKRON = "ADAKRON"


PEFT_TYPE = AdaKronType.ADAKRON
_WIDEST, _MOST_EXPERTS = 2**16, 1024
_CARD_SECTION = """
## Load it

PEFT knows this method once the package `adakron-export` is imported:

```python
import adakron_export  # before PeftModel.from_pretrained, AutoPeftModel... or AutoModel... reads this folder
```
"""


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
        dropout: Share of ``h`` that the small networks do not see in training.
        scale: Factor of what the adapter adds to ``h``.
        rank_pattern: Other widths than ``r`` by the name, or regular expression, of a module.
        target_modules: Names or a regular expression of the FFN's output projections. Chosen by the backbone's
            architecture when left out.
        exclude_modules: Names or a regular expression of modules to leave alone.
        layers_to_transform: Index or indices of the layers that get an adapter; all when left out or empty.
        layers_pattern: Name of the list of layers, where the first number in a module's name is not the layer's;
            only beside ``layers_to_transform``.
        modules_to_save: Other modules to train and save whole, such as ``classifier``.
        init_weights: Start as the identity: the up-projection is zero. ``False`` draws it like the other
            two, which is for tests.

    Raises:
        AdapterConfigError: A value is impossible.
    """

    r: int = field(default=48, metadata={"help": "Width of the Kronecker product"})
    k: int = field(default=4, metadata={"help": "Width of the second small network"})
    activation: str = field(default="gelu", metadata={"help": "Applied to the product"})
    kron_order: str = field(default="a2_a1", metadata={"help": "a2_a1 or a1_a2"})
    num_experts: int = field(default=1, metadata={"help": "Experts on the k-wide side"})
    dropout: float = field(default=0.0, metadata={"help": "Of what the small networks read, in training"})
    scale: float = field(default=1.0, metadata={"help": "Factor of what the adapter adds"})
    rank_pattern: dict[str, int] = field(default_factory=dict, metadata={"help": "Other widths by module"})
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
            setattr(self, name, _whole(getattr(self, name), name))
        self.rank_pattern = {str(key): _whole(r, f"rank_pattern[{key!r}]") for key, r in self.rank_pattern.items()}
        for r in (self.r, *self.rank_pattern.values()):
            _check_divisible(r, self.k)
        for name, holds in (("dropout", 0 <= self.dropout < 1), ("scale", 0 < self.scale < float("inf"))):
            if not holds:
                limits = "from 0 to below 1" if name == "dropout" else "above 0"
                raise AdapterConfigError(f"{name} is {getattr(self, name)!r}; it must be a number {limits}")
        if self.layers_pattern and self.layers_to_transform in (None, []):
            raise AdapterConfigError(
                f"layers_pattern is {self.layers_pattern!r} and there is no layers_to_transform, which it is for; "
                "leave it out, or name the layers"
            )
        self.activation = _choice(Activation, self.activation, "activation")
        self.kron_order = _choice(KronOrder, self.kron_order, "kron_order")
        if isinstance(self.target_modules, (set, tuple)):
            self.target_modules = sorted(self.target_modules)

    def save_pretrained(self, save_directory: str, **kwargs: Any) -> None:
        """Write the configuration, and into the model card beside it how PEFT comes to know the method."""
        super().save_pretrained(save_directory, **kwargs)
        complete_card(Path(save_directory))


def complete_card(folder: Path) -> None:
    """Say in the model card that PEFT writes how it comes to know the method."""
    card = folder / "README.md"
    if card.is_file() and "import adakron_export" not in (text := card.read_text(encoding="utf-8")):
        card.write_text(text.rstrip() + "\n" + _CARD_SECTION, encoding="utf-8")


def _whole(value: Any, name: str) -> int:
    """A whole number of any type, numpy's too."""
    try:
        number = operator.index(value)
    except TypeError:
        number = 0
    most = _MOST_EXPERTS if name == "num_experts" else _WIDEST
    if not 1 <= number <= most or isinstance(value, bool):
        raise AdapterConfigError(f"{name} is {value!r:.40}; it must be a whole number from 1 to {most}")
    return number


def _check_divisible(r: int, k: int) -> None:
    if r % k:
        raise AdapterConfigError(
            f"r={r} is not divisible by k={k}; the Kronecker product of an r/k-wide and a k-wide vector must be r "
            f"wide. The nearest sizes are r={r // k * k or k} and r={(r // k + 1) * k}"
        )

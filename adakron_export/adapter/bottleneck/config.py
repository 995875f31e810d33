"""The configuration of bottleneck adapters."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, StrEnum
from pathlib import Path
from typing import Any

from peft import PeftConfig
from transformers.activations import ACT2FN

from adakron_export.adapter.config import complete_card
from adakron_export.errors import AdapterConfigError


class BottleneckType(str, Enum):  # noqa: UP042 - PEFT takes apart the `str` of such a member
    """The method's name as PEFT has those of its own."""

    BOTTLENECK = "BOTTLENECK"


BOTTLENECK = BottleneckType.BOTTLENECK
_WIDEST = 2**16
SYNONYMS = {
    "swish": "silu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu_python": "gelu",
    "leakyrelu": "leaky_relu", "linear": "identity",
}  # fmt: skip
OPERATOR_ACTIVATIONS = ("gelu", "gelu_tanh", "relu", "silu", "tanh", "leaky_relu", "identity")
_FLAGS = (
    "parallel", "original_ln_before", "original_ln_after", "ln_before", "ln_after", "adapter_residual_before_ln",
    "use_gating",
)  # fmt: skip
LEARNED = ("learned", "channel")


class Position(StrEnum):
    """Where adapters sit in a layer."""

    FFN = "ffn"
    ATTENTION = "attention"
    BOTH = "both"


@dataclass
class BottleneckConfig(PeftConfig):  # type: ignore[misc,unused-ignore]
    """Configuration of bottleneck adapters for `peft.get_peft_model`.

    With ``h`` the output of the projection behind attention or FFN, ``s`` the stream that it is added to, and ``LN``
    the LayerNorm of their sum where the backbone has one, an adapter adds
    ``delta(x) = scaling * (activation(x D + b) U + c)``, and the layer goes on with ``LN(h + delta(x) + s)``:

    - Houlsby et al. (ICML 2019): ``x = h``; ``position="both", original_ln_before=False, activation="silu"``.
    - Pfeiffer et al. (EACL 2021): ``x = LN(h + s)``; the default.
    - He et al. (ICLR 2022), parallel: ``x = s``; ``parallel=True, scaling=4.0, reduction_factor=2``.

    Names that start with ``original_ln``, ``ln`` and ``residual`` are those of AdapterHub's `BnConfig`, and mean the
    same.

    Args:
        r: Width of the bottleneck; ``reduction_factor`` decides when left out.
        reduction_factor: Hidden width over that of the bottleneck; or by layer, such as ``{"0": 8, "default": 16}``.
        activation: ``relu``, ``gelu``, ``silu`` and the others that transformers knows by name, and ``leaky_relu``.
        position: ``ffn``, ``attention`` or ``both``.
        parallel: Read the stream in the place of the projection's output.
        scaling: A number, ``learned`` (one parameter) or ``channel`` (one for each feature).
        original_ln_before: Read what the backbone's LayerNorm makes of the sum; without one, the sum.
        original_ln_after: Add the stream, and apply that LayerNorm, after the adapter.
        residual_before_ln: What ``delta`` is added to: ``True`` for ``h``, ``"post_add"`` for ``h + s``, ``False`` for
            what the adapter reads. Only beside ``original_ln_before``.
        ln_before: A LayerNorm of the adapter's own before the bottleneck.
        ln_after: One after it.
        adapter_residual_before_ln: Add ``delta`` before that one instead of after it.
        use_gating: Multiply by the mean over tokens, padding among them, of a learned gate.
        invertible: ``nice`` puts a coupling block behind the embeddings too (Pfeiffer et al., EMNLP 2020); for models
            without a head that shares them.
        invertible_reduction_factor: Half the hidden width over the width of that block's networks.
        dropout: Share of ``delta`` that is dropped in training.
        target_modules: Names or a regular expression of the projections. Chosen by the backbone's architecture and
            ``position`` when left out.
        exclude_modules: Names or a regular expression of modules to leave alone.
        layers_to_transform: Index or indices of the layers that get an adapter; all when left out.
        layers_pattern: Name of the list of layers, where the first number in a module's name is not the layer's.
        modules_to_save: Other modules to train and save whole, such as ``classifier``.
        init_weights: Start as the identity: the up-projection is zero. ``False`` draws it like the other, which is
            for tests.

    Raises:
        AdapterConfigError: A value is impossible.
    """

    r: int | None = field(default=None, metadata={"help": "Width of the bottleneck"})
    reduction_factor: float | dict[str, float] = field(default=16, metadata={"help": "Hidden width over that"})
    activation: str = field(default="relu", metadata={"help": "Applied in the bottleneck"})
    position: str = field(default="ffn", metadata={"help": "ffn, attention or both"})
    parallel: bool = field(default=False, metadata={"help": "Read the stream"})
    scaling: float | str = field(default=1.0, metadata={"help": "Factor of what is added: a number, learned, channel"})
    original_ln_before: bool = field(default=True, metadata={"help": "Read after the backbone's LayerNorm"})
    original_ln_after: bool = field(default=True, metadata={"help": "Apply it after the adapter"})
    residual_before_ln: bool | str = field(default=True, metadata={"help": "What is added to"})
    ln_before: bool = field(default=False, metadata={"help": "An own LayerNorm before the bottleneck"})
    ln_after: bool = field(default=False, metadata={"help": "An own LayerNorm after it"})
    adapter_residual_before_ln: bool = field(default=False, metadata={"help": "Add before that one"})
    use_gating: bool = field(default=False, metadata={"help": "Multiply by a learned gate"})
    invertible: str | None = field(default=None, metadata={"help": "nice: a coupling block behind the embeddings"})
    invertible_reduction_factor: float = field(default=2.0, metadata={"help": "Width of its networks"})
    dropout: float = field(default=0.0, metadata={"help": "Of what is added, in training"})
    target_modules: list[str] | str | None = field(default=None)
    exclude_modules: list[str] | str | None = field(default=None)
    layers_to_transform: list[int] | int | None = field(default=None)
    layers_pattern: list[str] | str | None = field(default=None)
    modules_to_save: list[str] | None = field(default=None)
    init_weights: bool = field(default=True, metadata={"help": "Start as the identity"})

    def __post_init__(self) -> None:
        """Check the values and bring them to their stored form."""
        super().__post_init__()
        self.peft_type = BOTTLENECK
        self.activation = activation_named(self.activation)
        factors = (
            self.reduction_factor.values() if isinstance(self.reduction_factor, dict) else [self.reduction_factor]
        )
        allowed = {  # by setting: whether its value is possible, and what is
            "r": (
                self.r is None or (type(self.r) is int and 0 < self.r <= _WIDEST),
                f"a whole number up to {_WIDEST}",
            ),
            "reduction_factor": (all(_is_number(each) and each > 0 for each in factors), "numbers above 0"),
            "position": (self.position in list(Position), " or ".join(Position)),
            "scaling": (self.scaling in LEARNED or _is_number(self.scaling), "a number, learned or channel"),
            "residual_before_ln": (self.residual_before_ln in (True, False, "post_add"), "true, false or post_add"),
            "invertible": (self.invertible in (None, "nice"), "nice, or left out"),
            "invertible_reduction_factor": (
                _is_number(self.invertible_reduction_factor) and self.invertible_reduction_factor > 0,
                "a number above 0",
            ),
            "dropout": (_is_number(self.dropout) and 0 <= self.dropout < 1, "a number from 0 to below 1"),
        }
        allowed |= {name: (isinstance(getattr(self, name), bool), "true or false") for name in _FLAGS}
        for name, (holds, possible) in allowed.items():
            if not holds:
                raise AdapterConfigError(f"{name} is {getattr(self, name)!r:.60}; it must be {possible}")
        if self.residual_before_ln == "post_add" and (self.parallel or not self.original_ln_before):
            raise AdapterConfigError("residual_before_ln is 'post_add', which is for original_ln_before; turn that on")
        if isinstance(self.target_modules, (set, tuple)):
            self.target_modules = sorted(self.target_modules)

    def save_pretrained(self, save_directory: str, **kwargs: Any) -> None:
        """Write the configuration, and into the model card beside it how PEFT comes to know the method."""
        super().save_pretrained(save_directory, **kwargs)
        complete_card(Path(save_directory))

    @property
    def reads_stream(self) -> bool:
        """Whether the adapter needs more of its layer than the projection's output."""
        return self.parallel or self.original_ln_before or not self.original_ln_after

    def width(self, hidden: int, layer: int | None) -> int:
        """Width of a bottleneck, as AdapterHub computes it.

        Args:
            hidden: Width of the projection's output.
            layer: Index of the layer.

        Raises:
            AdapterConfigError: There is no factor for the layer.
        """
        if self.r is not None:
            return self.r
        factor = self.reduction_factor
        if isinstance(factor, dict):
            factor = factor.get(str(layer), factor.get("default", 0))
            if not factor:
                raise AdapterConfigError(f"reduction_factor has none for layer {layer}, and no 'default'")
        return checked_width(hidden // factor, "reduction_factor")


def checked_width(width: float, name: str) -> int:
    """The width that a factor leads to, at least 1.

    Raises:
        AdapterConfigError: The width is that of no adapter.
    """
    if width > _WIDEST:
        raise AdapterConfigError(f"{name} leads to a width of {width:.3g}; at most {_WIDEST} is taken")
    return max(1, int(width))


def activation_named(name: Any) -> str:
    """The name by which an activation is stored.

    Raises:
        AdapterConfigError: There is no such activation.
    """
    lowered = str(name).lower()
    found = SYNONYMS.get(lowered, lowered)
    if found in OPERATOR_ACTIVATIONS or found in ACT2FN:
        return found
    raise AdapterConfigError(
        f"activation is {name!r:.60}; choose one of {', '.join(OPERATOR_ACTIVATIONS)}, or of transformers' ACT2FN"
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < float("inf")

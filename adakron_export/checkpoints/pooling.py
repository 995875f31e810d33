"""How token vectors become one embedding, as `sentence-transformers` describes it in a model's folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from adakron_export.errors import BackboneError, told_as
from adakron_export.files.records import read_json
from adakron_export.tokenization.companions import sentence_modules

_Rule = Callable[[Tensor, Tensor], Tensor]
_TINY = 1e-7  # the least norm that is divided by: torch's own 1e-12 is 0 in fp16


def _count(mask: Tensor) -> Tensor:
    """Tokens of each text; 1 of one that is nothing but padding, whose sum is zero."""
    return mask.sum(1).clamp(min=1)


def _mean(hidden: Tensor, mask: Tensor) -> Tensor:
    return (hidden * mask).sum(1) / _count(mask)


def _mean_over_root(hidden: Tensor, mask: Tensor) -> Tensor:
    return (hidden * mask).sum(1) / _count(mask).sqrt()


def _weighted_mean(hidden: Tensor, mask: Tensor) -> Tensor:
    """Later tokens count more (Muennighoff, "SGPT", 2022, equation 2)."""
    positions = torch.arange(1, hidden.shape[1] + 1, device=hidden.device)[None, :, None]
    weights = mask.to(torch.float32) * positions  # their sum is more than fp16 holds
    shares = weights / weights.sum(1, keepdim=True).clamp(min=1)
    return (hidden * shares.to(hidden.dtype)).sum(1)


def _max(hidden: Tensor, mask: Tensor) -> Tensor:
    return hidden.masked_fill(mask == 0, torch.finfo(hidden.dtype).min).amax(1)


def _cls(hidden: Tensor, mask: Tensor) -> Tensor:  # noqa: ARG001, RUF100 - one of several rules
    return hidden[:, 0]


def _last(hidden: Tensor, mask: Tensor) -> Tensor:
    positions = torch.arange(hidden.shape[1], device=hidden.device) * mask.squeeze(-1).to(torch.int64)
    last = positions.argmax(-1)[:, None, None].expand(-1, 1, hidden.shape[2])
    return hidden.gather(1, last).squeeze(1)


# In the order in which sentence-transformers concatenates them, by its names.
_RULES: dict[str, _Rule] = {
    "cls": _cls,
    "max": _max,
    "mean": _mean,
    "mean_sqrt_len_tokens": _mean_over_root,
    "weightedmean": _weighted_mean,
    "lasttoken": _last,
}


class Pooling(nn.Module):
    """Token vectors to one vector, by one rule or by several side by side.

    Args:
        modes: Names of rules: ``cls``, ``max``, ``mean``, ``mean_sqrt_len_tokens``, ``weightedmean``, ``lasttoken``.
    """

    def __init__(self, *modes: str) -> None:
        super().__init__()
        self.modes = tuple(mode for mode in _RULES if mode in modes)

    def forward(self, hidden: Tensor, attention_mask: Tensor) -> Tensor:
        """``[batch, tokens, hidden]`` and ``[batch, tokens]`` to ``[batch, hidden * modes]``."""
        mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
        return torch.cat([_RULES[mode](hidden, mask) for mode in self.modes], dim=-1)


class Normalize(nn.Module):
    """A vector of length 1."""

    def forward(self, vector: Tensor) -> Tensor:
        """``[batch, width]`` to the same."""
        return nn.functional.normalize(vector, dim=-1, eps=_TINY)


class SentenceEmbedding(nn.Module):
    """A chain of sentence-transformers' modules behind the transformer."""

    def __init__(self, pooling: Pooling | None = None, *after: nn.Module) -> None:
        super().__init__()
        self.pooling = pooling or Pooling("mean")
        self.after = nn.Sequential(*after)

    def forward(self, hidden: Tensor, attention_mask: Tensor) -> Tensor:
        """One vector per text.

        Args:
            hidden: ``[batch, tokens, hidden]``.
            attention_mask: ``[batch, tokens]``, 1 for tokens and 0 for padding.

        Returns:
            ``[batch, width]``.
        """
        vector: Tensor = self.after(self.pooling(hidden, attention_mask))
        return vector


def read_pooling(folder: Path) -> SentenceEmbedding:
    """The chain of a backbone's folder; the mean of all tokens where it names none.

    Raises:
        BackboneError: The folder names a module that is not supported, or one that cannot be read.
    """
    with told_as(BackboneError, f"{folder}: its modules.json cannot be followed"):
        rows = sentence_modules(folder)
        if not rows:
            config = folder / "1_Pooling" / "config.json"
            return SentenceEmbedding(_pooling(config.parent) if config.is_file() else None)
        kinds = [row["type"].rpartition(".")[2] for row in rows]
        unknown = [
            row["type"] for row, kind in zip(rows, kinds, strict=True) if kind not in ("Transformer", *_MODULES)
        ]
        if unknown or kinds[:2] != ["Transformer", "Pooling"] or not {"Transformer", "Pooling"}.isdisjoint(kinds[2:]):
            what = f"{', '.join(unknown)} cannot be exported" if unknown else f"{', '.join(kinds)} is no such chain"
            supported = ", ".join(name for name in _MODULES if name != "Pooling")
            raise BackboneError(
                f"{folder / 'modules.json'}: {what}; a Transformer and a Pooling are, and after them {supported}"
            )
        after = [_MODULES[kind](folder / row.get("path", "")) for row, kind in zip(rows[2:], kinds[2:], strict=True)]
        return SentenceEmbedding(_pooling(folder / rows[1].get("path", "")), *after).eval()


def _pooling(folder: Path) -> Pooling:
    settings = _settings(folder)
    chosen = settings.get("pooling_mode") or [
        key.removeprefix("pooling_mode_").removesuffix("_tokens").removesuffix("_token")
        if key != "pooling_mode_mean_sqrt_len_tokens"
        else "mean_sqrt_len_tokens"
        for key, value in settings.items()
        if key.startswith("pooling_mode_") and value is True
    ]
    modes = [chosen] if isinstance(chosen, str) else list(chosen)
    unknown = [mode for mode in modes if mode not in _RULES]
    if unknown or not modes:
        raise BackboneError(
            f"{folder / 'config.json'}: pooling {modes} is not supported; {', '.join(_RULES)} are, alone or together"
        )
    if settings.get("include_prompt") is False:
        raise BackboneError(f"{folder / 'config.json'}: a pooling that leaves prompts out cannot be exported")
    return Pooling(*modes)


def _dense(folder: Path) -> nn.Module:
    settings = _settings(folder)
    name = str(settings.get("activation_function", "torch.nn.modules.activation.Tanh")).rpartition(".")[2]
    activation = {"Identity": nn.Identity, "Tanh": nn.Tanh, "ReLU": nn.ReLU, "GELU": nn.GELU, "SiLU": nn.SiLU,
                  "Sigmoid": nn.Sigmoid}.get(name)  # fmt: skip
    if activation is None:
        raise BackboneError(f"{folder / 'config.json'}: the activation {name} cannot be exported")
    linear = nn.Linear(settings["in_features"], settings["out_features"], bias=settings.get("bias", True))
    linear.load_state_dict({key.removeprefix("linear."): tensor for key, tensor in _weights(folder).items()})
    return nn.Sequential(linear, activation())


def _layer_norm(folder: Path) -> nn.Module:
    norm = nn.LayerNorm(_settings(folder)["dimension"])
    norm.load_state_dict({key.removeprefix("norm."): tensor for key, tensor in _weights(folder).items()})
    return norm


_MODULES: dict[str, Callable[[Path], nn.Module]] = {
    "Pooling": _pooling,
    "Dense": _dense,
    "LayerNorm": _layer_norm,
    "Normalize": lambda _: Normalize(),
}


def _settings(folder: Path) -> dict[str, Any]:
    settings = read_json(folder / "config.json")
    if not isinstance(settings, dict):
        raise BackboneError(f"{folder / 'config.json'}: holds a {type(settings).__name__}, not settings")
    return settings


def _weights(folder: Path) -> dict[str, Tensor]:
    file = folder / "model.safetensors"
    found: dict[str, Tensor] = (
        load_file(file) if file.is_file() else torch.load(folder / "pytorch_model.bin", weights_only=True)
    )
    return {name: tensor.to(torch.float32) for name, tensor in found.items()}

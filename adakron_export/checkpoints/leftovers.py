"""What a backbone's files hold and transformers does not use: harmless, or the sign of another model."""

from __future__ import annotations

import re
from collections.abc import Iterable

from transformers import PretrainedConfig, PreTrainedModel

from adakron_export.errors import BackboneError, first_few

# Tensors that nothing needs, by their names, and why: buffers that older releases saved, and what reads the body.
_HARMLESS = {
    r"(.*\.)?position_ids": "numbers the positions",
    r"(.*\.)?token_type_ids": "all zeros",
    r"(.*\.)?rotary_emb\.inv_freq": "follows from the configuration",
    r"(.*\.)?h\.\d+\.attn\.(masked_)?bias": "the causal mask of GPT-2",
    r"(.*\.)?pooler\..*": "of another task's head",
}
# Settings that transformers 5 reads no more: the value with which nothing is lost, and whose they were.
_READ_NO_MORE = {
    "position_embedding_type": ("absolute", {"bert", "roberta", "xlm-roberta", "camembert", "electra", "albert"}),
}


def check_leftovers(name: str, model: PreTrainedModel, unexpected: Iterable[str]) -> None:
    """Raise where the files have tensors of the body that the loaded model lacks; heads of other tasks are no loss.

    Args:
        name: What the backbone is called, in messages.
        model: The loaded model.
        unexpected: The tensors that found no place.

    Raises:
        BackboneError: There are such tensors.
    """
    prefix = f"{model.base_model_prefix}."
    parts = {child for child, _ in model.base_model.named_children()}
    lost = sorted(
        key
        for key in unexpected
        if (key.startswith(prefix) or key.partition(".")[0] in parts)
        and not any(re.fullmatch(pattern, key) for pattern in _HARMLESS)
    )
    if lost:
        raise BackboneError(
            f"backbone {name!r} has tensors that a {type(model).__name__} of this transformers release does not use, "
            f"so it would compute something else: {first_few(lost)}; such a backbone cannot be exported"
        )


def check_settings(name: str, config: PretrainedConfig) -> None:
    """Raise where the configuration asks for what transformers no longer computes.

    Raises:
        BackboneError: The model leaves some out.
    """
    settings = config.to_dict()
    for setting, (harmless, architectures) in _READ_NO_MORE.items():
        if config.model_type in architectures and settings.get(setting, harmless) not in (None, harmless):
            raise BackboneError(
                f"backbone {name!r} has {setting}: {settings[setting]!r}, which this transformers release ignores: it "
                f"computes with {harmless!r}, so the model would be another; such a backbone cannot be exported"
            )

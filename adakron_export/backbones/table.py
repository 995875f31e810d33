"""The table of backbones: where the adapter sits by default, and what the model takes and is made of.

The adapter reads the output of the FFN's second projection, before dropout, residual and LayerNorm
(reference implementation, `BertOutput` and `MLP`). A new architecture is a new row. One that is not in the table can
be adapted with `target_modules`; what it takes is then read off its own ``forward`` and configuration.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from adakron_export.errors import AdapterConfigError

HEADS = ("classifier", "score", "qa_outputs", "cls", "lm_head")


@dataclass(frozen=True, slots=True)
class Backbone:
    """A row.

    Attributes:
        model_type: Name of the architecture in the backbone's ``config.json``.
        target: Regular expression that the whole name of each FFN output projection matches; ``None`` where
            `target_modules` must be given.
        note: What a user should know of it.
        token_types: Whether exports take ``token_type_ids``, as optimum's do, even where there is one type alone.
        positions: Whether models that write, or that embed, take ``position_ids``, as optimum's exports do.
        images: Whether it reads ``pixel_values`` in the place of tokens.
        left_padding: Whether texts may be padded in front; a window that holds only padding is left undefined.
        heads: Names of the modules that are no part of the backbone.
    """

    model_type: str
    target: str | None
    note: str = ""
    token_types: bool = False
    positions: bool = False
    images: bool = False
    left_padding: bool = True
    heads: tuple[str, ...] = HEADS

    def is_head(self, module: str) -> bool:
        """Whether a module of this name belongs to the head."""
        return module.partition(".")[0] in self.heads

    def text_inputs(self, config: Mapping[str, Any], taken: Collection[str], *, writes: bool) -> tuple[str, ...]:
        """The inputs of a model that reads text, in their order.

        Args:
            config: The model's configuration.
            taken: The arguments of the model's ``forward``.
            writes: Whether it writes or embeds, and so reads positions.
        """
        types = int(config.get("type_vocab_size") or 0)
        given = "token_type_ids" in taken and types > (0 if self.token_types else 1)
        return (
            "input_ids",
            "attention_mask",
            *(["token_type_ids"] if given else []),
            *(["position_ids"] if self.positions and writes and "position_ids" in taken else []),
        )


_BERT = r"(.*\.)?encoder\.layer\.\d+\.output\.dense"
_LLAMA = r"(.*\.)?layers\.\d+\.mlp\.down_proj"

BACKBONES: dict[str, Backbone] = {
    row.model_type: row
    for row in (
        Backbone("bert", _BERT, token_types=True),
        Backbone("roberta", _BERT),
        Backbone("xlm-roberta", _BERT),
        Backbone("camembert", _BERT),
        Backbone(
            "distilbert",
            r"(.*\.)?transformer\.layer\.\d+\.ffn\.lin2",
            heads=(*HEADS, "pre_classifier", "vocab_transform", "vocab_layer_norm", "vocab_projector"),
        ),
        Backbone(
            "electra",
            _BERT,
            token_types=True,
            heads=(*HEADS, "generator_predictions", "generator_lm_head", "discriminator_predictions"),
        ),
        Backbone("mpnet", _BERT),
        Backbone("deberta", _BERT, token_types=True),
        Backbone("deberta-v2", _BERT, "DeBERTa-v2 and v3", token_types=True),
        Backbone(
            "albert",
            r"(.*\.)?albert_layer_groups\.\d+\.albert_layers\.\d+\.ffn_output",
            "the layers of a group share one set of weights, and so one adapter: it runs once per layer",
            token_types=True,
            heads=(*HEADS, "predictions"),
        ),
        Backbone("modernbert", r"(.*\.)?layers\.\d+\.mlp\.Wo", left_padding=False, heads=(*HEADS, "head", "decoder")),
        Backbone("gpt2", r"(.*\.)?h\.\d+\.mlp\.c_proj", "Conv1D projections", positions=True),
        Backbone("llama", _LLAMA, positions=True),
        Backbone("mistral", _LLAMA, positions=True),
        Backbone("qwen2", _LLAMA, positions=True),
        Backbone("qwen3", _LLAMA, positions=True),
        Backbone("vit", r"(.*\.)?layers\.\d+\.mlp\.fc2", "images", images=True),
    )
}


def backbone_row(config: Mapping[str, Any]) -> Backbone:
    """What is known of an architecture; what an unknown one takes is decided by its ``forward``.

    Args:
        config: A model's configuration.
    """
    known = BACKBONES.get(str(config.get("model_type")))
    if known is not None:
        return known
    windowed = config.get("local_attention") is not None or config.get("attention_window") is not None
    return Backbone(str(config.get("model_type")), None, positions=True, left_padding=not windowed)


def default_target(model_type: str | None) -> str:
    """The regular expression of the FFN output projections of an architecture.

    Raises:
        AdapterConfigError: The architecture is not in the table.
    """
    row = BACKBONES.get(model_type or "")
    if row is None or row.target is None:
        raise AdapterConfigError(
            f"no FFN output is known for model_type {model_type!r}; pass target_modules with the names of its FFN "
            f"output projections, or use one of: {', '.join(sorted(BACKBONES))}"
        )
    return row.target

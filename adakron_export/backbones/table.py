"""The table of backbones: where the adapter sits by default, and what the model takes and is made of.

AdaKron reads the output of the FFN's second projection, before dropout, residual and LayerNorm
(reference implementation, `BertOutput` and `MLP`). Bottlenecks sit behind attention too, and read more of a layer. A
new architecture is a new row. One that is not in the table can be adapted with `target_modules`; what it takes is then
read off its own ``forward`` and configuration.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from adakron_export.errors import AdapterConfigError

HEADS = ("classifier", "score", "qa_outputs", "cls", "lm_head")


@dataclass(frozen=True, slots=True)
class Block:
    """Where attention, or the FFN, reads the stream of a layer and adds to it; names are those within the layer.

    Attributes:
        source: The module whose input is the stream.
        dense: The projection whose output is added to it.
        norm: The LayerNorm of the sum; ``None`` where the sum goes on as it is.
    """

    source: str
    dense: str
    norm: str | None


@dataclass(frozen=True, slots=True)
class Backbone:
    """A row.

    Attributes:
        model_type: Name of the architecture in the backbone's ``config.json``.
        layer: Regular expression that the whole name of each layer matches; ``None`` where `target_modules` must be
            given.
        blocks: Where attention, and where the FFN, reads the stream of a layer and adds to it.
        note: What a user should know of it.
        token_types: Whether exports take ``token_type_ids``, as optimum's do, even where there is one type alone.
        positions: Whether models that write, or that embed, take ``position_ids``, as optimum's exports do.
        images: Whether it reads ``pixel_values`` in the place of tokens.
        left_padding: Whether texts may be padded in front; a window that holds only padding is left undefined.
        heads: Names of the modules that are no part of the backbone.
    """

    model_type: str
    layer: str | None
    blocks: tuple[Block, ...] = ()
    note: str = ""
    token_types: bool = False
    positions: bool = False
    images: bool = False
    left_padding: bool = True
    heads: tuple[str, ...] = HEADS

    @property
    def target(self) -> str | None:
        """Regular expression that the whole name of each FFN output projection matches, where it is known."""
        return None if self.layer is None else _within(self.layer, self.blocks[-1].dense)

    def block_targets(self, *, attention: bool, ffn: bool) -> str:
        """The same of the output projections of attention, of the FFN, or of both.

        Raises:
            AdapterConfigError: The architecture is not in the table.
        """
        if self.layer is None:
            raise AdapterConfigError(_unknown(self.model_type))
        wanted = [block.dense for block, taken in zip(self.blocks, (attention, ffn), strict=True) if taken]
        return _within(self.layer, *wanted)

    def block_of(self, key: str) -> tuple[str, Block] | None:
        """The layer and the block of an output projection, by its name; ``None`` for any other module."""
        if self.layer is None:
            return None
        for block in self.blocks:
            layer = key.removesuffix(f".{block.dense}")
            if layer != key and re.fullmatch(self.layer, layer):
                return layer, block
        return None

    @property
    def block_names(self) -> dict[str, str]:
        """The output projections of attention and of the FFN, within a layer."""
        return {name: block.dense for name, block in zip(("attention", "ffn"), self.blocks, strict=False)}

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


def _within(layer: str, *modules: str) -> str:
    names = [re.escape(module) for module in modules]
    return rf"{layer}\.{names[0]}" if len(names) == 1 else rf"{layer}\.({'|'.join(names)})"


def _unknown(model_type: str | None) -> str:
    return (
        f"no FFN output is known for model_type {model_type!r}; pass target_modules with the names of its FFN "
        f"output projections, or use one of: {', '.join(sorted(BACKBONES))}"
    )


_ENCODER = r"(.*\.)?encoder\.layer\.\d+"
_LAYERS = r"(.*\.)?layers\.\d+"
_FFN = Block("intermediate.dense", "output.dense", "output.LayerNorm")
_BERT = (Block("attention.self.query", "attention.output.dense", "attention.output.LayerNorm"), _FFN)
_LLAMA = (
    Block("input_layernorm", "self_attn.o_proj", None),
    Block("post_attention_layernorm", "mlp.down_proj", None),
)


def _deberta(source: str) -> tuple[Block, ...]:
    return (Block(f"attention.self.{source}", "attention.output.dense", "attention.output.LayerNorm"), _FFN)


BACKBONES: dict[str, Backbone] = {
    row.model_type: row
    for row in (
        Backbone("bert", _ENCODER, _BERT, token_types=True),
        Backbone("roberta", _ENCODER, _BERT),
        Backbone("xlm-roberta", _ENCODER, _BERT),
        Backbone("camembert", _ENCODER, _BERT),
        Backbone(
            "distilbert",
            r"(.*\.)?transformer\.layer\.\d+",
            (
                Block("attention.q_lin", "attention.out_lin", "sa_layer_norm"),
                Block("ffn.lin1", "ffn.lin2", "output_layer_norm"),
            ),
            heads=(*HEADS, "pre_classifier", "vocab_transform", "vocab_layer_norm", "vocab_projector"),
        ),
        Backbone(
            "electra",
            _ENCODER,
            _BERT,
            token_types=True,
            heads=(*HEADS, "generator_predictions", "generator_lm_head", "discriminator_predictions"),
        ),
        Backbone("mpnet", _ENCODER, (Block("attention.attn.q", "attention.attn.o", "attention.LayerNorm"), _FFN)),
        Backbone("deberta", _ENCODER, _deberta("in_proj"), token_types=True),
        Backbone("deberta-v2", _ENCODER, _deberta("value_proj"), "DeBERTa-v2 and v3", token_types=True),
        Backbone(
            "albert",
            r"(.*\.)?albert_layer_groups\.\d+\.albert_layers\.\d+",
            (
                Block("attention.query", "attention.dense", "attention.LayerNorm"),
                Block("ffn", "ffn_output", "full_layer_layer_norm"),
            ),
            "the layers of a group share one set of weights, and so one adapter: it runs once per layer",
            token_types=True,
            heads=(*HEADS, "predictions"),
        ),
        Backbone(
            "modernbert",
            _LAYERS,
            (Block("attn_norm", "attn.Wo", None), Block("mlp_norm", "mlp.Wo", None)),
            left_padding=False,
            heads=(*HEADS, "head", "decoder"),
        ),
        Backbone(
            "gpt2",
            r"(.*\.)?h\.\d+",
            (Block("ln_1", "attn.c_proj", None), Block("ln_2", "mlp.c_proj", None)),
            "Conv1D projections",
            positions=True,
        ),
        *(
            Backbone(name, _LAYERS, _LLAMA, positions=True)
            for name in ("llama", "mistral", "qwen2", "qwen3", "gemma", "granite", "phi3", "smollm3", "stablelm")
        ),
        Backbone(
            "starcoder2",
            _LAYERS,
            (_LLAMA[0], Block("post_attention_layernorm", "mlp.c_proj", None)),
            positions=True,
        ),
        Backbone(
            "phi",
            _LAYERS,
            (Block("input_layernorm", "self_attn.dense", None), Block("input_layernorm", "mlp.fc2", None)),
            "attention and the feed-forward block read the same stream",
            positions=True,
        ),
        Backbone(
            "gpt_neox",
            _LAYERS,
            (
                Block("input_layernorm", "attention.dense", None),
                Block("post_attention_layernorm", "mlp.dense_4h_to_h", None),
            ),
            positions=True,
            heads=(*HEADS, "embed_out"),
        ),
        Backbone(
            "vit",
            _LAYERS,
            (Block("layernorm_before", "attention.o_proj", None), Block("layernorm_after", "mlp.fc2", None)),
            "images",
            images=True,
        ),
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
        raise AdapterConfigError(_unknown(model_type))
    return row.target

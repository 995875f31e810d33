"""Where the adapter sits by default: the one table of backbones.

The adapter reads the output of the FFN's second projection, before dropout, residual and LayerNorm
(reference implementation, `BertOutput` and `MLP`). One row per architecture; a new one is a new line.
"""

from __future__ import annotations

from dataclasses import dataclass

from adakron_export.errors import AdapterConfigError


@dataclass(frozen=True, slots=True)
class Backbone:
    """One row: a `model_type` of transformers and the FFN output projection in its layers.

    Attributes:
        model_type: As in the backbone's ``config.json``.
        target: Regular expression that a module's whole name matches.
        note: What a user should know of it.
    """

    model_type: str
    target: str
    note: str = ""


_BERT = r"(.*\.)?encoder\.layer\.\d+\.output\.dense"
_LLAMA = r"(.*\.)?layers\.\d+\.mlp\.down_proj"

BACKBONES: dict[str, Backbone] = {
    row.model_type: row
    for row in (
        Backbone("bert", _BERT),
        Backbone("roberta", _BERT),
        Backbone("xlm-roberta", _BERT),
        Backbone("camembert", _BERT),
        Backbone("distilbert", r"(.*\.)?transformer\.layer\.\d+\.ffn\.lin2"),
        Backbone("electra", _BERT),
        Backbone("mpnet", _BERT),
        Backbone("deberta", _BERT),
        Backbone("deberta-v2", _BERT, "DeBERTa-v2 and v3"),
        Backbone(
            "albert",
            r"(.*\.)?albert_layer_groups\.\d+\.albert_layers\.\d+\.ffn_output",
            "the layers of a group share one set of weights, and so one adapter: it runs once per layer",
        ),
        Backbone("modernbert", r"(.*\.)?layers\.\d+\.mlp\.Wo"),
        Backbone("gpt2", r"(.*\.)?h\.\d+\.mlp\.c_proj", "Conv1D projections"),
        Backbone("llama", _LLAMA),
        Backbone("mistral", _LLAMA),
        Backbone("qwen2", _LLAMA),
        Backbone("qwen3", _LLAMA),
        Backbone("vit", r"(.*\.)?layers\.\d+\.mlp\.fc2", "images"),
    )
}


def default_target(model_type: str | None) -> str:
    """The regular expression of the FFN output projections of an architecture.

    Raises:
        AdapterConfigError: The architecture is not in the table.
    """
    row = BACKBONES.get(model_type or "")
    if row is None:
        raise AdapterConfigError(
            f"no FFN output is known for model_type {model_type!r}; pass target_modules with the names of its FFN "
            f"output projections, or use one of: {', '.join(sorted(BACKBONES))}"
        )
    return row.target

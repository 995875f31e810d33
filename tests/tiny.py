"""Tiny random models: one configuration per architecture, saved as a backbone or a checkpoint."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import CONFIG_MAPPING, PretrainedConfig, PreTrainedTokenizerFast

from adakron_export import AdaKronConfig
from adakron_export.tasks import Task, auto_class, peft_task_type

_COMMON: dict[str, Any] = {
    "vocab_size": 99,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
    "pad_token_id": 1,
    "bos_token_id": 2,
    "eos_token_id": 3,
}
_ENCODER = {**_COMMON, "initializer_range": 0.2}
_DECODER = {**_COMMON, "num_key_value_heads": 2, "head_dim": 8, "initializer_range": 0.2}
CONFIGS: dict[str, dict[str, Any]] = {
    "bert": _ENCODER,
    "roberta": {**_ENCODER, "max_position_embeddings": 42, "type_vocab_size": 1},
    "xlm-roberta": {**_ENCODER, "max_position_embeddings": 42, "type_vocab_size": 1},
    "camembert": {**_ENCODER, "max_position_embeddings": 42, "type_vocab_size": 1},
    "distilbert": {**_ENCODER, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48},
    "electra": {**_ENCODER, "embedding_size": 24},
    "mpnet": {**_ENCODER, "max_position_embeddings": 42},
    "deberta": {**_ENCODER, "relative_attention": True, "pos_att_type": ["c2p", "p2c"], "type_vocab_size": 0},
    "deberta-v2": {
        **_ENCODER,
        "relative_attention": True,
        "pos_att_type": ["c2p", "p2c"],
        "position_buckets": 8,
        "norm_rel_ebd": "layer_norm",
        "share_att_key": True,
        "position_biased_input": False,
        "type_vocab_size": 0,
    },
    "albert": {**_ENCODER, "embedding_size": 24},
    "modernbert": {
        **_ENCODER,
        "local_attention": 8,
        "global_attn_every_n_layers": 2,
        "initializer_cutoff_factor": 2.0,
    },
    "gpt2": {**_COMMON, "n_inner": 48, "initializer_range": 0.2},
    "llama": _DECODER,
    "mistral": {**_DECODER, "sliding_window": None},
    "qwen2": _DECODER,
    "qwen3": _DECODER,
    "vit": {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "image_size": 16,
        "patch_size": 8,
        "initializer_range": 0.2,
    },
}
# Architectures whose code is that of another one here, or which other tests export: `make slow` has them too.
_ALIKE = ("roberta", "xlm-roberta", "camembert", "electra", "deberta", "albert", "llama", "mistral", "qwen2")


def first(count: int, values: Iterable[Any]) -> list[Any]:
    """Values of a parametrised test; `make test` has the first ones, `make slow` all of them."""
    return [
        value
        if place < count
        else pytest.param(*(value if isinstance(value, tuple) else (value,)), marks=pytest.mark.slow)
        for place, value in enumerate(values)
    ]


EVERY = first(len(CONFIGS) - len(_ALIKE), sorted(CONFIGS, key=_ALIKE.__contains__))
NATURAL_TASK = {
    **dict.fromkeys(CONFIGS, Task.TEXT_CLASSIFICATION),
    **dict.fromkeys(("gpt2", "llama", "mistral", "qwen2", "qwen3"), Task.TEXT_GENERATION),
    "vit": Task.IMAGE_CLASSIFICATION,
}


def config_of(model_type: str, **changes: Any) -> PretrainedConfig:
    return CONFIG_MAPPING[model_type](**{**CONFIGS[model_type], **changes})


def backbone_of(model_type: str, task: Task | None = None, **changes: Any) -> Any:
    """Random, its biases too, which would be zero: a bias that goes astray must show."""
    torch.manual_seed(0)
    model = auto_class(task or NATURAL_TASK[model_type]).from_config(config_of(model_type, **changes)).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def inputs_of(model: Any, *, batch: int = 2, tokens: int = 7) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    if model.config.model_type == "vit":
        return {"pixel_values": torch.randn(batch, 3, 16, 16)}
    ids = torch.randint(4, 99, (batch, tokens))
    mask = torch.ones_like(ids)
    mask[0, max(1, tokens // 2) :] = 0
    return {"input_ids": ids.masked_fill(mask == 0, 1), "attention_mask": mask}


def adapted(backbone: Any, task: Task | None = None, **settings: Any) -> PeftModel:
    """A backbone with random adapters that change its output."""
    torch.manual_seed(2)
    task = task or NATURAL_TASK[backbone.config.model_type]
    config = AdaKronConfig(**{"r": 8, "k": 4, "init_weights": False, "task_type": peft_task_type(task), **settings})
    return get_peft_model(backbone, config).eval()


WORDS = [
    "good",
    "great",
    "fine",
    "nice",
    "bad",
    "awful",
    "poor",
    "sad",
    "the",
    "film",
    "plot",
    "actor",
    "was",
    "is",
    "very",
    "not",
    "a",
    "and",
    "who",
    "where",
    "Anna",
    "Paris",
    "lives",
    "in",
    "works",
    "at",
    "Oslo",
    "Tom",
    ".",
    "?",
    "red",
    "blue",
    "green",
    "one",
    "two",
    "three",
    "four",
    "five",
    "##s",
    "##ly",
    "s",
    "t",
]


def save_backbone(folder: Path, model_type: str = "bert", task: Task = Task.FILL_MASK, **changes: Any) -> Path:
    """A backbone without a head for the task at hand, and a tokenizer of a few words and all letters."""
    special = ["[UNK]", "[PAD]", "[CLS]", "[SEP]", "[MASK]"]
    letters = [f"{prefix}{chr(code)}" for code in range(97, 123) for prefix in ("", "##")]
    vocabulary = {word: index for index, word in enumerate(dict.fromkeys([*special, *WORDS, *letters]))}
    changes = {"vocab_size": len(vocabulary), **changes}
    auto_class(task).from_config(config_of(model_type, **changes)).save_pretrained(folder)
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    is_decoder = model_type == "gpt2"
    if not is_decoder:
        tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = {f"{name[1:-1].lower()}_token": name for name in special}
    if is_decoder:  # as GPT-2: an end of text, and nothing to pad with
        names = {"unk_token": "[UNK]", "eos_token": "[SEP]"}
    inputs = ["input_ids", *([] if is_decoder else ["token_type_ids"]), "attention_mask"]
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=40, model_input_names=inputs, **names
    ).save_pretrained(folder)
    return folder


def save_checkpoint(
    folder: Path,
    model_type: str = "bert",
    task: Task | None = None,
    *,
    changes: dict[str, Any] | None = None,
    **settings: Any,
) -> Path:
    """A checkpoint and its backbone as a user has them: `folder/backbone` and `folder/adapter`."""
    task = task or NATURAL_TASK[model_type]
    backbone = backbone_of(model_type, task, **(changes or {}))
    backbone.save_pretrained(folder / "backbone")
    backbone.name_or_path = str(folder / "backbone")
    adapted(backbone, task, **settings).save_pretrained(folder / "adapter")
    return folder / "adapter"

"""Texts as a model reads them: its tokenizer with its limits, and what stands before a text."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from adakron_export.artifacts.generation_settings import read_settings
from adakron_export.tasks import Task
from adakron_export.tokenization.encoding import Encoded, TextEncoder, padding_id

_log = logging.getLogger(__name__)


def encoder_of(
    folder: Path, task: Task, config: Mapping[str, Any], *, max_length: int | None, plain: bool
) -> TextEncoder:  # fmt: skip
    """The tokenizer of an exported folder, which cuts off as its model and its library do.

    Args:
        folder: The folder.
        task: What the model is for.
        config: Its ``config.json``.
        max_length: The longest input, in tokens.
        plain: Whether ``tokenizer.json`` is enough.

    Raises:
        ArtifactError: There is no tokenizer.
    """
    encoder = TextEncoder(folder, max_length=max_length or config.get("max_position_embeddings"), plain=plain)
    own, tokens = padding_id(config), encoder.token("pad_token")
    if own is not None and tokens is not None and tokens[1] != own:
        _log.info("the tokenizer pads with %s, the model with %s: the model's is taken", tokens[1], own)
    if task is Task.FEATURE_EXTRACTION:
        limit = read_settings(folder / "sentence_bert_config.json").get("max_seq_length")
        encoder.max_length = min(encoder.max_length, limit or encoder.max_length)
    return encoder


def inputs_of(encoded: Encoded, config: Mapping[str, Any]) -> dict[str, list[int]]:
    """What a model reads of a text; one with fewer kinds of tokens has no more of them."""
    kinds = max(1, config.get("type_vocab_size") or 1)
    return {"input_ids": encoded.ids, "token_type_ids": [min(kind, kinds - 1) for kind in encoded.type_ids]}


def prepared(texts: Sequence[Any], task: Task, folder: Path) -> Sequence[Any]:
    """Texts as the tokenizer gets them: sentence-transformers puts a prompt before them, and may lower their case."""
    if task is not Task.FEATURE_EXTRACTION:
        return texts
    prompts = read_settings(folder / "config_sentence_transformers.json")
    prompt = (prompts.get("prompts") or {}).get(prompts.get("default_prompt_name"), "")
    lower = bool(read_settings(folder / "sentence_bert_config.json").get("do_lower_case"))
    return [prompt + (str(text).lower() if lower else str(text)) for text in texts]

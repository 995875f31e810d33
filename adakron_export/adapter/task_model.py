"""A model as its users see it: named inputs in, named fp32 outputs out, the same eager and exported."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from adakron_export.adapter.pooling import SentenceEmbedding
from adakron_export.errors import ExportError
from adakron_export.tasks import Task

# Architectures whose exports take token types and position ids, as optimum's do.
_WITH_TOKEN_TYPES = {"bert", "albert", "electra", "deberta", "deberta-v2"}
_DECODERS = {"gpt2", "llama", "mistral", "qwen2", "qwen3"}
TOKEN_AXES = {0: "batch_size", 1: "sequence_length"}


@dataclass(frozen=True, slots=True)
class Signature:
    """Inputs and outputs of a model in their order, each with the names of its dynamic axes."""

    inputs: dict[str, dict[int, str]]
    outputs: dict[str, dict[int, str]]


def signature_of(config: Any, task: Task) -> Signature:
    """The inputs and outputs of a model, named and ordered as `optimum` does.

    Args:
        config: The model's configuration.
        task: What it is for.
    """
    batch = {0: "batch_size"}
    outputs = {
        Task.TEXT_CLASSIFICATION: {"logits": batch},
        Task.IMAGE_CLASSIFICATION: {"logits": batch},
        Task.TOKEN_CLASSIFICATION: {"logits": TOKEN_AXES},
        Task.FILL_MASK: {"logits": TOKEN_AXES},
        Task.TEXT_GENERATION: {"logits": TOKEN_AXES},
        Task.QUESTION_ANSWERING: {"start_logits": TOKEN_AXES, "end_logits": TOKEN_AXES},
        Task.FEATURE_EXTRACTION: {"last_hidden_state": TOKEN_AXES, "sentence_embedding": batch},
    }[task]
    if config.model_type == "vit":
        outputs = {"last_hidden_state": batch} if task is Task.FEATURE_EXTRACTION else outputs
        return Signature({"pixel_values": batch}, outputs)
    inputs = {"input_ids": TOKEN_AXES, "attention_mask": TOKEN_AXES}
    if config.model_type in _WITH_TOKEN_TYPES and getattr(config, "type_vocab_size", 0) > 0:
        inputs["token_type_ids"] = TOKEN_AXES
    if config.model_type in _DECODERS and task in (Task.TEXT_GENERATION, Task.FEATURE_EXTRACTION):
        inputs["position_ids"] = TOKEN_AXES
    return Signature(inputs, outputs)


class TaskModel(nn.Module):
    """A transformers model behind its `Signature`: tensors in by position, a tuple of fp32 tensors out."""

    def __init__(self, model: nn.Module, task: Task, *, pooling: SentenceEmbedding | None = None) -> None:
        super().__init__()
        self.model = model
        self.task = task
        self.pooling = copy.deepcopy(pooling or SentenceEmbedding()).to(next(model.parameters()).dtype)
        self.config: Any = model.config
        self.signature = signature_of(self.config, task)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """The outputs in the signature's order."""
        named = dict(zip(self.signature.inputs, tensors, strict=True))
        if self.task is Task.TEXT_GENERATION or self.config.model_type in _DECODERS:
            outputs = self.model(**named, use_cache=False)
        else:
            outputs = self.model(**named)
        return tuple(self._output(name, outputs, named).to(torch.float32) for name in self.signature.outputs)

    def _output(self, name: str, outputs: Any, inputs: dict[str, Tensor]) -> Tensor:
        if name == "sentence_embedding":
            return cast(Tensor, self.pooling(outputs.last_hidden_state, inputs["attention_mask"]))
        tensor = getattr(outputs, name, None)
        if not isinstance(tensor, Tensor):
            raise ExportError(f"a {type(self.model).__name__} has no output {name!r} for {self.task.value}")
        return tensor


def position_limit(model: nn.Module) -> int | None:
    """The longest input of a model with learned positions, in tokens; ``None`` where positions are relative."""
    for name, module in model.named_modules():
        if name.rpartition(".")[2] in ("position_embeddings", "wpe") and isinstance(module, nn.Embedding):
            # RoBERTa and MPNet number the tokens from padding_idx + 1 on.
            offset = 0 if module.padding_idx is None else module.padding_idx + 1
            return module.num_embeddings - offset
    return None

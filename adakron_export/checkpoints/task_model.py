"""A model as its users see it: named inputs in, named fp32 outputs out, the same eager and exported."""

from __future__ import annotations

import copy
import inspect
import weakref
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_MASKED_LM_MAPPING_NAMES

from adakron_export.backbones.table import backbone_row
from adakron_export.checkpoints.pooling import SentenceEmbedding
from adakron_export.errors import ExportError
from adakron_export.tasks import PAST, PRESENT, Task, without_cache

TOKEN_AXES = {0: "batch_size", 1: "sequence_length"}


@dataclass(frozen=True, slots=True)
class Signature:
    """Inputs and outputs of a model in their order, each with the names of its dynamic axes.

    Attributes:
        inputs: The inputs.
        outputs: The outputs.
        past: Heads and width of those inputs that are keys and values of the past.
    """

    inputs: dict[str, dict[int, str]]
    outputs: dict[str, dict[int, str]]
    past: dict[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def texts(self) -> tuple[str, ...]:
        """The inputs that a batch of texts or images has; keys and values of the past are none."""
        return without_cache(self.inputs)


CacheShapes = tuple[tuple[int, int], ...]  # heads and width of the keys, then of the values, of each layer
_SHAPES: weakref.WeakKeyDictionary[nn.Module, CacheShapes | None] = weakref.WeakKeyDictionary()


def cache_shapes(model: nn.Module) -> CacheShapes | None:
    """What a model keeps of the tokens that it read; ``None`` where that is nothing, or no plain keys and values.

    It is run on one token to see.
    """
    if model not in _SHAPES:
        _SHAPES[model] = _find_cache_shapes(model)
    return _SHAPES[model]


def _find_cache_shapes(model: nn.Module) -> CacheShapes | None:
    config: dict[str, Any] = cast(Any, model).config.to_dict()
    writes = config["model_type"] not in MODEL_FOR_MASKED_LM_MAPPING_NAMES and _is_decoder(config)
    if not writes or "past_key_values" not in arguments_of(model):
        return None
    cache, device = DynamicCache(), next(model.parameters()).device
    token = torch.zeros(1, 1, dtype=torch.int64, device=device)
    try:
        with torch.no_grad():
            found = model(input_ids=token, past_key_values=cache, use_cache=True)
    except (RuntimeError, TypeError, ValueError, AttributeError, LookupError):  # it takes caches of another kind
        return None
    layers = getattr(getattr(found, "past_key_values", None), "layers", [])
    tensors: list[Any] = [getattr(layer, part, None) for layer in layers for part in ("keys", "values")]
    plain = all(isinstance(tensor, Tensor) and tensor.dim() == 4 and tensor.shape[2] == 1 for tensor in tensors)
    return tuple((tensor.shape[1], tensor.shape[3]) for tensor in tensors) if tensors and plain else None


_BATCH = {0: "batch_size"}
_ALL_TOKENS = {0: "batch_size", 1: "past_sequence_length + sequence_length"}
_OUTPUTS = {
    Task.TEXT_CLASSIFICATION: {"logits": _BATCH},
    Task.IMAGE_CLASSIFICATION: {"logits": _BATCH},
    Task.TOKEN_CLASSIFICATION: {"logits": TOKEN_AXES},
    Task.FILL_MASK: {"logits": TOKEN_AXES},
    Task.TEXT_GENERATION: {"logits": TOKEN_AXES},
    Task.QUESTION_ANSWERING: {"start_logits": TOKEN_AXES, "end_logits": TOKEN_AXES},
    Task.FEATURE_EXTRACTION: {"last_hidden_state": TOKEN_AXES, "sentence_embedding": _BATCH},
}


def signature_of(model: nn.Module, task: Task) -> Signature:
    """The inputs and outputs of a model, named and ordered as `optimum` does.

    Args:
        model: A model of transformers.
        task: What it is for.
    """
    config: dict[str, Any] = cast(Any, model).config.to_dict()
    row = backbone_row(config)
    if row.images or getattr(model, "main_input_name", None) == "pixel_values":
        outputs = {"last_hidden_state": _BATCH} if task is Task.FEATURE_EXTRACTION else _OUTPUTS[task]
        return Signature({"pixel_values": _BATCH}, outputs)
    writes = (task.writes or task is Task.FEATURE_EXTRACTION) and _is_decoder(config)
    names = row.text_inputs(config, arguments_of(model), writes=writes)
    inputs = dict.fromkeys(names, TOKEN_AXES)
    if task is not Task.TEXT_GENERATION_WITH_PAST:
        return Signature(inputs, _OUTPUTS[task])
    kept = cache_shapes(model)
    if kept is None:
        raise ExportError(f"a {type(model).__name__} keeps no keys and values that a graph can; use text-generation")
    parts = [f"{layer}.{part}" for layer in range(len(kept) // 2) for part in ("key", "value")]
    past = {f"{PAST}{part}": {0: "batch_size", 2: "past_sequence_length"} for part in parts}
    present = {f"{PRESENT}{part}": {0: _ALL_TOKENS[0], 2: _ALL_TOKENS[1]} for part in parts}
    return Signature(
        {**inputs, "attention_mask": _ALL_TOKENS, **past},
        {**_OUTPUTS[Task.TEXT_GENERATION], **present},
        dict(zip(past, kept, strict=True)),
    )


def arguments_of(model: nn.Module) -> frozenset[str]:
    """The names that a model's ``forward`` takes."""
    return frozenset(inspect.signature(model.forward).parameters)


def _is_decoder(config: dict[str, Any]) -> bool:
    """Whether an architecture writes: in transformers it has a head for that, and none that fills masks."""
    name = config["model_type"]
    known = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_MASKED_LM_MAPPING_NAMES
    return bool(config.get("is_decoder")) or (name in known[0] and name not in known[1])


class TaskModel(nn.Module):
    """A transformers model behind its `Signature`: tensors in by position, a tuple of fp32 tensors out."""

    def __init__(self, model: nn.Module, task: Task, *, pooling: SentenceEmbedding | None = None) -> None:
        super().__init__()
        self.model = model
        self.task = task
        self.pooling = copy.deepcopy(pooling or SentenceEmbedding()).to(next(model.parameters()).dtype)
        self.config: Any = model.config
        self.signature = signature_of(model, task)
        self._caches = "use_cache" in arguments_of(model)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """The outputs in the signature's order; keys and values stay in the model's dtype."""
        named = dict(zip(self.signature.inputs, tensors, strict=True))
        if self.signature.past:
            return self._with_past(named)
        outputs = self.model(**named, use_cache=False) if self._caches else self.model(**named)
        return tuple(self._output(name, outputs, named).to(torch.float32) for name in self.signature.outputs)

    def _with_past(self, named: dict[str, Tensor]) -> tuple[Tensor, ...]:
        tensors = [named.pop(name) for name in self.signature.past]
        # Without a configuration, all layers keep all tokens: a window is the mask's business.
        cache: Any = DynamicCache(list(zip(tensors[::2], tensors[1::2], strict=True)))
        outputs = self.model(**named, past_key_values=cache, use_cache=True)
        kept = [tensor for layer in outputs.past_key_values.layers for tensor in (layer.keys, layer.values)]
        return outputs.logits.to(torch.float32), *kept

    @property
    def takes_images(self) -> bool:
        """Whether it reads pixels in the place of tokens."""
        return "pixel_values" in self.signature.inputs

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

"""An artifact as a transformers model: what `transformers.pipeline` takes as `model`."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from optimum.modeling_base import OptimizedModel
from torch import Tensor
from transformers import (
    AutoConfig,
    Cache,
    GenerationConfig,
    GenerationMixin,
    PretrainedConfig,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers import modeling_outputs as outputs

from adakron_export.errors import RunnerError
from adakron_export.runtimes.bank import BankRunner
from adakron_export.runtimes.base import ArtifactRunner
from adakron_export.runtimes.decoding import Decoder, Kept, check_room, decoder_of
from adakron_export.subjects.opened import OpenedArtifact
from adakron_export.subjects.opening import open_subject
from adakron_export.subjects.subject import Subject
from adakron_export.tasks import Task

_log = logging.getLogger(__name__)
_OUTPUTS = {
    Task.TEXT_CLASSIFICATION: outputs.SequenceClassifierOutput,
    Task.IMAGE_CLASSIFICATION: outputs.ImageClassifierOutput,
    Task.TOKEN_CLASSIFICATION: outputs.TokenClassifierOutput,
    Task.QUESTION_ANSWERING: outputs.QuestionAnsweringModelOutput,
    Task.FILL_MASK: outputs.MaskedLMOutput,
    Task.FEATURE_EXTRACTION: outputs.BaseModelOutput,
    Task.TEXT_GENERATION: outputs.CausalLMOutput,
    Task.TEXT_GENERATION_WITH_PAST: outputs.CausalLMOutputWithPast,
}


class OnnxCache(Cache):  # type: ignore[misc,unused-ignore]
    """The keys and values of what an `OnnxModel` read, where ONNX Runtime computes; `generate` passes it on.

    Args:
        decoder: What reads.
    """

    def __init__(self, decoder: Decoder) -> None:
        super().__init__(layers=[])
        self._decoder = decoder
        self._kept: Kept | None = None

    def read(self, batch: Mapping[str, Any]) -> Tensor:
        """Read more tokens; see `Decoder.step`. The logits are ``[batch, tokens, vocabulary]``."""
        logits, self._kept = self._decoder.step(batch, self._kept)
        return torch.from_numpy(logits)

    def get_seq_length(self, layer_idx: int = 0) -> int:  # noqa: ARG002, RUF100
        """How many tokens were read."""
        return 0 if self._kept is None else self._kept.tokens

    def get_max_length(self) -> None:
        """None: it grows."""

    @property
    def is_compileable(self) -> bool:
        """No."""
        return False

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Keep the beams that go on."""
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep some texts."""
        if self._kept is None:
            return
        rows = indices.cpu().numpy()
        if not np.array_equal(rows, np.arange(self._kept.texts)):  # beams often stay where they are
            self._kept = self._decoder.select(self._kept, rows)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Keep each text several times."""
        if self._kept is not None:
            self.batch_select_indices(torch.arange(self._kept.texts).repeat_interleave(repeats))

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last tokens: ``-3`` three of them, ``0`` none; ``3`` (older transformers) all but three."""
        if self._kept is not None and tokens_to_remove:
            length = tokens_to_remove if tokens_to_remove > 0 else self._kept.tokens + tokens_to_remove
            self._kept = self._decoder.crop(self._kept, min(length, self._kept.tokens))

    def reset(self) -> None:
        """Forget all."""
        self._kept = None


class _WindowFull(StoppingCriteria):  # type: ignore[misc,unused-ignore]
    """Ends writing, with a word, where the model has no more positions."""

    def __init__(self, limit: int) -> None:
        self._limit = limit

    def __call__(self, input_ids: Tensor, scores: Any, **_rest: Any) -> Tensor:
        full = input_ids.shape[1] >= self._limit
        if full:
            _log.warning("the model's window of %s tokens is full; it stops here", self._limit)
        return torch.full((len(input_ids),), full, dtype=torch.bool)


class OnnxModel(OptimizedModel, GenerationMixin):  # type: ignore[misc,unused-ignore]
    """An artifact that `transformers.pipeline(task, model=..., tokenizer=...)` runs.

    Made by `from_pretrained`. Torch tensors in, transformers' output classes out; the computing is ONNX Runtime's.
    """

    main_input_name = "input_ids"
    base_model_prefix = "onnx_model"
    _is_stateful = False
    _supports_cache_class = False

    def __init__(self, runner: ArtifactRunner, config: PretrainedConfig, folder: Path) -> None:
        super().__init__(model=runner, config=config)
        self.folder = folder
        self.runner = runner
        self.task = Task(runner.manifest.task)
        self.generation_config = (
            GenerationConfig.from_pretrained(str(folder))
            if (folder / "generation_config.json").is_file()
            else GenerationConfig.from_model_config(config)
        )
        self._decoder = decoder_of(runner) if self.task is Task.TEXT_GENERATION_WITH_PAST else None
        self.generation_config.use_cache = self._decoder is not None
        self.device = torch.device("cpu")
        self.dtype = torch.float32
        self.training = False
        if "pixel_values" in runner.input_names:
            self.main_input_name = "pixel_values"

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, *, device: str = "cpu", adapter: str | None = None, **_unused: Any
    ) -> OnnxModel:
        """Open an artifact.

        Args:
            folder: The exported folder.
            device: ``cpu``, ``openvino`` or ``cuda``; tensors go in and out on the CPU either way.
            adapter: The adapter of a bank that answers.

        Raises:
            ArtifactError: The artifact is damaged.
            RunnerError: The device is not available.
        """
        opened = open_subject(Subject(folder, device=device, adapter=adapter))
        if not isinstance(opened, OpenedArtifact):
            raise RunnerError(f"{folder} is no artifact; make one with `adakron-export onnx`")
        if isinstance(opened.runner, BankRunner):
            raise RunnerError(f"{folder} is a bank; say which adapter answers, with adapter=...")
        return cls.of_runner(opened.runner, opened.artifact.folder, labels=opened.own_labels)

    @classmethod
    def of_runner(cls, runner: ArtifactRunner, folder: Path, *, labels: Mapping[str, Any] | None = None) -> OnnxModel:
        """A runner of an artifact as such a model.

        Args:
            runner: What computes.
            folder: The artifact's folder.
            labels: What an adapter of a bank says of its labels.
        """
        config, own = AutoConfig.from_pretrained(str(folder), trust_remote_code=False), labels or {}
        if own.get("id2label"):
            config.id2label = {int(index): label for index, label in own["id2label"].items()}
            config.label2id = {label: index for index, label in config.id2label.items()}
            config.problem_type = own.get("problem_type")
        # transformers compares the class's name with those that it knows for a task, and logs an error otherwise.
        named = type(config.architectures[0], (cls,), {})
        model: OnnxModel = named(runner, config, folder)
        return model

    def forward(self, **inputs: Any) -> Any:
        """Run a batch.

        Args:
            inputs: Tensors by name, ``[batch, tokens]``. Token types and position ids are made where they lack;
                what the model does not take is left out.

        Returns:
            The output class of the task.
        """
        given = {name: tensor for name, tensor in inputs.items() if isinstance(tensor, (Tensor, np.ndarray))}
        cache = inputs.get("past_key_values")
        if self._decoder is not None and (cache is not None or inputs.get("use_cache") is not False):
            cache = OnnxCache(self._decoder) if cache is None else cache
            return self._read(given, cache)
        batch = {name: np.asarray(self._input(name, given)) for name in self.runner.input_names}
        results = {name: torch.from_numpy(array) for name, array in self.runner.run(batch).items()}
        results.pop("sentence_embedding", None)
        return _OUTPUTS[self.task](**results)

    def _read(self, given: dict[str, Any], cache: Any) -> Any:
        if not isinstance(cache, OnnxCache):
            raise RunnerError(
                f"past_key_values is a {type(cache).__name__}; it must be what a call of this model returned"
            )
        before = cache.get_seq_length()
        if before and "attention_mask" not in given:
            ids = torch.as_tensor(given[self.main_input_name])
            given["attention_mask"] = torch.ones(len(ids), before + ids.shape[1], dtype=torch.int64)
        batch = {name: np.asarray(self._input(name, given)) for name in self.runner.input_names}
        return _OUTPUTS[self.task](logits=cache.read(batch), past_key_values=cache)

    def _input(self, name: str, given: dict[str, Any]) -> Any:
        if name in given:
            return given[name]
        if self.main_input_name not in given:
            raise RunnerError(f"the batch lacks {self.main_input_name}")
        ids = torch.as_tensor(given[self.main_input_name])
        if name == "attention_mask":
            return torch.ones_like(ids)
        if name == "position_ids":
            mask = torch.as_tensor(given.get("attention_mask", torch.ones_like(ids)))
            return (mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        return torch.zeros_like(ids)

    def _save_pretrained(self, save_directory: str | Path) -> None:
        shutil.copytree(self.folder, save_directory, dirs_exist_ok=True)

    def generate(self, inputs: Any = None, *args: Any, **options: Any) -> Any:
        """Write on; all that transformers' own `generate` takes.

        Raises:
            RunnerError: A prompt leaves no room in the model's window.
        """
        limit, prompt = self.runner.manifest.max_length, options.get(self.main_input_name, inputs)
        if limit is not None and prompt is not None:
            check_room(prompt.shape[-1], limit)
            own = options.pop("stopping_criteria", None) or ()
            options["stopping_criteria"] = StoppingCriteriaList([*own, _WindowFull(limit)])
        return super().generate(inputs, *args, **options)

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        next_sequence_length: int | None = None,
        past_key_values: OnnxCache | None = None,
        attention_mask: Tensor | None = None,
        use_cache: bool = True,
        **_unused: Any,
    ) -> dict[str, Any]:
        """The new tokens and the cache, or the whole text where there is none."""
        if past_key_values is None:
            return {"input_ids": input_ids, "attention_mask": attention_mask, "use_cache": False}
        new = input_ids if next_sequence_length is None else input_ids[:, -next_sequence_length:]
        return {"input_ids": new, "attention_mask": attention_mask, "past_key_values": past_key_values}

    def _prepare_cache_for_generation(self, generation_config: Any, model_kwargs: dict[str, Any], *_rest: Any) -> None:
        wanted = getattr(generation_config, "cache_implementation", None)
        if wanted not in (None, "dynamic"):
            raise RunnerError(f"cache_implementation is {wanted!r}; the cache of an artifact is ONNX Runtime's")
        if self._decoder is not None and generation_config.use_cache and "past_key_values" not in model_kwargs:
            model_kwargs["past_key_values"] = OnnxCache(self._decoder)

    @classmethod
    def is_remote_code(cls) -> bool:
        """Never: `generate` asks for it."""
        return False

    def get_experts_implementation(self) -> None:
        """None: `generate` asks every model for it (transformers 5.2x)."""

    def can_generate(self) -> bool:
        """Whether this is a language model."""
        return self.task.writes

    def eval(self) -> OnnxModel:
        """Itself: it is always in eval mode."""
        return self

    def to(self, *_device: Any, **_options: Any) -> OnnxModel:
        """Itself: where it computes was said when it was opened."""
        return self

"""An artifact as a transformers model: what `transformers.pipeline` takes as `model`."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from optimum.modeling_base import OptimizedModel
from torch import Tensor
from transformers import AutoConfig, GenerationConfig, GenerationMixin, PretrainedConfig
from transformers import modeling_outputs as outputs

from adakron_export.errors import RunnerError
from adakron_export.runtimes.bank import BankRunner
from adakron_export.runtimes.base import ArtifactRunner
from adakron_export.subjects.opened import OpenedArtifact
from adakron_export.subjects.opening import open_subject
from adakron_export.subjects.subject import Subject
from adakron_export.tasks import Task

_OUTPUTS = {
    Task.TEXT_CLASSIFICATION: outputs.SequenceClassifierOutput,
    Task.IMAGE_CLASSIFICATION: outputs.ImageClassifierOutput,
    Task.TOKEN_CLASSIFICATION: outputs.TokenClassifierOutput,
    Task.QUESTION_ANSWERING: outputs.QuestionAnsweringModelOutput,
    Task.FILL_MASK: outputs.MaskedLMOutput,
    Task.FEATURE_EXTRACTION: outputs.BaseModelOutput,
    Task.TEXT_GENERATION: outputs.CausalLMOutput,
}


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
        self.generation_config.use_cache = False
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
        config = AutoConfig.from_pretrained(str(folder), trust_remote_code=False)
        labels = opened.own_labels.get("id2label")
        if labels:
            config.id2label = {int(index): label for index, label in labels.items()}
            config.label2id = {label: index for index, label in config.id2label.items()}
            config.problem_type = opened.own_labels.get("problem_type")
        # transformers compares the class's name with those that it knows for a task, and logs an error otherwise.
        named = type(config.architectures[0], (cls,), {})
        model: OnnxModel = named(opened.runner, config, opened.artifact.folder)
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
        batch = {name: np.asarray(self._input(name, given)) for name in self.runner.input_names}
        results = {name: torch.from_numpy(array) for name, array in self.runner.run(batch).items()}
        results.pop("sentence_embedding", None)
        return _OUTPUTS[self.task](**results)

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
            return (mask.cumsum(-1) - 1).clamp(min=0)
        return torch.zeros_like(ids)

    def _save_pretrained(self, save_directory: str | Path) -> None:
        shutil.copytree(self.folder, save_directory, dirs_exist_ok=True)

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **_unused: Any
    ) -> dict[str, Any]:
        """The whole text each time: the graph has no cache."""
        return {"input_ids": input_ids, "attention_mask": attention_mask}

    def get_experts_implementation(self) -> None:
        """None: `generate` asks every model for it (transformers 5.2x)."""

    def can_generate(self) -> bool:
        """Whether this is a language model."""
        return self.task is Task.TEXT_GENERATION

    def eval(self) -> OnnxModel:
        """Itself: it is always in eval mode."""
        return self

    def to(self, *_device: Any, **_options: Any) -> OnnxModel:
        """Itself: where it computes was said when it was opened."""
        return self

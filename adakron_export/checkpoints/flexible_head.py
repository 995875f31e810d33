"""AdapterHub's flexible heads: layers of their own behind a backbone, in the place of transformers' heads.

Which layers, and what they read, stands in the ``adapter_head`` of the model's configuration, as AdapterHub writes it
into ``head_config.json`` (`PredictionHead` and its subclasses in `adapters`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, cast

import msgspec
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import (
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)

from adakron_export.adapter.bottleneck.config import activation_named
from adakron_export.adapter.bottleneck.layer import activate
from adakron_export.errors import CheckpointError
from adakron_export.files.records import record_of
from adakron_export.tasks import Task, auto_class

HEAD = "adapter_head"  # of the configuration
HEAD_MODULE = "head"
HEAD_TASKS = {
    "classification": Task.TEXT_CLASSIFICATION,
    "multilabel_classification": Task.TEXT_CLASSIFICATION,
    "tagging": Task.TOKEN_CLASSIFICATION,
    "question_answering": Task.QUESTION_ANSWERING,
    "image_classification": Task.IMAGE_CLASSIFICATION,
}


@dataclass(frozen=True, slots=True)
class HeadSettings:
    """What AdapterHub's heads are made by."""

    head_type: str
    num_labels: Annotated[int, msgspec.Meta(gt=0, le=100_000)]
    layers: Annotated[int, msgspec.Meta(gt=0, le=16)]
    activation_function: str | None = None
    label2id: dict[str, int] | None = None
    use_pooler: bool = False
    bias: bool = True
    dropout_prob: float | None = None
    multilabel: bool = False

    @property
    def task(self) -> Task:
        """What it is for."""
        return HEAD_TASKS[self.head_type]


class _Activation(nn.Module):
    def __init__(self, name: str) -> None:
        super().__init__()
        self._activate: Callable[[Tensor], Tensor] = activate(activation_named(name))

    def forward(self, hidden: Tensor) -> Tensor:
        return self._activate(hidden)


def head_settings(head: Any, where: str) -> HeadSettings:
    """The settings of a head, every one of which is known.

    Args:
        head: What AdapterHub writes as ``config`` of a head.
        where: The file, for the message.

    Raises:
        CheckpointError: Its type or a setting is not known, or impossible.
    """
    kind = head.get("head_type") if isinstance(head, dict) else None
    if not isinstance(kind, str) or kind not in HEAD_TASKS:
        raise CheckpointError(
            f"{where}: a head of type {kind!r:.60} is not exported; these are: {', '.join(HEAD_TASKS)}"
        )
    try:
        found = record_of({name: value for name, value in head.items() if value is not None}, HeadSettings)
        if found.activation_function is not None:
            activation_named(found.activation_function)
    except ValueError as error:  # of the record, or of the activation
        raise CheckpointError(f"{where}: the head's settings are not readable ({error})") from error
    if kind == "question_answering" and found.num_labels != 2:
        raise CheckpointError(f"{where}: a head for questions has {found.num_labels} outputs; it must have 2")
    return found


def head_layers(head: HeadSettings, hidden: int) -> nn.Sequential:
    """The layers of a head; their numbers are those of AdapterHub's, where dropout counts."""
    layers: list[nn.Module] = []
    for _ in range(head.layers - 1):
        layers += [nn.Identity(), nn.Linear(hidden, hidden)]
        layers += [_Activation(head.activation_function)] if head.activation_function else []
    return nn.Sequential(*layers, nn.Identity(), nn.Linear(hidden, head.num_labels, bias=head.bias))


class HeadedModel(PreTrainedModel):  # type: ignore[misc,unused-ignore]
    """A backbone and a flexible head; `with_flexible_head` makes one."""

    _supports_sdpa = True
    _supports_attention_backend = True

    def __init__(self, config: PretrainedConfig, body: PreTrainedModel) -> None:
        super().__init__(config)
        setattr(self, body.base_model_prefix, body)
        self.settings = head_settings(getattr(config, HEAD), "adapter_head")
        self.head = head_layers(self.settings, config.hidden_size)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
    ) -> Any:
        """The outputs that transformers' model for the same task has.

        Args:
            input_ids: ``[batch, tokens]``.
            attention_mask: ``[batch, tokens]``.
            token_type_ids: ``[batch, tokens]``.
            pixel_values: ``[batch, channels, height, width]``, in the place of the others.
        """
        given = {
            "input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids,
            "pixel_values": pixel_values,
        }  # fmt: skip
        outputs = self.base_model(**{name: value for name, value in given.items() if value is not None})
        hidden, kind = outputs.last_hidden_state, self.settings.head_type
        if kind == "tagging":
            return TokenClassifierOutput(logits=self.head(hidden))
        if kind == "question_answering":
            start, end = self.head(hidden).split(1, dim=-1)
            return QuestionAnsweringModelOutput(start_logits=start.squeeze(-1), end_logits=end.squeeze(-1))
        read = outputs.pooler_output if self.settings.use_pooler else hidden[:, 0]
        return SequenceClassifierOutput(logits=self.head(read))


def with_flexible_head(body: PreTrainedModel, config: PretrainedConfig, task: Task) -> PreTrainedModel:
    """A backbone with the head that its configuration asks for.

    The class of the result has the name of the transformers class whose place it takes: what is written down of the
    model is then what other programs look for.

    Args:
        body: The backbone without a head.
        config: Its configuration, with an ``adapter_head``.
        task: What the head is for.
    """
    known = auto_class(task)._model_mapping._model_mapping.get(config.model_type)
    name = known[0] if isinstance(known, (list, tuple)) else known or "HeadedModel"
    config.architectures = [str(name)]
    same = ("base_model_prefix", "main_input_name", "config_class")
    kind = type(str(name), (HeadedModel,), {attribute: getattr(body, attribute) for attribute in same})
    model = cast(PreTrainedModel, kind(config, body))
    model.name_or_path = body.name_or_path
    return model.eval()

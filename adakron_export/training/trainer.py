"""transformers' Trainer with our order of texts, our losses and our learning rates."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.integrations.integration_utils import get_reporting_integration_callbacks

from adakron_export.data.metrics import LOWER_IS_BETTER
from adakron_export.errors import TrainingError, told_as
from adakron_export.tasks import Task
from adakron_export.training.augmentation import drop_tokens
from adakron_export.training.averaging import WeightAverage
from adakron_export.training.batches import Collator, LengthGroupedSampler
from adakron_export.training.callbacks import best_evaluation
from adakron_export.training.losses import LABELS, count_terms, label_names, summed_loss, symmetric_divergence
from adakron_export.training.model import trained_part
from adakron_export.training.recipe import Recipe


def training_arguments(recipe: Recipe, folder: Path, *, task: Task, metric: str) -> TrainingArguments:
    """The recipe in the words of transformers.

    Args:
        recipe: The settings.
        folder: Where the run keeps its state.
        task: Tells which tensors are labels.
        metric: Decides which checkpoint is the best.

    Raises:
        TrainingError: This machine cannot compute in the recipe's dtype, or a tracker is unknown or not installed.
    """
    try:
        return TrainingArguments(
            output_dir=str(folder.resolve()),
            num_train_epochs=recipe.epochs,
            max_steps=recipe.max_steps or -1,
            per_device_train_batch_size=recipe.batch_size,
            per_device_eval_batch_size=recipe.eval_batch_size,
            gradient_accumulation_steps=recipe.gradient_accumulation,
            learning_rate=recipe.learning_rate,
            weight_decay=recipe.weight_decay,
            warmup_steps=recipe.warmup,  # below 1 it is a share of the steps
            lr_scheduler_type=recipe.schedule,
            max_grad_norm=recipe.max_grad_norm,
            seed=recipe.seed,
            use_cpu=not torch.accelerator.is_available(),
            bf16=recipe.dtype == "bf16",
            fp16=recipe.dtype == "fp16",
            **_checkpointing(recipe),
            torch_compile=recipe.compile,
            eval_strategy="epoch",
            save_strategy="epoch",
            save_total_limit=2,
            metric_for_best_model=metric,
            greater_is_better=metric not in LOWER_IS_BETTER,
            logging_steps=recipe.logging_steps,
            logging_nan_inf_filter=False,  # a loss that is no number stops the run
            prediction_loss_only=task is Task.TEXT_GENERATION,
            label_names=label_names(task),
            dataloader_num_workers=recipe.num_workers,
            dataloader_pin_memory=torch.cuda.is_available(),
            remove_unused_columns=False,
            ddp_find_unused_parameters=False,
            ddp_broadcast_buffers=False,
            disable_tqdm=True,
            report_to=_trackers(recipe),
        )
    except (ValueError, ImportError, RuntimeError) as error:
        raise TrainingError(f"this cannot be trained here: {' '.join(str(error).split())}") from error


def _trackers(recipe: Recipe) -> list[str]:
    """What the Trainer reports to; TensorBoard's curves are our own, purged where a killed run wrote too much."""
    named = [name.strip() for name in (recipe.report_to or "").split(",")]
    trackers = [name for name in named if name not in ("", "none", "tensorboard")]
    with told_as(TrainingError, f"report_to={recipe.report_to!r}"):
        for kind in get_reporting_integration_callbacks(trackers):
            kind()  # refuses to be made where its package is missing; the Trainer makes another one
    return trackers


def _checkpointing(recipe: Recipe) -> dict[str, Any]:
    """Transformers 5.2x calls gradient checkpointing activation checkpointing; drop the old name when 5.0 is."""
    if not recipe.gradient_checkpointing:
        return {}
    known = {row.name for row in fields(TrainingArguments)}
    name = "activation_checkpointing" if "activation_checkpointing" in known else "gradient_checkpointing"
    return {name: True, f"{name}_kwargs": {"use_reentrant": False}}


class AdaKronTrainer(Trainer):  # type: ignore[misc,unused-ignore]
    """Trains adapters and head.

    Args:
        model: The model that `load_trainable` made.
        recipe: The settings.
        task: What the model is for.
        problem_type: Kind of text classification.
        pad_token_id: What fills short texts.
        special_ids: Tokens that stand for no piece of text.
        options: What else `transformers.Trainer` takes: arguments, data, callbacks.
    """

    def __init__(
        self,
        model: PeftModel,
        recipe: Recipe,
        *,
        task: Task,
        problem_type: str | None,
        pad_token_id: int,
        special_ids: Sequence[int] = (),
        **options: Any,
    ) -> None:
        if recipe.token_dropout and task is not Task.TEXT_CLASSIFICATION:
            raise TrainingError(f"token_dropout is for text classification; in {task} every token has a label")
        self.recipe = recipe
        self.task = task
        self.problem_type = problem_type
        super().__init__(model=model, data_collator=Collator(pad_token_id), **options)
        self.loss_is_scaled_for_ga = True  # by `compute_loss`, exactly
        self._special_ids = torch.tensor(list(special_ids), dtype=torch.long)
        self._average = WeightAverage(model, recipe.average) if recipe.average else None
        if self._average is not None:
            self.add_callback(self._average)

    def _get_train_sampler(self, train_dataset: Any = None) -> LengthGroupedSampler:
        table = self.train_dataset if train_dataset is None else train_dataset
        step_size = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        sampler = LengthGroupedSampler(
            list(table["length"]), step_size=step_size, seed=self.recipe.seed, grouped=self.recipe.group_by_length
        )
        self.add_callback(_EpochSetter(sampler))
        return sampler

    optimizer: torch.optim.Optimizer | None

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """AdamW with learning rates of their own for head and norms, and no decay of norms and biases."""
        if self.optimizer is None:
            recipe = self.recipe
            usual = recipe.learning_rate
            rates = {"adapters": usual, "norms": recipe.norm_learning_rate or usual,
                     "head": recipe.head_learning_rate or usual}  # fmt: skip
            groups: dict[tuple[str, bool], list[nn.Parameter]] = {}
            for name, parameter in (model or self.model).named_parameters():
                if parameter.requires_grad:
                    part = trained_part(name)
                    decays = part != "norms" and not name.endswith("bias")
                    groups.setdefault((part, decays), []).append(parameter)
            self.optimizer = torch.optim.AdamW(
                {"params": parameters, "lr": rates[part], "weight_decay": recipe.weight_decay if decays else 0.0}
                for (part, decays), parameters in groups.items()
            )
        return self.optimizer

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> tuple[list[Any], Any]:
        """The batches of one step, and how many terms the losses of all processes have together."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        if not batches:
            return batches, None
        terms = torch.stack([count_terms(batch, self.task).to(device) for batch in batches]).sum()
        return batches, self.accelerator.gather(terms).sum()

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | None = None,
    ) -> Any:
        """The mean over the terms of the whole step; without ``num_items_in_batch``, of this batch."""
        tensors = {name: tensor for name, tensor in inputs.items() if name not in LABELS}
        if model.training and self.recipe.token_dropout:
            tensors = drop_tokens(tensors, self.recipe.token_dropout, kept_ids=self._special_ids)
        outputs = model(**tensors)
        smoothing = self.recipe.label_smoothing if model.training else 0.0
        total = summed_loss(outputs, inputs, self.task, self.problem_type, smoothing=smoothing)
        if model.training and self.recipe.consistency:
            other = model(**tensors)
            apart = symmetric_divergence(outputs, other, inputs, self.task, self.problem_type)
            total = total + self.recipe.consistency * apart
        if num_items_in_batch is None:
            loss = total / count_terms(inputs, self.task).clamp(min=1)
        else:  # gradients are averaged over processes, so each takes its share of the step that many times
            loss = total * self.args.world_size / num_items_in_batch.clamp(min=1)
        return (loss, outputs) if return_outputs else loss

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        """As transformers does, with the average of the weights where one is kept."""
        with self._averaged():
            return super().evaluate(*args, **kwargs)

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """The Trainer keeps the checkpoint that `best_evaluation` will choose: of equal ones, that with less loss."""
        better = bool(super()._determine_best_metric(metrics, trial))
        best = best_evaluation(self.state.log_history, str(self.args.metric_for_best_model))
        if better or best is None or best["step"] != self.state.global_step:
            return better
        self.state.best_global_step = self.state.global_step
        return True

    def _averaged(self) -> AbstractContextManager[None]:
        return nullcontext() if self._average is None else self._average.in_place()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        if self._average is not None:
            self._average.load(Path(resume_from_checkpoint))

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """Adapters and head; what the Trainer adds (a pickle of its arguments, the tokenizer) is known already."""
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        model = self.accelerator.unwrap_model(self.model)
        with self._averaged():
            model.save_pretrained(str(folder), state_dict=state_dict, save_embedding_layers=False)
        if self._average is not None:
            self._average.save(folder)


class _EpochSetter(TrainerCallback):  # type: ignore[misc,unused-ignore]
    """Tells the sampler which epoch it is; accelerate does not where batches are skipped or split."""

    def __init__(self, sampler: LengthGroupedSampler) -> None:
        self.sampler = sampler

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.sampler.epoch = int((state.epoch or 0) + 1e-6)

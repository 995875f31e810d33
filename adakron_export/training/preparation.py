"""Everything that a run needs before its first step: tokenised data, model and trainer."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import PrinterCallback, set_seed

from adakron_export.data.data import TrainingData
from adakron_export.data.evaluation import metrics_function
from adakron_export.data.features import Tokenisation
from adakron_export.tokenization.encoding import padding_id
from adakron_export.training.callbacks import Saving, Stopping, TensorBoard
from adakron_export.training.model import BackboneSource, load_tokenizer, load_trainable, longest_input
from adakron_export.training.recipe import Recipe
from adakron_export.training.trainer import AdaKronTrainer, training_arguments

_log = logging.getLogger(__name__)


def prepare_trainer(
    recipe: Recipe,
    data: TrainingData,
    source: BackboneSource,
    folder: Path,
    *,
    load: Callable[..., Any] = load_trainable,
) -> AdaKronTrainer:
    """A trainer that is ready to run; nothing is written yet.

    Args:
        recipe: The settings.
        data: What is learned.
        source: The backbone.
        folder: Where the run will keep its state.
        load: Makes the model; arguments and result as of `load_trainable`.

    Raises:
        DataError: A label is unusable.
        BackboneError: The backbone cannot be loaded.
        TrainingError: A setting is impossible here.
    """
    task, metric = data.columns.task, data.metrics[0]
    tokenizer = load_tokenizer(source)
    arguments = training_arguments(recipe, folder, task=task, metric=metric)
    set_seed(recipe.seed)
    model = load(source, recipe, task, data.labels, tokenizer)
    longest = longest_input(model, tokenizer, recipe, task)
    tokenisation = Tokenisation(tokenizer, longest, data.columns, data.labels, recipe)
    features = tokenisation.dataset(data.train)
    evaluation = tokenisation.dataset(data.evaluation)
    lengths = list(evaluation["length"])  # sorted, so that evaluation pads as little as training does
    evaluation = evaluation.select(sorted(range(len(lengths)), key=lambda row: -lengths[row]))
    trainer = AdaKronTrainer(
        model,
        recipe,
        task=task,
        problem_type=data.labels.problem_type,
        pad_token_id=_padding(model, tokenizer),
        special_ids=tokenizer.all_special_ids,
        args=arguments,
        train_dataset=features,
        eval_dataset=evaluation,
        compute_metrics=metrics_function(data, recipe, evaluation),
        callbacks=[
            Saving(recipe.save_steps),
            Stopping(metric, recipe.early_stopping),
            TensorBoard(folder / "tensorboard"),
        ],
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _padding(model: Any, tokenizer: Any) -> int:
    """The token that fills short texts: the model's, by which a decoder that classifies finds the end of a text."""
    own = padding_id(model.config.to_dict())
    if own is None:
        return int(tokenizer.pad_token_id)
    if own != tokenizer.pad_token_id:
        _log.warning(
            "the tokenizer pads with %s, the model with %s: the model's is taken", tokenizer.pad_token_id, own
        )
    return own

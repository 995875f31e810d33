"""Labelled text to hold two sides against: read and tokenised as for training, labelled as the model knows it."""

from __future__ import annotations

import logging
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from adakron_export.data.columns import Columns, choose_columns
from adakron_export.data.data import TrainingData, read_source
from adakron_export.data.glue import glue_task
from adakron_export.data.labels import MULTI, REGRESSION, SINGLE, Labels
from adakron_export.data.metrics import LOWER_IS_BETTER, metric_names
from adakron_export.data.reading import Rows
from adakron_export.data.settings import TRAINED_TASKS, TextSettings
from adakron_export.errors import DataError, told_as
from adakron_export.extras import check_installed
from adakron_export.graph.tolerance import Tolerance
from adakron_export.runtimes.base import Array, Runner
from adakron_export.runtimes.space import InputSpace, NamedBatch
from adakron_export.tasks import Task
from adakron_export.tokenization.companions import has_tokenizer
from adakron_export.tokenization.encoding import load_tokenizer
from adakron_export.validation.accuracy import PERPLEXITY, AccuracyReport, Flip, MetricPair
from adakron_export.validation.batches import pad_batch
from adakron_export.validation.parity import OutputParity, compare_outputs
from adakron_export.validation.perplexity import Surprise

_log = logging.getLogger(__name__)

BATCH_SIZE = 32
_SHOWN_CHARACTERS = 120


@dataclass(frozen=True, slots=True)
class Text:
    """Where text is, and how it is read.

    Attributes:
        source: A file, a folder, ``glue:NAME`` or a hub id.
        settings: Its columns and cells.
    """

    source: str
    settings: TextSettings = field(default_factory=TextSettings)


@dataclass(frozen=True, slots=True)
class TextModel:
    """What of a model reads text.

    Attributes:
        task: What it is for.
        config: Its configuration, which has the labels.
        tokenizer: A fast one.
        space: What it accepts.
    """

    task: Task
    config: Mapping[str, Any]
    tokenizer: Any
    space: InputSpace


@dataclass(frozen=True, slots=True)
class EvaluationData:
    """Text, tokenised and batched by length.

    Attributes:
        source: The name that the user gave.
        batches: Named ``data-0``, ``data-1`` and so on, of texts of about the same length.
        order: The feature in each place of the batches, in their order.
        rows: The rows it was read from.
        features: What was tokenised: ``input_ids``, labels, the ``row`` that each comes from.
        data: Rows, columns and labels; ``None`` where the model's task has no labels, or the rows have none.
        settings: How it was read, and how answers are searched.
        written: Whether the model writes, so that its perplexity is measured.
    """

    source: str
    batches: tuple[NamedBatch, ...]
    order: tuple[int, ...]
    rows: Rows
    features: Mapping[str, list[Any]]
    data: TrainingData | None
    settings: TextSettings
    written: bool = False

    @property
    def metrics(self) -> tuple[str, ...]:
        """What is measured; the first decides. Empty without labels, but of models that write."""
        return (PERPLEXITY,) if self.written else self.data.metrics if self.data else ()

    def measure(self, outputs: Sequence[Array]) -> tuple[dict[str, float], list[str]]:
        """The metrics of a side, and its answer to each text; empty for numbers, which have no flips.

        Args:
            outputs: Each of all batches one after the other, ``[features, ...]``, padded.
        """
        from adakron_export.data.evaluation import metrics_function

        assert self.data is not None
        compute = metrics_function(self.data, self.settings, self.features)
        assert compute is not None
        ordered = self._in_order(outputs)
        expected = self._label_ids(ordered[0])
        predictions = tuple(ordered) if len(ordered) > 1 else ordered[0]
        return compute(SimpleNamespace(predictions=predictions, label_ids=expected)), self._answers(ordered)

    def _in_order(self, outputs: Sequence[Array]) -> list[Array]:
        back = np.argsort(self.order)
        return [output[back] for output in outputs]

    def _label_ids(self, logits: Array) -> Array | None:
        if "labels" not in self.features:
            return None
        labels = self.features["labels"]
        if logits.ndim < 3:
            return np.asarray(labels)
        padded = np.full(logits.shape[:2], -100)
        for index, row in enumerate(labels):
            padded[index, : len(row)] = row
        return padded

    def _answers(self, outputs: list[Array]) -> list[str]:
        """The answer to each row, as text."""
        assert self.data is not None
        names, logits = self.data.labels.names, outputs[0]
        if self.data.columns.task is Task.QUESTION_ANSWERING:
            from adakron_export.data.evaluation import find_answers

            return find_answers(self.data, self.settings, self.features, outputs)
        if self.data.columns.task is Task.TOKEN_CLASSIFICATION:
            kept = [np.asarray(row) != -100 for row in self.features["labels"]]
            best = logits.argmax(-1)
            return [
                " ".join(names[index] for index in row[: len(mask)][mask])
                for row, mask in zip(best, kept, strict=True)
            ]
        if self.data.labels.problem_type == REGRESSION:
            return [""] * len(logits)
        if self.data.labels.problem_type == MULTI:
            return [", ".join(name for name, score in zip(names, row, strict=True) if score > 0) for row in logits]
        return [names[index] for index in logits.argmax(-1)]

    def flips(self, reference: list[str], candidate: list[str]) -> list[Flip]:
        """The texts that two sides answer differently."""
        assert self.data is not None
        columns = self.data.columns
        rows = sorted(set(self.features["row"]))
        texts, labels = self.rows.columns[columns.text], self.rows.columns[columns.label or columns.text]
        return [
            Flip(self.rows.places[row], str(texts[row])[:_SHOWN_CHARACTERS], str(labels[row])[:40], before, after)
            for row, before, after in zip(rows, reference, candidate, strict=True)
            if before != after
        ]


def read_evaluation(text: Text, model: TextModel, *, limit: int | None = None, seed: int = 0) -> EvaluationData:
    """Read text for a model.

    Args:
        text: Where it is, and how it is read; of several splits the one to evaluate on is taken.
        model: What reads it.
        limit: Draw so many rows.
        seed: Seed of the draw.

    Raises:
        DataError: The text cannot be read, or has labels that the model does not know.
        MissingPackageError: The packages that read data are not installed.
    """
    check_installed("datasets", "sklearn", "scipy", extra="train")
    if limit is not None and limit < 1:
        raise DataError(f"limit is {limit}; it must be at least 1")
    rows = _rows_of(text, limit, seed)
    task, settings = model.task, text.settings
    labelled = task in TRAINED_TASKS and not task.writes and len(rows.columns) > 1
    if labelled:
        rows, columns = choose_columns(rows, settings, task=task, glue=glue_task(text.source))
    else:
        columns = _text_column(rows, task, settings)
    _log.info("%s", columns.describe())
    space = model.space
    if labelled:
        from adakron_export.data.features import Tokenisation

        labels = model_labels(model.config, task, separator=settings.label_separator)
        table = Tokenisation(model.tokenizer, space.max_length, columns, labels, settings).dataset(rows)
        features: dict[str, list[Any]] = {name: list(table[name]) for name in table.column_names}
        data = TrainingData(rows, rows, columns, labels, metric_names(task, labels))
    else:
        texts = [str(each) for each in rows.columns[columns.text]]
        encoded = model.tokenizer(texts, truncation=True, max_length=space.max_length)
        features, data = {**encoded, "row": list(range(len(rows)))}, None
    batches, order = _batched(features, space)
    return EvaluationData(text.source, batches, order, rows, features, data, settings, written=task.writes)


def _rows_of(text: Text, limit: int | None, seed: int) -> Rows:
    training, evaluation = read_source(text.source, text.settings)
    rows = evaluation or training
    if limit is not None and limit < len(rows):
        rows = rows.select(sorted(random.Random(seed).sample(range(len(rows)), limit)))  # noqa: S311, RUF100
    for note in rows.notes:
        _log.info("%s", note)
    return rows


def _batched(
    features: Mapping[str, Sequence[Any]], space: InputSpace
) -> tuple[tuple[NamedBatch, ...], tuple[int, ...]]:
    """Batches of texts of about the same length, and the feature in each place of them."""
    lengths = [len(ids) for ids in features["input_ids"]]
    order = sorted(range(len(lengths)), key=lambda index: lengths[index])
    names = [name for name in ("input_ids", "token_type_ids") if name in features]
    size = min(BATCH_SIZE, space.most_texts or BATCH_SIZE)
    batches = [
        pad_batch(
            space, f"data-{start // size}",
            [{name: features[name][index] for name in names} for index in order[start : start + size]],
        )
        for start in range(0, len(order), size)
    ]  # fmt: skip
    return tuple(batches), tuple(order)


@dataclass(frozen=True, slots=True)
class TextPair:
    """A text as each side's tokenizer and labels make it; one and the same where these are the same."""

    reference: EvaluationData
    candidate: EvaluationData


def compare_on_data(
    reference: Runner, candidate: Runner, texts: TextPair, *, tolerance: Tolerance, max_drop: float
) -> tuple[list[OutputParity], AccuracyReport | None]:  # fmt: skip
    """Run both sides on text: their outputs compared batch by batch and, with labels, the task's metrics.

    Args:
        reference: What is right.
        candidate: What is held against it.
        texts: The text as each side reads it.
        tolerance: What is allowed of an output.
        max_drop: Largest drop of the first metric, as a share.
    """
    data, own = texts.reference, texts.candidate
    names = reference.output_names
    rows: list[OutputParity] = []
    if data.written:
        return _compare_written(reference, candidate, texts, tolerance, max_drop)
    sides: tuple[list[list[Array]], list[list[Array]]] = ([], [])
    for number, batch in enumerate(data.batches, 1):
        _log.info("batch %s of %s of %s", number, len(data.batches), data.source)
        of_reference, of_candidate = reference.run(batch.inputs), candidate.run(batch.inputs)
        rows += compare_outputs(batch, of_reference, of_candidate, tolerance, outputs=names)
        for side, outputs in zip(sides, (of_reference, of_candidate), strict=True):
            side.append([outputs[name] for name in names])
    if data.data is None or own.data is None:
        return rows, None
    outputs_of_own = sides[1]
    if own is not data:
        outputs_of_own = [
            [outputs[name] for name in names] for outputs in (candidate.run(b.inputs) for b in own.batches)
        ]
    (reference_metrics, reference_answers), (candidate_metrics, candidate_answers) = (
        each.measure([concatenated(outputs) for outputs in zip(*side, strict=True)])
        for each, side in ((data, sides[0]), (own, outputs_of_own))
    )
    pairs = [MetricPair(name, reference_metrics[name], candidate_metrics[name]) for name in data.metrics]
    flips, worse = data.flips(reference_answers, candidate_answers), data.metrics[0] in LOWER_IS_BETTER
    return rows, AccuracyReport(data.source, len(data.rows), tuple(pairs), tuple(flips), max_drop, worse)


def _compare_written(
    reference: Runner, candidate: Runner, texts: TextPair, tolerance: Tolerance, max_drop: float
) -> tuple[list[OutputParity], AccuracyReport]:
    """Compare the logits of models that write, and the perplexity of the text: ``exp`` of the mean over its tokens."""
    data, own = texts.reference, texts.candidate
    rows: list[OutputParity] = []
    of_reference, of_candidate = Surprise(), Surprise()
    for number, batch in enumerate(data.batches, 1):
        _log.info("batch %s of %s of %s", number, len(data.batches), data.source)
        wanted, found = reference.run(batch.inputs), candidate.run(batch.inputs)
        rows += compare_outputs(batch, wanted, found, tolerance, outputs=reference.output_names)
        of_reference.add(batch, wanted["logits"])
        if own is data:
            of_candidate.add(batch, found["logits"])
    for batch in own.batches if own is not data else ():
        of_candidate.add(batch, candidate.run(batch.inputs)["logits"])
    pair = MetricPair(PERPLEXITY, of_reference.perplexity, of_candidate.perplexity)
    return rows, AccuracyReport(data.source, len(data.rows), (pair,), (), max_drop, lower_is_better=True)


def model_labels(config: Mapping[str, Any], task: Task, *, separator: str | None = None) -> Labels:
    """The labels that a model knows, by its configuration.

    Args:
        config: The model's.
        task: What it is for.
        separator: What parts the labels of one text in the data.

    Raises:
        DataError: A separator is given, and a text of this model has one label.
    """
    if task is Task.QUESTION_ANSWERING:
        return Labels(None)
    by_id = {int(index): str(name) for index, name in (config.get("id2label") or {}).items()}
    names = tuple(by_id.get(index, f"LABEL_{index}") for index in range(max(by_id, default=-1) + 1))
    synonyms = {str(index): index for index in range(len(names))} if task is Task.TOKEN_CLASSIFICATION else {}
    if all(re.fullmatch(r"LABEL_\d+", name) for name in names):  # transformers' names for classes without one
        synonyms = {name: index for index, name in enumerate(names)}
        names = tuple(str(index) for index in range(len(names)))
    if task is Task.TOKEN_CLASSIFICATION:  # data sets often have the numbers of tags
        return Labels(None, names, origin="the model", synonyms=synonyms)
    problem = config.get("problem_type") or (REGRESSION if len(names) == 1 else SINGLE)
    names = () if problem == REGRESSION else names
    if separator is not None and problem != MULTI:
        raise DataError(f"label_separator is for texts with several labels; this model knows one per text ({problem})")
    return Labels(problem, names, separator, origin="the model", synonyms=synonyms if names else {})


def _text_column(rows: Rows, task: Task, settings: TextSettings) -> Columns:
    """The column that was said, or the one with the longest texts."""
    said = settings.text_column
    if said is not None and said not in rows.columns:
        raise DataError(f"{rows.places[0]}: there is no column {said!r}; there are {', '.join(rows.columns)}")
    if said is not None:
        return Columns(task, said, None, None)
    texts = [name for name, values in rows.columns.items() if isinstance(values[0], str)]
    if not texts:
        raise DataError(f"{rows.places[0]}: no column holds text; there are {', '.join(map(repr, rows.columns))}")
    return Columns(task, max(texts, key=lambda name: sum(map(len, rows.columns[name]))), None, None)


def concatenated(outputs: Sequence[Array]) -> Array:
    """The same output of several batches, one after the other, padded to the longest with the lowest number."""
    if outputs[0].ndim == 1 or len({output.shape[1] for output in outputs}) == 1:
        return np.concatenate(outputs)
    longest = max(output.shape[1] for output in outputs)
    padded = [
        np.pad(output, [(0, 0), (0, longest - output.shape[1]), *[(0, 0)] * (output.ndim - 2)],
               constant_values=np.finfo(np.float32).min)
        for output in outputs
    ]  # fmt: skip
    return np.concatenate(padded)


def tokenizer_of(folder: Path) -> Any:
    """The tokenizer in a folder.

    Raises:
        DataError: There is none.
    """
    if not has_tokenizer(folder):
        raise DataError(f"{folder} has no tokenizer, which text needs; put the backbone's tokenizer files there")
    with told_as(DataError, f"{folder}: its tokenizer cannot be read"):
        return load_tokenizer(folder)

"""Turns rows into what the model reads: token ids and labels, truncated, aligned, counted."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from adakron_export.data.columns import Columns
from adakron_export.data.labels import Labels, as_words, check_lists, encode_labels
from adakron_export.data.metrics import IGNORED
from adakron_export.data.reading import Rows
from adakron_export.data.settings import TextSettings
from adakron_export.errors import DataError, first_few
from adakron_export.extras import require
from adakron_export.tasks import Task

_log = logging.getLogger(__name__)

Features = dict[str, list[Any]]


@dataclass(frozen=True, slots=True)
class Tokenisation:
    """How texts become features.

    Attributes:
        tokenizer: A fast tokenizer of transformers.
        max_length: Longer ones are cut, or windowed where a context is.
        columns: What is read.
        labels: What it is labelled with.
        settings: Stride of the windows.
    """

    tokenizer: Any
    max_length: int
    columns: Columns
    labels: Labels
    settings: TextSettings

    def dataset(self, rows: Rows) -> Any:
        """A `datasets.Dataset` with ``input_ids``, labels, ``length`` and the ``row`` that each comes from.

        Args:
            rows: What was read.

        Raises:
            DataError: A label is unusable, or no row is left.
        """
        datasets = require("datasets", extra="train")
        table = datasets.Dataset.from_dict(self._inputs(rows))
        datasets.disable_progress_bars()
        try:
            table = table.map(self._features, batched=True, remove_columns=table.column_names)
        finally:
            datasets.enable_progress_bars()
        cut = [rows.places[row] for row in dict.fromkeys(_rows_where(table, "cut"))]
        if cut:
            count = "all" if len(cut) == len(rows) else f"{len(cut)} of"
            _log.warning(
                "%s %s texts are longer than %s tokens: %s", count, len(rows), self.max_length, first_few(cut, 3)
            )
        empty = [rows.places[row] for row in _rows_where(table, "unlabelled")]
        if len(empty) == len(table):
            raise DataError(f"no row has a label within the first {self.max_length} tokens; raise --max-length")
        if empty:
            _log.warning(
                "%s texts have no label within %s tokens: %s", len(empty), self.max_length, first_few(empty, 3)
            )
        return table.remove_columns([name for name in ("cut", "unlabelled") if name in table.column_names])

    def _inputs(self, rows: Rows) -> dict[str, list[Any]]:
        columns = self.columns
        inputs: dict[str, list[Any]] = {"text": rows.columns[columns.text], "row": list(range(len(rows)))}
        if columns.pair:
            inputs["pair"] = rows.columns[columns.pair]
        if columns.task is Task.QUESTION_ANSWERING:
            inputs["answers"] = _answers(rows, columns)
        elif columns.task is Task.TEXT_GENERATION:
            if columns.label:
                inputs["completion"] = rows.columns[columns.label]
        else:
            inputs["labels"] = encode_labels(rows, columns, self.labels)
        if columns.task is Task.TOKEN_CLASSIFICATION:
            check_lists(inputs["text"], rows.places, columns.text)
            inputs["text"] = [as_words(value) for value in inputs["text"]]
            _check_aligned(inputs, rows)
        return inputs

    def _features(self, batch: Features) -> Features:
        make = {
            Task.TEXT_CLASSIFICATION: self._sequences,
            Task.TOKEN_CLASSIFICATION: self._tokens,
            Task.QUESTION_ANSWERING: self._windows,
            Task.TEXT_GENERATION: self._continuations,
        }[self.columns.task]
        features: Features = make(batch)
        features["length"] = [len(ids) for ids in features["input_ids"]]
        return features

    def _sequences(self, batch: Features) -> Features:
        encoded = self.tokenizer(batch["text"], batch.get("pair"), truncation=True, max_length=self.max_length,
                                 return_overflowing_tokens=True, return_attention_mask=False)  # fmt: skip
        features = _first_windows(encoded, len(batch["text"]))
        return {**features, "labels": batch["labels"], "row": batch["row"]}

    def _tokens(self, batch: Features) -> Features:
        encoded = self.tokenizer(batch["text"], is_split_into_words=True, truncation=True, max_length=self.max_length,
                                 return_overflowing_tokens=True, return_attention_mask=False)  # fmt: skip
        windows = _window_indices(encoded, len(batch["text"]))
        labels = [
            _word_labels(encoded.word_ids(window), tags) for window, tags in zip(windows, batch["labels"], strict=True)
        ]
        features = _first_windows(encoded, len(batch["text"]))
        unlabelled = [all(label == IGNORED for label in row) for row in labels]
        return {**features, "labels": labels, "row": batch["row"], "unlabelled": unlabelled}

    def _windows(self, batch: Features) -> Features:
        self._check_questions(batch["text"])
        encoded = self.tokenizer(
            batch["text"], batch["pair"], truncation="only_second", max_length=self.max_length,
            stride=min(self.settings.doc_stride, self.max_length // 2), return_overflowing_tokens=True,
            return_offsets_mapping=True, return_attention_mask=False,
        )  # fmt: skip
        sources = encoded.pop("overflow_to_sample_mapping")
        offsets = [
            [pair if part == 1 else (-1, -1) for pair, part in zip(pairs, encoded.sequence_ids(index), strict=True)]
            for index, pairs in enumerate(encoded.pop("offset_mapping"))
        ]
        ends = [
            _answer_tokens(pairs, batch["answers"][source]) for pairs, source in zip(offsets, sources, strict=True)
        ]
        return {
            **encoded,
            "offsets": offsets,
            "start_positions": [start for start, _ in ends],
            "end_positions": [end for _, end in ends],
            "row": [batch["row"][source] for source in sources],
        }

    def _check_questions(self, questions: Sequence[str]) -> None:
        """A window has room for the question and a token of its context at least."""
        longest = max(questions, key=len)
        for question in questions if len(longest) >= self.max_length // 2 else ():
            tokens = len(self.tokenizer(question, "")["input_ids"])
            if tokens + min(self.settings.doc_stride, self.max_length // 2) >= self.max_length:
                raise DataError(
                    f"a question is {tokens} tokens long, which leaves its context no room within {self.max_length}: "
                    f"{question[:60]!r}; shorten it, or raise --max-length"
                )

    def _continuations(self, batch: Features) -> Features:
        """Prompt and completion, of which the completion is learned; a text without one is learned whole.

        Both are taken as they are given: a blank that should part them belongs to one of them.
        """
        completions = batch.get("completion", [None] * len(batch["text"]))
        end = [self.tokenizer.eos_token_id] if self.tokenizer.eos_token_id is not None else []
        features: Features = {"input_ids": [], "labels": [], "row": batch["row"], "cut": [], "unlabelled": []}
        for text, completion in zip(batch["text"], completions, strict=True):
            prompt, tail = self._prompt_and_tail(text, completion)
            ids = [*prompt, *tail, *end]
            labels = [*(prompt if completion is None else [IGNORED] * len(prompt)), *tail, *end]
            features["cut"].append(len(ids) > self.max_length)
            features["input_ids"].append(ids[: self.max_length])
            features["labels"].append(labels[: self.max_length])
            features["unlabelled"].append(all(label == IGNORED for label in labels[1 : self.max_length]))
        return features

    def _prompt_and_tail(self, text: str, completion: str | None) -> tuple[list[int], list[int]]:
        """The tokens of both: as one text has them, where the first ones are the prompt's own."""
        prompt = list(self.tokenizer(text)["input_ids"])
        if completion is None:
            return prompt, []
        whole = list(self.tokenizer(text + completion)["input_ids"])
        if whole[: len(prompt)] == prompt and len(whole) > len(prompt):
            return prompt, whole[len(prompt) :]
        return prompt, list(self.tokenizer(completion, add_special_tokens=False)["input_ids"])


def _rows_where(table: Any, column: str) -> list[int]:
    if column not in table.column_names:
        return []
    return [row for row, true in zip(table["row"], table[column], strict=True) if true]


def _window_indices(encoded: Any, count: int) -> list[int]:
    """The index of each text's first window."""
    sources = encoded["overflow_to_sample_mapping"]
    return [sources.index(source) for source in range(count)]


def _first_windows(encoded: Any, count: int) -> Features:
    sources = encoded["overflow_to_sample_mapping"]
    windows = _window_indices(encoded, count)
    names = [name for name in encoded if name != "overflow_to_sample_mapping"]
    features = {name: [encoded[name][window] for window in windows] for name in names}
    return {**features, "cut": [sources.count(source) > 1 for source in range(count)]}


def _check_aligned(inputs: dict[str, list[Any]], rows: Rows) -> None:
    odd = [
        f"{place} ({len(words)} words, {len(tags)} tags)"
        for words, tags, place in zip(inputs["text"], inputs["labels"], rows.places, strict=True)
        if len(words) != len(tags) or not words
    ]
    if odd:
        raise DataError(f"{len(odd)} rows do not have one tag per word: {first_few(odd, 3)}")


def _word_labels(words: Sequence[int | None], tags: Sequence[int]) -> list[int]:
    """The tag of a word on its first token, -100 on its others and on special tokens."""
    before = [None, *words[:-1]]
    return [IGNORED if word is None or word == last else tags[word] for word, last in zip(words, before, strict=True)]


def _answers(rows: Rows, columns: Columns) -> list[dict[str, list[Any]]]:
    """As SQuAD has them: ``text`` and ``answer_start``, both empty where there is no answer."""
    assert columns.label is not None
    assert columns.pair is not None
    found: list[dict[str, list[Any]]] = []
    for value, context, place in zip(
        rows.columns[columns.label], rows.columns[columns.pair], rows.places, strict=True
    ):
        texts, starts = read_answers(value, context, place)
        for text, start in zip(texts, starts, strict=True):
            if start < 0 or context[start : start + len(text)] != text:
                raise DataError(f"{place}: the answer {text[:60]!r} does not stand in the context where it should")
        found.append({"text": texts, "answer_start": starts})
    return found


def read_answers(value: Any, context: str, place: str) -> tuple[list[str], list[int]]:
    """The answers to a question and where they begin, of every form in which data sets have them.

    Args:
        value: A text, a list of texts, an object with ``text`` and perhaps ``answer_start`` (each one value or a
            list), or a list of such objects; nothing, or an empty one, where there is no answer.
        context: Where an answer without a place is looked for.
        place: For messages.

    Raises:
        DataError: The value is none of these, or there are not as many places as texts.
    """
    if value is None or value in ("", [], {}):
        return [], []
    if isinstance(value, list):
        parts = [read_answers(each, context, place) for each in value]
        return [text for texts, _ in parts for text in texts], [start for _, starts in parts for start in starts]
    if isinstance(value, str):
        return [value], [context.find(value)]
    if not isinstance(value, dict) or "text" not in value:
        raise DataError(f"{place}: an answer is a text, or has `text` and `answer_start` as in SQuAD; found {value!r}")
    texts = value["text"] if isinstance(value["text"], list) else [value["text"]]
    given = value.get("answer_start")
    if given is None:
        given = [context.find(str(text)) for text in texts]
    starts = given if isinstance(given, list) else [given]
    if not all(isinstance(text, str) for text in texts) or not all(type(start) in (int, float) for start in starts):
        raise DataError(f"{place}: an answer's text is no text, or its start no number: {value!r}")
    if len(texts) != len(starts):
        raise DataError(f"{place}: has {len(texts)} answers and {len(starts)} places where they begin")
    return list(texts), [int(start) for start in starts]


def _answer_tokens(offsets: Sequence[Sequence[int]], answers: dict[str, list[Any]]) -> tuple[int, int]:
    """First and last token of the answer; the first token of all where it is not in this window."""
    if not answers["text"]:
        return 0, 0
    start = answers["answer_start"][0]
    end = start + len(answers["text"][0])
    inside = [index for index, (left, right) in enumerate(offsets) if right > start and left < end and left >= 0]
    whole = inside and offsets[inside[0]][0] <= start and offsets[inside[-1]][1] >= end
    return (inside[0], inside[-1]) if whole else (0, 0)

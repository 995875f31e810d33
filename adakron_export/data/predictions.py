"""From what a model puts out to what its user asked for, task by task; needs numpy alone.

Names of the answers' parts are those of transformers' pipelines.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adakron_export.tokenization.encoding import Encoded, Text

Scores = NDArray[np.float64]
REGRESSION, MULTI = "regression", "multi_label_classification"
_ANSWER_TOKENS, _BEST = 30, 20


@dataclass(frozen=True, slots=True)
class Classes:
    """What a classifier's columns mean.

    Attributes:
        names: Names of the classes in their order.
        problem_type: Kind of classification, as transformers' configurations call it.
    """

    names: tuple[str, ...]
    problem_type: str | None

    @classmethod
    def of(cls, config: Mapping[str, Any], count: int) -> Classes:
        """As a model's ``config.json`` says; a class without a name is called ``LABEL_n``, as transformers does."""
        names = {int(index): str(name) for index, name in (config.get("id2label") or {}).items()}
        problem = config.get("problem_type") or (REGRESSION if count == 1 else None)
        return cls(tuple(names.get(index, f"LABEL_{index}") for index in range(count)), problem)


def classify(logits: Scores, classes: Classes, *, top_k: int | None) -> Any:
    """The class of a text, the ``top_k`` best ones, or all of those that a text can have together.

    Args:
        logits: ``[classes]``.
        classes: What they mean. Numbers of a regression are given as they are.
        top_k: How many; by default the best one, or all where they do not exclude one another.
    """
    scores = logits if classes.problem_type == REGRESSION else _sigmoid(logits)
    if classes.problem_type not in (REGRESSION, MULTI):
        scores = _softmax(logits)
    rows: list[dict[str, Any]] = [
        {"label": name, "score": float(score)} for name, score in zip(classes.names, scores, strict=True)
    ]
    if classes.problem_type == REGRESSION:
        return rows[0] if len(rows) == 1 else rows
    rows.sort(key=lambda row: -row["score"])
    if classes.problem_type == MULTI or top_k is not None:
        return rows[:top_k]
    return rows[0]


def tag(logits: NDArray[Any], encoded: Encoded, text: str, classes: Classes) -> list[dict[str, Any]]:
    """The spans of a text: words by the tag of their first token, as it is trained, joined where one goes on.

    Args:
        logits: ``[tokens, classes]``.
        encoded: The text's tokens.
        text: The text.
        classes: The tags; ``O`` is outside of all spans.
    """
    spans: list[dict[str, Any]] = []
    before = None
    for word, (start, end, scores) in _words(logits, encoded).items():
        best = int(scores.argmax())
        prefix, kind = split_tag(classes.names[best])
        if kind is not None:
            goes_on = before == word - 1 and prefix in ("I", "E", "L", "M") and spans[-1]["entity_group"] == kind
            if goes_on:
                spans[-1]["end"], spans[-1]["scores"] = end, [*spans[-1]["scores"], float(scores[best])]
            else:
                start += len(text[start:end]) - len(text[start:end].lstrip())  # of byte-level tokens
                spans.append({"entity_group": kind, "scores": [float(scores[best])], "start": start, "end": end})
        before = None if kind is None else word
    return [
        {"entity_group": span["entity_group"], "score": float(np.mean(span["scores"])),
         "word": text[span["start"] : span["end"]], "start": span["start"], "end": span["end"]}
        for span in spans
    ]  # fmt: skip


def split_tag(name: str) -> tuple[str, str | None]:
    """A tag's prefix, ``I`` where it has none, so that like neighbours are one span, and its kind; none for ``O``."""
    if name == "O":
        return "", None
    prefix, dash, kind = name.partition("-")
    return (prefix, kind) if dash and len(prefix) == 1 and kind else ("I", name)


def _words(logits: NDArray[Any], encoded: Encoded) -> dict[int, tuple[int, int, Scores]]:
    """First and last character of each word, and the probabilities of its first token."""
    found: dict[int, tuple[int, int, Scores]] = {}
    for index, (word, (start, end)) in enumerate(zip(encoded.words, encoded.offsets, strict=True)):
        if word is None or encoded.parts[index] is None:
            continue
        if word in found:
            found[word] = (found[word][0], end, found[word][2])
        else:
            found[word] = (start, end, _softmax(logits[index].astype(np.float64)))
    return found


def fill(logits: NDArray[Any], encoded: Encoded, mask_id: int, decode: Any, *, top_k: int) -> list[Any]:
    """The likeliest tokens in the place of each mask; a list of lists where there are several.

    Args:
        logits: ``[tokens, vocabulary]``.
        encoded: The text's tokens.
        mask_id: The token to fill.
        decode: Makes a text of ids.
        top_k: How many for each.
    """
    filled = []
    for place in (index for index, token in enumerate(encoded.ids) if token == mask_id):
        scores = _softmax(logits[place].astype(np.float64))
        best = np.argsort(-scores, kind="stable")[:top_k]
        filled.append(
            [{"score": float(scores[token]), "token": int(token), "token_str": decode([int(token)])} for token in best]
        )
    return filled[0] if len(filled) == 1 else filled


def answer(starts: Sequence[Scores], ends: Sequence[Scores], windows: Sequence[Encoded], pair: Text) -> dict[str, Any]:
    """The likeliest span of a context.

    Args:
        starts: For each window, the start logits of its tokens.
        ends: For each window, the end logits of its tokens.
        windows: On the context.
        pair: Question and context.
    """
    best: dict[str, Any] = {"answer": "", "score": 0.0, "start": 0, "end": 0}
    for first, last, window in zip(starts, ends, windows, strict=True):
        inside = np.array([part == 1 for part in window.parts])
        if not inside.any():
            continue
        begin, close = (_softmax(np.where(inside, logits.astype(np.float64), -np.inf)) for logits in (first, last))
        for start in np.argsort(-begin, kind="stable")[:_BEST]:
            for end in np.argsort(-close, kind="stable")[:_BEST]:
                score = float(begin[start] * close[end])
                if start <= end < start + _ANSWER_TOKENS and score > best["score"]:
                    left, right = window.offsets[start][0], window.offsets[end][1]
                    best = {"answer": pair[1][left:right], "score": score, "start": left, "end": right}
    return best


def _softmax(logits: NDArray[Any]) -> Scores:
    shifted = np.exp(logits.astype(np.float64) - logits.max())
    return np.asarray(shifted / shifted.sum())


def _sigmoid(logits: NDArray[Any]) -> Scores:
    return np.asarray(1 / (1 + np.exp(-logits.astype(np.float64))))

"""Answers in their context: the best of n starts and ends per question, and SQuAD's exact match and F1.

Source: Rajpurkar et al., "SQuAD" (EMNLP 2016), section 4, and "Know What You Don't Know" (ACL 2018) for questions
without an answer.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class AnswerSearch:
    """How an answer is found in the logits.

    Attributes:
        n_best: Starts and ends that are tried in each window.
        max_tokens: Longest answer.
        may_be_none: Whether a question may have no answer.
    """

    n_best: int
    max_tokens: int
    may_be_none: bool

    def best(self, windows: Sequence[tuple[NDArray[Any], NDArray[Any], Any]], context: str) -> str:
        """The answer to one question.

        Args:
            windows: Start logits ``[tokens]``, end logits ``[tokens]`` and offsets into the context of each window.
            context: What the offsets count in.
        """
        found = (-np.inf, "")
        none = np.inf
        for starts, ends, offsets in windows:
            none = min(none, float(starts[0] + ends[0]))
            length = len(offsets)
            for start in np.argsort(starts[:length])[::-1][: self.n_best]:
                for end in np.argsort(ends[:length])[::-1][: self.n_best]:
                    score = float(starts[start] + ends[end])
                    if score > found[0] and self._possible(int(start), int(end), offsets):
                        found = (score, context[offsets[start][0] : offsets[end][1]])
        return "" if self.may_be_none and none > found[0] else found[1]

    def _possible(self, start: int, end: int, offsets: Any) -> bool:
        return start <= end < start + self.max_tokens and offsets[start][0] >= 0 and offsets[end][0] >= 0


def answer_metrics(found: Sequence[str], expected: Sequence[Sequence[str]]) -> dict[str, float]:
    """Exact match and F1, each from 0 to 1.

    Args:
        found: One answer per question.
        expected: The right ones per question; none where there is no answer.
    """
    pairs = [(answer, list(right) or [""]) for answer, right in zip(found, expected, strict=True)]
    return {
        "f1": float(np.mean([max(_f1(answer, one) for one in right) for answer, right in pairs])),
        "exact_match": float(
            np.mean([max(_words(answer) == _words(one) for one in right) for answer, right in pairs])
        ),
    }


def _words(text: str) -> list[str]:
    """Lower case, without punctuation and articles."""
    kept = "".join(character for character in text.lower() if character not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", kept).split()


def _f1(left: str, right: str) -> float:
    a, b = _words(left), _words(right)
    if not a or not b:
        return float(a == b)
    same = sum((Counter(a) & Counter(b)).values())
    return 2 * same / (len(a) + len(b)) if same else 0.0

"""What the door of a server hands to a process that runs the models, and what comes back; many jobs are one batch."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from adakron_export.artifacts.adapters import read_record
from adakron_export.errors import AdaKronError, ArtifactError
from adakron_export.runtimes.bank import BankRunner
from adakron_export.runtimes.base import Array
from adakron_export.serving.answering import Answers
from adakron_export.serving.predictor import Predictor
from adakron_export.serving.questions import Questions
from adakron_export.serving.requests import RequestError, Tensors

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Added:
    """An adapter that was added to a bank while it is served.

    Attributes:
        name: Its name.
        number: Later ones of the same name have larger ones.
        folder: Where it is.
        sha256: The sha256 of its weights, when it was added.
    """

    name: str
    number: int
    folder: str
    sha256: str


@dataclass(frozen=True, slots=True)
class Job:
    """What one request asks of a model.

    Attributes:
        model: The model's name.
        asked: Questions that were found fit, or tensors.
        added: Those of its adapters that are not the bank's own.
    """

    model: str
    asked: Questions | Tensors
    added: tuple[Added, ...] = ()

    @property
    def texts(self) -> int:
        """How many rows it has."""
        if isinstance(self.asked, Questions):
            return len(self.asked.given)
        return max((len(values) for values in self.asked.batch.values() if values.ndim), default=1)


@dataclass(frozen=True, slots=True)
class Reply:
    """What came of a job.

    Attributes:
        answers: What the model says to questions.
        outputs: What the graph puts out for tensors, by name.
        error: The status and the message of what failed.
        batch: How many texts ran together; 0 but for one job of each batch, so that they can be counted.
    """

    answers: Answers | None = None
    outputs: dict[str, Array] | None = None
    error: tuple[int, str] | None = None
    batch: int = 0


class Worker:
    """An opened model that answers jobs, one call after the other.

    Args:
        predictor: The model.
        batch_size: The most texts that run together.
    """

    def __init__(self, predictor: Predictor, batch_size: int) -> None:
        self._predictor, self._batch_size = predictor, batch_size
        self._numbers: dict[str, int] = {}

    def answer(self, jobs: Sequence[Job]) -> list[Reply]:
        """What comes of each job; what is wrong with one does not touch the others."""
        replies: list[Reply | None] = [self._prepared(job) for job in jobs]
        groups: dict[Any, list[int]] = {}
        for place, job in enumerate(jobs):
            if replies[place] is None:
                key = job.asked.options if isinstance(job.asked, Questions) else place
                groups.setdefault(key, []).append(place)
        for places in groups.values():
            for place, reply in zip(places, self._together([jobs[place] for place in places]), strict=True):
                replies[place] = reply
        first, *others = [reply for reply in replies if reply is not None]
        return [replace(first, batch=sum(job.texts for job in jobs)), *others]

    def _prepared(self, job: Job) -> Reply | None:
        """Take the adapters that a job needs; what failed, or ``None``."""
        try:
            for added in job.added:
                self._take(added)
        except AdaKronError as error:
            return Reply(error=(400, str(error)))
        return None

    def _take(self, added: Added) -> None:
        if added.number <= self._numbers.get(added.name, 0):
            return
        folder = Path(added.folder)
        if read_record(folder).weights_sha256 != added.sha256:
            raise ArtifactError(f"the adapter {added.name!r} is no longer what was added; add it again")
        if added.name in self._predictor.adapters:
            self._predictor.remove(added.name)
        self._predictor.add(added.name, folder)
        self._numbers[added.name] = added.number

    def _together(self, jobs: Sequence[Job]) -> list[Reply]:
        """Jobs with the same options in one batch; each by itself where that fails."""
        try:
            if isinstance(jobs[0].asked, Tensors):
                return [Reply(outputs=self._run(jobs[0].asked))]
            return self._answers([job.asked for job in jobs if isinstance(job.asked, Questions)])
        except Exception as error:
            if len(jobs) > 1:
                return [reply for job in jobs for reply in self._together([job])]
            return [Reply(error=_told(error))]

    def _answers(self, asked: Sequence[Questions]) -> list[Reply]:
        names = [name for each in asked for name in each.names or ()]
        given = tuple(text for each in asked for text in each.given)
        together = Questions(given, tuple(names) if names else None, asked[0].options)
        answers = self._predictor.answer(together, batch_size=self._batch_size)
        replies, start = [], 0
        for each in asked:
            end = start + len(each.given)
            cut = tuple(place - start for place in answers.cut if start <= place < end)
            replies.append(Reply(Answers(answers.results[start:end], cut)))
            start = end
        return replies

    def _run(self, asked: Tensors) -> dict[str, Array]:
        runner = self._predictor.runner
        if isinstance(runner, BankRunner):
            outputs = runner.run(asked.batch, asked.adapter)
            if any(isinstance(values, list) for values in outputs.values()):
                raise RequestError(
                    400, "the adapters have labels of different numbers; ask those of one number at once"
                )
        else:
            outputs = runner.run(asked.batch)
        wanted = outputs.keys() if asked.outputs is None else asked.outputs
        missing = next((name for name in wanted if name not in outputs), None)
        if missing is not None:
            raise RequestError(400, f"there is no output {missing!r:.80}; there are {', '.join(outputs)}")
        return {name: outputs[name] for name in wanted}


def _told(error: Exception) -> tuple[int, str]:
    """A status and a message; what was not foreseen may hold a user's text, so neither log nor answer shows it."""
    if isinstance(error, RequestError):
        return error.status, str(error)
    if isinstance(error, AdaKronError):
        return 400, str(error)
    _log.error("a model failed: %s", type(error).__name__)
    return 500, f"the model failed ({type(error).__name__})"

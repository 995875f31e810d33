"""Runs together what came while the last batch ran."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable

from adakron_export.serving.jobs import Job, Reply


class Batcher:
    """One batch at a time: whatever waits when the last one is done is the next one.

    Ray's own ``serve.batch`` closes a batch when its wait is over, even if no batch can run yet: under load it ran one
    text at a time.

    Args:
        run: Answers the jobs of a batch.
        size: The most texts in one; a job that has more runs by itself.
        wait_s: How long the first job of an idle server waits for others, in seconds.
    """

    def __init__(self, run: Callable[[list[Job]], Awaitable[list[Reply]]], size: int, wait_s: float) -> None:
        self._run, self._size, self._wait_s = run, size, wait_s
        self._waiting: deque[tuple[Job, asyncio.Future[Reply]]] = deque()
        self._work: asyncio.Task[None] | None = None

    async def answer(self, job: Job) -> Reply:
        """What comes of a job. One whose caller has gone is not run."""
        answer: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._waiting.append((job, answer))
        if self._work is None or self._work.done():
            self._work = asyncio.create_task(self._batches())
        return await answer

    async def _batches(self) -> None:
        await asyncio.sleep(self._wait_s)
        while batch := self._taken():
            jobs, answers = zip(*batch, strict=True)
            try:
                replies = await self._run(list(jobs))
            except Exception as error:
                for answer in answers:
                    if not answer.done():
                        answer.set_exception(error)
                continue
            for answer, reply in zip(answers, replies, strict=True):
                if not answer.done():
                    answer.set_result(reply)

    def _taken(self) -> list[tuple[Job, asyncio.Future[Reply]]]:
        """The jobs that waited longest, as many as one batch has room for."""
        batch, texts = list[tuple[Job, asyncio.Future[Reply]]](), 0
        while self._waiting and (not batch or texts + self._waiting[0][0].texts <= self._size):
            job, answer = self._waiting.popleft()
            if not answer.done():
                batch.append((job, answer))
                texts += job.texts
        return batch

"""What runs together, and what becomes of callers who go away or whose batch fails."""

import asyncio

import numpy as np
import pytest

from adakron_export.serving.batcher import Batcher
from adakron_export.serving.jobs import Job, Reply
from adakron_export.serving.requests import Tensors


def job(name, texts=1):
    return Job(name, Tensors({"input_ids": np.zeros((texts, 2), np.int64)}, None, None))


class Runs:
    """Answers with the sizes of batches, each when it is told to."""

    def __init__(self):
        self.batches, self.gate = [], asyncio.Semaphore(0)

    async def __call__(self, jobs):
        self.batches.append([each.model for each in jobs])
        await self.gate.acquire()
        if "bad" in self.batches[-1]:
            raise ValueError("bad")
        return [Reply(batch=len(jobs)) for _ in jobs]


async def started(*calls):
    tasks = [asyncio.create_task(call) for call in calls]
    await asyncio.sleep(0.01)
    return tasks


def test_what_came_meanwhile_is_the_next_batch():
    async def run():
        runs = Runs()
        batcher = Batcher(runs, 4, 0)
        calls = await started(batcher.answer(job("first")))
        for name in ("a", "b", "c", "d", "e"):
            calls += await started(batcher.answer(job(name)))
        for _ in range(3):
            runs.gate.release()
        assert [reply.batch for reply in await asyncio.gather(*calls)] == [1, 4, 4, 4, 4, 1]
        return runs.batches

    assert asyncio.run(run()) == [["first"], ["a", "b", "c", "d"], ["e"]]


def test_texts_are_counted_and_none_is_split():
    async def run():
        runs = Runs()
        batcher = Batcher(runs, 4, 0)
        calls = await started(
            *(batcher.answer(job(name, size)) for name, size in zip("abcd", (3, 2, 9, 1), strict=True))
        )
        for _ in range(4):
            runs.gate.release()
        await asyncio.gather(*calls)
        return runs.batches

    assert asyncio.run(run()) == [["a"], ["b"], ["c"], ["d"]]


def test_an_idle_server_waits_a_little():
    async def run():
        runs = Runs()
        batcher = Batcher(runs, 4, 0.05)
        calls = await started(batcher.answer(job("a")))
        calls += await started(batcher.answer(job("b")))
        runs.gate.release()
        await asyncio.gather(*calls)
        return runs.batches

    assert asyncio.run(run()) == [["a", "b"]]


def test_who_went_away_is_not_run_and_a_batch_that_fails_is_no_end():
    async def run():
        runs = Runs()
        batcher = Batcher(runs, 4, 0)
        calls = await started(batcher.answer(job("bad")))
        gone, stays = await started(batcher.answer(job("gone")), batcher.answer(job("stays")))
        gone.cancel()
        runs.gate.release()
        runs.gate.release()
        with pytest.raises(ValueError, match="bad"):
            await calls[0]
        assert (await stays).batch == 1
        again = await started(batcher.answer(job("again")))
        runs.gate.release()
        await again[0]
        return runs.batches

    assert asyncio.run(run()) == [["bad"], ["stays"], ["again"]]

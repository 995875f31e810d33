"""Who asks a server that `serving.py` measures; each function runs in a process of its own."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from typing import Any

PORT, WORDS = 18300, 30  # 30 words and two special tokens


def closed(
    callers: int, seconds: float, key: str | None = None, names: Sequence[str] = (), shares: Sequence[float] = ()
) -> dict[str, Any]:
    """Callers that each wait for an answer and ask again."""
    end = time.perf_counter() + seconds
    return asyncio.run(_called(callers, lambda _: time.perf_counter() < end, key, names, shares))


def counted(callers: int, requests: int) -> dict[str, Any]:
    """The same, so many requests in all."""
    return asyncio.run(_called(callers, lambda started: started < requests, None, (), ()))


def arriving(rate: float, seconds: float) -> dict[str, Any]:
    """Requests that arrive by chance, whether or not earlier ones were answered; seconds count from the arrival."""
    return asyncio.run(_arriving(rate, seconds))


async def _called(
    callers: int, goes_on: Callable[[int], bool], key: str | None, names: Sequence[str], shares: Sequence[float]
) -> dict[str, Any]:
    import aiohttp

    chance, found, state = random.Random(0), list[float](), {"started": 0, "failed": 0}

    async def call(session: Any) -> None:
        while goes_on(state["started"]):
            state["started"] += 1
            body = {"text": text(chance)}
            if key is not None:
                body[key] = chance.choices(names, shares)[0]
            start = time.perf_counter()
            try:
                async with session.post(f"http://127.0.0.1:{PORT}/predict", json=body) as response:
                    await response.read()
                    good = response.status == 200
            except (OSError, aiohttp.ClientError):
                good = False
            if good:
                found.append(time.perf_counter() - start)
            else:
                state["failed"] += 1
                await asyncio.sleep(0.05)

    start = time.perf_counter()
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        await asyncio.gather(*(call(session) for _ in range(callers)))
    return {"rate": len(found) / (time.perf_counter() - start), "seconds": found, "failed": state["failed"]}


async def _arriving(rate: float, seconds: float) -> dict[str, Any]:
    import aiohttp

    chance, found = random.Random(0), list[float]()

    async def call(session: Any, arrival: float) -> None:
        async with session.post(f"http://127.0.0.1:{PORT}/predict", json={"text": text(chance)}) as response:
            await response.read()
            assert response.status == 200, response.status
        found.append(time.perf_counter() - arrival)

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        calls, arrival = list[Any](), time.perf_counter()
        end = arrival + seconds
        while arrival < end:
            await asyncio.sleep(max(0.0, arrival - time.perf_counter()))
            calls.append(asyncio.create_task(call(session, arrival)))
            arrival += chance.expovariate(rate)
        await asyncio.gather(*calls)
    return {"seconds": found}


def text(chance: random.Random, words: int = WORDS) -> str:
    """Words that are one token each."""
    return " ".join(chance.choices(("the", "of", "and", "to", "in", "is", "was", "for", "on", "with"), k=words))

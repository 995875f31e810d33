"""The Ray Serve application: a door that takes requests, and replicas that run the models in batches.

``serve run`` and KubeRay build it from a config file, ``adakron-export serve`` on this machine.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from adakron_export.artifacts.artifact import Artifact, opened_with
from adakron_export.errors import RunnerError
from adakron_export.extras import require
from adakron_export.serving.jobs import Job, Reply, Worker
from adakron_export.serving.predictor import Predictor
from adakron_export.serving.settings import ServeSettings

APPLICATION, DOOR, MODEL = "adakron", "Door", "Model"
KEY = "ADAKRON_API_KEY"  # an API key comes by the environment alone, so that no config file holds it
_GOING = 8  # calls that one text's place in the queue may stand for: a retry, and requests that are refused


def arguments(models: Mapping[str, Path], settings: ServeSettings) -> dict[str, Any]:
    """What `build` is given: the models, and the settings that are not the defaults."""
    known = asdict(ServeSettings())
    said = {name: value for name, value in asdict(settings).items() if value != known[name]}
    return {"models": {name: str(path) for name, path in models.items()}, **said}


def build(args: Mapping[str, Any]) -> Any:
    """The application, as Ray Serve's config files name it.

    Args:
        args: ``models``, folders by name, and fields of `ServeSettings`.

    Raises:
        RunnerError: There is no model, or a value makes no sense.
    """
    serve = require("ray.serve", extra="serve")
    given = dict(args)
    models = {str(name): str(Path(path)) for name, path in (given.pop("models", None) or {}).items()}
    if not models:
        raise RunnerError("there is no model to serve; args needs models: {NAME: FOLDER}")
    settings = ServeSettings(**given)
    threads = settings.threads or max(1, (os.cpu_count() or 1) // settings.replicas)
    going = _GOING * settings.max_queue
    model = serve.deployment(name=MODEL, num_replicas=settings.replicas, max_ongoing_requests=going,
                             ray_actor_options={"num_cpus": threads})  # fmt: skip
    door = serve.deployment(name=DOOR, max_ongoing_requests=going, ray_actor_options={"num_cpus": 0})
    replicas = model(model_class(settings)).bind(models, asdict(settings), threads)
    return door(serve.ingress(None)(_Door)).bind(models, asdict(settings), replicas)


class _Door:
    """The replica that takes requests; see `Service`."""

    def __init__(self, models: dict[str, str], settings: dict[str, Any], replicas: Any) -> None:
        self._models, self._replicas = models, replicas
        self._settings = ServeSettings(**settings)

    def __serve_build_asgi_app__(self) -> Any:  # noqa: PLW3201, RUF100 - Ray Serve's name
        from adakron_export.serving.service import Service

        models = {name: opened_with(path, Predictor) for name, path in self._models.items()}
        self._service = Service(models, self._ask, self._settings, os.environ.get(KEY))
        return self._service.app()

    async def check(self) -> None:
        """Answer, once there is a door."""

    async def drain(self) -> None:
        """Take nothing more, and wait for what is under way."""
        await self._service.drain()

    async def _ask(self, job: Job) -> Reply:
        """Have a job done; by another replica where the first one dies."""
        from ray.exceptions import RayActorError

        replicas = self._replicas.options(multiplexed_model_id=job.model) if len(self._models) > 1 else self._replicas
        try:
            reply: Reply = await replicas.answer.remote(job)
        except RayActorError:
            reply = await replicas.answer.remote(job)
        return reply


class _Replica:
    """A replica: it holds opened models, and runs in one batch what came meanwhile."""

    def __init__(self, models: dict[str, str], settings: dict[str, Any], threads: int) -> None:
        self._models, self._settings, self._threads = models, ServeSettings(**settings), threads
        self._runs = ThreadPoolExecutor(1)  # one batch at a time; the loop goes on meanwhile
        self._only = self._opened(next(iter(models))) if len(models) == 1 else None

    async def answer(self, job: Job) -> Reply:
        """What comes of a job."""
        reply: Reply = await self._together(job)  # type: ignore[attr-defined]
        return reply

    async def _answered(self, jobs: list[Job]) -> list[Reply]:
        replies: dict[int, Reply] = {}
        for name in dict.fromkeys(job.model for job in jobs):
            places = [place for place, job in enumerate(jobs) if job.model == name]
            worker = self._only or await self._worker(name)  # type: ignore[attr-defined]
            found = await self._run(worker.answer, [jobs[place] for place in places])
            replies.update(zip(places, found, strict=True))
        return [replies[place] for place in range(len(jobs))]

    async def _run(self, call: Any, *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._runs, call, *arguments)

    def _opened(self, name: str) -> Worker:
        def opened(artifact: Artifact) -> Predictor:
            return Predictor(artifact).open(self._settings.device, threads=self._threads)

        return Worker(opened_with(self._models[name], opened), self._settings.batch_size)


def model_class(settings: ServeSettings) -> type:
    """The class of the replicas: Ray's decorators take their numbers when a class is made."""
    serve = require("ray.serve", extra="serve")

    class Model(_Replica):
        @serve.batch(
            max_batch_size=settings.batch_size, batch_wait_timeout_s=settings.batch_wait_ms / 1000,
            batch_size_fn=lambda jobs: sum(job.texts for job in jobs),
        )  # fmt: skip
        async def _together(self, jobs: list[Job]) -> list[Reply]:
            return await self._answered(jobs)

        @serve.multiplexed(max_num_models_per_replica=settings.max_models or -1)
        async def _worker(self, name: str) -> Worker:
            worker: Worker = await self._run(self._opened, name)
            return worker

    return Model


def config(models: Mapping[str, Path], settings: ServeSettings, *, host: str, port: int) -> dict[str, Any]:
    """A config file of Ray Serve, as ``serve run`` and KubeRay read it.

    Args:
        models: Artifacts by name, where every node finds them.
        settings: How they are served.
        host: Where the proxies listen.
        port: On which port.
    """
    return {
        "proxy_location": "EveryNode",
        "http_options": {"host": host, "port": port},
        "applications": [
            {
                "name": APPLICATION,
                "route_prefix": "/",
                "import_path": f"{__name__}:build",
                "args": arguments(models, settings),
            }
        ],
    }

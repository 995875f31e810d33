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
from adakron_export.serving.batcher import Batcher
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
    if settings.adapter_root is not None:
        said["adapter_root"] = str(Path(settings.adapter_root).resolve())  # Ray's processes run elsewhere
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
    alone = settings.replicas == 1 and settings.max_models is None
    door = serve.deployment(name=DOOR, max_ongoing_requests=going,
                            ray_actor_options={"num_cpus": threads if alone else 0})  # fmt: skip
    bound = serve.ingress(None)(_Door)
    if alone:
        return door(bound).bind(models, asdict(settings), threads)
    model = serve.deployment(name=MODEL, num_replicas=settings.replicas, max_ongoing_requests=going,
                             ray_actor_options={"num_cpus": threads})  # fmt: skip
    replicas = model(model_class(settings)).bind(models, asdict(settings), threads)
    return door(bound).bind(models, asdict(settings), threads, replicas)


class _Door:
    """What takes requests; see `Service`. Where there are no replicas behind it, it runs the models itself."""

    def __init__(self, models: dict[str, str], settings: dict[str, Any], threads: int, replicas: Any = None) -> None:
        self._models, self._replicas = models, replicas
        self._settings = ServeSettings(**settings)
        self._own = _Models(models, self._settings, threads) if replicas is None else None
        if self._own is not None:
            self._own.open_all()

    def __serve_build_asgi_app__(self) -> Any:  # noqa: PLW3201, RUF100 - Ray Serve's name
        from adakron_export.serving.protocol import use_bounded_heads
        from adakron_export.serving.service import Service

        use_bounded_heads()
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

        if self._own is not None:
            return await self._own.answer(job)
        replicas = self._replicas.options(multiplexed_model_id=job.model) if len(self._models) > 1 else self._replicas
        try:
            reply: Reply = await replicas.answer.remote(job)
        except RayActorError:
            reply = await replicas.answer.remote(job)
        return reply


class _Models:
    """Opened models of one process, which run in one batch what came meanwhile."""

    def __init__(self, models: dict[str, str], settings: ServeSettings, threads: int) -> None:
        self._models, self._settings, self._threads = models, settings, threads
        self._runs = ThreadPoolExecutor(1)  # one batch at a time; the loop goes on meanwhile
        self._workers: dict[str, Worker] = {}
        self._batcher = Batcher(self._answered, settings.batch_size, settings.batch_wait_ms / 1000)

    def open_all(self) -> None:
        """Open every model now."""
        self._workers = {name: self.opened(name) for name in self._models}

    async def answer(self, job: Job) -> Reply:
        """What comes of a job."""
        return await self._batcher.answer(job)

    async def worker(self, name: str) -> Worker:
        """A model that was not opened at first."""
        return self._workers[name]

    async def run(self, call: Any, *arguments: Any) -> Any:
        """What a call returns, when the batch before it is done."""
        return await asyncio.get_running_loop().run_in_executor(self._runs, call, *arguments)

    def opened(self, name: str) -> Worker:
        """Open a model."""

        def opened(artifact: Artifact) -> Predictor:
            return Predictor(artifact).open(self._settings.device, threads=self._threads)

        return Worker(opened_with(self._models[name], opened), self._settings.batch_size)

    async def _answered(self, jobs: list[Job]) -> list[Reply]:
        replies: dict[int, Reply] = {}
        for name in dict.fromkeys(job.model for job in jobs):
            places = [place for place, job in enumerate(jobs) if job.model == name]
            worker = self._workers.get(name) or await self.worker(name)
            found = await self.run(worker.answer, [jobs[place] for place in places])
            replies.update(zip(places, found, strict=True))
        return [replies[place] for place in range(len(jobs))]


def model_class(settings: ServeSettings) -> type:
    """The class of the replicas: Ray's decorator takes its number when a class is made."""
    serve = require("ray.serve", extra="serve")

    class Model(_Models):
        def __init__(self, models: dict[str, str], settings: dict[str, Any], threads: int) -> None:
            super().__init__(models, ServeSettings(**settings), threads)
            if len(models) == 1:
                self.open_all()

        @serve.multiplexed(max_num_models_per_replica=settings.max_models or -1)
        async def worker(self, name: str) -> Worker:
            opened: Worker = await self.run(self.opened, name)
            return opened

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

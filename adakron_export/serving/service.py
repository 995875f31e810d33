"""The door of a server: REST in, jobs out. It knows nothing of what runs them.

``/v2`` is the Open Inference Protocol (https://github.com/kserve/open-inference-protocol) and the model repository
extension of Triton; ``/predict`` takes plain texts; ``/`` is a page to try it.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from adakron_export._version import __version__
from adakron_export.artifacts.adapters import check_name, read_record
from adakron_export.errors import AdaKronError
from adakron_export.serving.jobs import Added, Job, Reply
from adakron_export.serving.metrics import Metrics
from adakron_export.serving.page import page
from adakron_export.serving.predictor import Predictor
from adakron_export.serving.questions import Questions
from adakron_export.serving.requests import (
    PREDICTION,
    TEXT,
    ChangeBody,
    InferBody,
    PredictBody,
    RequestError,
    Tensors,
    Texts,
    asked,
    decoded,
    inferred,
    strings_of,
    tensor_of,
)
from adakron_export.serving.settings import ServeSettings
from adakron_export.tasks import Task

_log = logging.getLogger(__name__)

VERSION = "1"  # of a model: an artifact is one
_RETRY_S = "1"
Ask = Callable[[Job], Awaitable[Reply]]
Endpoint = Callable[[Request], Awaitable[Response]]


class Service:
    """What a server answers.

    Args:
        models: Artifacts by name; they need not be opened.
        ask: Has a job done.
        settings: Limits.
        api_key: What callers must show; ``None`` lets all in, but for changes of adapters, which nobody may make then.
    """

    def __init__(
        self, models: Mapping[str, Predictor], ask: Ask, settings: ServeSettings, api_key: str | None = None
    ) -> None:
        self._models, self._ask, self._settings, self._key = models, ask, settings, api_key
        self._added: dict[str, dict[str, Added]] = {name: {} for name in models}
        self._numbers = self._waiting = self._reading = 0
        self._draining = False
        self._change = asyncio.Lock()
        self.metrics = Metrics()

    def app(self) -> Starlette:
        """The application, for any server of ASGI."""
        model = "/v2/models/{model}"
        endpoints: list[tuple[str, str, Endpoint, bool]] = [
            ("GET", "/", self._page, False),
            ("GET", "/metrics", self._metrics, True),
            ("POST", "/predict", self._predict, True),
            ("GET", "/v2", self._server, False),
            ("GET", "/v2/health/live", self._live, False),
            ("GET", "/v2/health/ready", self._ready, False),
            ("POST", "/v2/repository/index", self._index, True),
            ("POST", "/v2/repository/models/{model}/load", self._load, True),
            ("POST", "/v2/repository/models/{model}/unload", self._unload, True),
            *(
                (method, f"{path}{end}", endpoint, True)
                for path in (model, model + "/versions/{version}")
                for method, end, endpoint in (
                    ("GET", "", self._model), ("GET", "/ready", self._model_ready), ("POST", "/infer", self._infer)
                )
            ),
        ]  # fmt: skip
        routes = [Route(path, self._guarded(path, endpoint, closed=closed), methods=[method])
                  for method, path, endpoint, closed in endpoints]  # fmt: skip
        return Starlette(routes=routes, exception_handlers={HTTPException: _refused})

    async def drain(self) -> None:
        """Take nothing more, and wait for what is under way."""
        self._draining = True
        while self._waiting or self._reading:
            await asyncio.sleep(0.05)

    def _guarded(self, path: str, endpoint: Endpoint, *, closed: bool) -> Endpoint:
        @wraps(endpoint)
        async def run(request: Request) -> Response:
            start = time.perf_counter()
            response = await self._answered(request, endpoint, closed=closed)
            self.metrics.count(path, response.status_code, time.perf_counter() - start)
            return response

        return run

    async def _answered(self, request: Request, endpoint: Endpoint, *, closed: bool) -> Response:
        try:
            if closed:
                self._check_key(request)
            async with asyncio.timeout(self._settings.timeout_s):
                return await endpoint(request)
        except AdaKronError as error:
            return _error(error.status if isinstance(error, RequestError) else 400, self._without_places(str(error)))
        except TimeoutError:
            return _error(408, f"there was no answer, or no whole request, within {self._settings.timeout_s:g} s")
        except ClientDisconnect:
            return Response(status_code=499)
        except Exception as error:
            _log.error("a request failed: %s", type(error).__name__)
            return _error(500, f"this was not foreseen ({type(error).__name__})")

    def _without_places(self, message: str) -> str:
        """A message that does not say where this machine keeps its files."""
        places = {str(predictor.artifact.folder): name for name, predictor in self._models.items()}
        if self._settings.adapter_root is not None:
            places[str(Path(self._settings.adapter_root).resolve())] = "adapters"
        for place, name in places.items():
            message = message.replace(place, name)
        return message

    def _check_key(self, request: Request) -> None:
        if self._key is None:
            return
        scheme, _, bearer = request.headers.get("authorization", "").partition(" ")
        shown = bearer if scheme.lower() == "bearer" else request.headers.get("x-api-key", "")
        if not hmac.compare_digest(shown.encode(), self._key.encode()):
            raise RequestError(401, "an API key is needed: Authorization: Bearer KEY")

    async def _body(self, request: Request) -> bytes:
        """The body, of which no more is held than is allowed."""
        most, chunks, size = self._settings.max_body, [], 0
        if int(request.headers.get("content-length") or 0) > most:
            raise RequestError(413, f"the body has more than {most} bytes")
        if self._reading >= self._settings.max_queue:
            raise _busy()
        self._reading += 1
        try:
            async for chunk in request.stream():
                size += len(chunk)
                if size > most:
                    raise RequestError(413, f"the body has more than {most} bytes")
                chunks.append(chunk)
        finally:
            self._reading -= 1
        return b"".join(chunks)

    @asynccontextmanager
    async def _room(self, texts: int) -> AsyncIterator[None]:
        """A place in the queue, while it is needed."""
        self._check_count(texts)
        if self._waiting + texts > max(self._settings.max_queue, texts):
            raise _busy()
        self._waiting += texts
        self.metrics.queue.set(self._waiting)
        try:
            yield
        finally:
            self._waiting -= texts
            self.metrics.queue.set(self._waiting)

    async def _predict(self, request: Request) -> Response:
        self._check_open()
        body = decoded(await self._body(request), PredictBody)
        name = self._named(body.model)
        reply = await self._done(name, asked(body, self._settings.max_new_tokens))
        assert reply.answers is not None
        content: dict[str, Any] = {"model": name, "predictions": reply.answers.results}
        if reply.answers.cut:
            content["cut_off"] = list(reply.answers.cut)
        return JSONResponse(content)

    async def _infer(self, request: Request) -> Response:
        self._check_open()
        name = self._of_path(request)
        body = decoded(await self._body(request), InferBody)
        predictor = self._models[name]
        reply = await self._done(name, inferred(body, predictor.manifest.inputs, self._settings.max_new_tokens))
        outputs = [tensor_of(each, values) for each, values in (reply.outputs or {}).items()]
        content: dict[str, Any] = {"model_name": name, "model_version": VERSION, "outputs": outputs}
        if reply.answers is not None:
            content["outputs"] = [strings_of(PREDICTION, reply.answers.results)]
            if reply.answers.cut:
                content["parameters"] = {"cut_off": ",".join(map(str, reply.answers.cut))}
        return JSONResponse(content | ({} if body.id is None else {"id": body.id}))

    async def _done(self, name: str, wanted: Texts | Tensors) -> Reply:
        """What a model says."""
        job = self._job(name, wanted)
        async with self._room(job.texts):
            reply = await self._ask(job)
        if reply.batch:
            self.metrics.batches.labels(name).observe(reply.batch)
        if reply.error is not None:
            raise RequestError(*reply.error)
        self.metrics.texts.labels(name).inc(job.texts)
        return reply

    def _job(self, name: str, wanted: Texts | Tensors) -> Job:
        predictor = self._models[name]
        if wanted.adapter is None and predictor.adapters:
            wanted = replace(wanted, adapter=self._settings.adapter)
        if isinstance(wanted, Tensors):
            names = [wanted.adapter] if isinstance(wanted.adapter, str) else wanted.adapter or []
            predictor.check_adapters(wanted.adapter, max(1, len(names)))
            return Job(name, wanted, self._needed(name, names))
        if predictor.task is Task.IMAGE_CLASSIFICATION:
            raise RequestError(400, f"this model takes images: send pixel_values to /v2/models/{name}/infer")
        self._check_count(len(wanted.given))  # before each of them is looked at
        questions = predictor.check(wanted.given, wanted.options, wanted.adapter)
        self._check_tokens(predictor, questions)
        if predictor.task.writes and questions.options.max_new_tokens is None:
            questions = predictor.at_most(questions, self._settings.max_new_tokens)
        return Job(name, questions, self._needed(name, questions.names or ()))

    def _needed(self, name: str, adapters: Any) -> tuple[Added, ...]:
        added = self._added[name]
        return tuple(added[each] for each in dict.fromkeys(adapters) if each in added)

    def _check_count(self, texts: int) -> None:
        if texts > self._settings.max_texts:
            raise RequestError(413, f"there are {texts} texts; a request may have {self._settings.max_texts}")

    def _check_tokens(self, predictor: Predictor, questions: Questions) -> None:
        most = self._settings.max_tokens
        if most is None:
            return
        for number, each in enumerate(predictor.encoder.encode([*questions.given]), 1):  # type: ignore[list-item]
            if len(each.ids) > most or (each.cut and len(each.ids) == most):
                raise RequestError(413, f"text {number} has more than {most} tokens, which is the most here")

    def _check_open(self) -> None:
        if self._draining:
            raise RequestError(503, "the server is about to stop")
        if self._waiting >= self._settings.max_queue:
            raise _busy()

    def _named(self, name: str | None) -> str:
        if name is None and len(self._models) == 1:
            return next(iter(self._models))
        if name is None or name not in self._models:
            what = "say which model answers" if name is None else f"there is no model {name!r:.80}"
            raise RequestError(400 if name is None else 404, f"{what}; there are {', '.join(self._models)}")
        return name

    def _of_path(self, request: Request) -> str:
        name, version = request.path_params["model"], request.path_params.get("version", VERSION)
        if version != VERSION:
            raise RequestError(404, f"there is no version {version!r:.40}; there is {VERSION}")
        return self._named(name)

    async def _page(self, _request: Request) -> Response:
        html, headers = page(
            {name: self._offered(predictor) for name, predictor in self._models.items()},
            needs_key=self._key is not None,
        )
        return HTMLResponse(html, headers=headers)

    def _offered(self, predictor: Predictor) -> list[str]:
        return sorted(predictor.adapters, key=lambda name: name != self._settings.adapter)

    async def _metrics(self, _request: Request) -> Response:
        content, kind = self.metrics.page()
        return Response(content, headers={"content-type": kind})

    async def _server(self, _request: Request) -> Response:
        return JSONResponse({"name": "adakron-export", "version": __version__, "extensions": ["model_repository"]})

    async def _live(self, _request: Request) -> Response:
        return JSONResponse({"live": True})

    async def _ready(self, _request: Request) -> Response:
        return JSONResponse({"ready": not self._draining}, status_code=503 if self._draining else 200)

    async def _model_ready(self, request: Request) -> Response:
        name = self._of_path(request)
        return JSONResponse({"name": name, "ready": not self._draining}, status_code=503 if self._draining else 200)

    async def _model(self, request: Request) -> Response:
        name = self._of_path(request)
        predictor = self._models[name]
        manifest = predictor.manifest
        content: dict[str, Any] = {
            "name": name,
            "versions": [VERSION],
            "platform": f"onnxruntime_{self._settings.device}",
            "inputs": [_metadata(each.name, _DATATYPES[each.dtype], each.shape) for each in manifest.inputs],
            "outputs": [_metadata(each.name, "FP32", each.shape) for each in manifest.outputs],
            "parameters": {"task": manifest.task, "adapters": ",".join(predictor.adapters)},
        }
        if predictor.task is not Task.IMAGE_CLASSIFICATION:
            content["inputs"].append(_metadata(TEXT, "BYTES", (-1,)))
            content["outputs"].append(_metadata(PREDICTION, "BYTES", (-1,)))
        return JSONResponse(content)

    async def _index(self, request: Request) -> Response:
        await self._body(request)
        return JSONResponse(
            [
                {
                    "name": name,
                    "version": VERSION,
                    "state": "READY",
                    "reason": "",
                    "adapters": list(predictor.adapters),
                }
                for name, predictor in self._models.items()
            ]
        )

    async def _load(self, request: Request) -> Response:
        name, given = await self._changed(request, {"adapter", "folder"})
        adapter = check_name(given["adapter"])
        folder = self._inside(given.get("folder", adapter))
        async with self._change:
            predictor = self._models[name]
            await asyncio.to_thread(predictor.add, adapter, folder)
            self._numbers += 1
            self._added[name][adapter] = Added(adapter, self._numbers, str(folder), read_record(folder).weights_sha256)
        return JSONResponse({"name": name, "adapters": list(predictor.adapters)})

    async def _unload(self, request: Request) -> Response:
        name, given = await self._changed(request, {"adapter"})
        async with self._change:
            self._models[name].remove(given["adapter"])
            self._added[name].pop(given["adapter"], None)
        return JSONResponse({"name": name, "adapters": list(self._models[name].adapters)})

    async def _changed(self, request: Request, known: set[str]) -> tuple[str, dict[str, str]]:
        """The bank that is to be changed, and how."""
        name = self._of_path(request)
        if self._key is None:
            raise RequestError(403, "adapters can be changed only where the server has an API key")
        given = decoded(await self._body(request), ChangeBody).parameters
        if "adapter" not in given or given.keys() - known:
            raise RequestError(400, f"the parameters are {', '.join(sorted(known))}; adapter is needed")
        return name, given

    def _inside(self, folder: str) -> Path:
        if self._settings.adapter_root is None:
            raise RequestError(403, "no adapters can be added here: the server was started without --adapter-root")
        root = Path(self._settings.adapter_root).resolve()
        found = (root / folder).resolve() if "\0" not in folder else root
        if found == root or not found.is_relative_to(root) or not found.is_dir():
            raise RequestError(404, f"there is no folder {folder!r:.80} among the adapters of this server")
        return found


_DATATYPES = {
    "int64": "INT64", "int32": "INT32", "float32": "FP32", "float16": "FP16"
}  # fmt: skip


def _metadata(name: str, datatype: str, shape: Any) -> dict[str, Any]:
    return {
        "name": name, "datatype": datatype, "shape": [each if isinstance(each, int) else -1 for each in shape]
    }  # fmt: skip


def _busy() -> RequestError:
    return RequestError(429, "too much is waiting already; try again")


def _error(status: int, message: str) -> Response:
    headers = {"retry-after": _RETRY_S} if status in (429, 503) else {}
    if status in (408, 413):  # the rest of the request is not waited for
        headers["connection"] = "close"
    return JSONResponse({"error": " ".join(message.split())}, status_code=status, headers=headers)


def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    what = "there is nothing here" if error.status_code == 404 else str(error.detail)
    return _error(error.status_code, f"{request.method} {request.url.path[:80]!r}: {what}")

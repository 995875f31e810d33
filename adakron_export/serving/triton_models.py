"""What `adakron-export triton` puts into Triton's Python backend; the ``model.py`` of a model imports it from here."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from adakron_export.artifacts.artifact import Artifact, opened_with
from adakron_export.errors import AdaKronError, RunnerError, first_few
from adakron_export.files.records import read_object
from adakron_export.graph.layout import IDS
from adakron_export.runtimes.batching import padded_right
from adakron_export.serving.jobs import Job, Reply, Worker
from adakron_export.serving.predictor import Predictor
from adakron_export.serving.questions import fit_text
from adakron_export.serving.requests import ADAPTER, PAIR, PREDICTION, TEXT
from adakron_export.serving.settings import PredictOptions
from adakron_export.serving.texts import encoder_of, inputs_of, prepared
from adakron_export.tasks import Task
from adakron_export.tokenization.encoding import padding_id

_STEP = 16  # widths are multiples of it: Triton batches requests of one shape alone
_OPTIONS = ("top_k", "max_new_tokens", "num_beams")


class _Model:
    """What both models share: Triton calls `initialize` once and `execute` with some requests."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open what lies beside ``model.py``."""
        import triton_python_backend_utils as triton  # there inside Triton alone

        self._triton: Any = triton
        self._open(Path(args["model_repository"], args["model_version"], "artifact"), json.loads(args["model_config"]))

    def _open(self, folder: Path, config: dict[str, Any]) -> None:
        raise NotImplementedError

    def _strings(self, request: Any, name: str) -> list[str] | None:
        tensor = self._triton.get_input_tensor_by_name(request, name)
        if tensor is None:
            return None
        try:
            return [each.decode() for each in tensor.as_numpy().reshape(-1)]
        except UnicodeDecodeError as error:
            raise RunnerError(f"{name} is no UTF-8: {error.reason}") from error

    def _texts(self, request: Any) -> list[Any]:
        texts, pairs = self._strings(request, TEXT) or [], self._strings(request, PAIR)
        return texts if pairs is None else list(zip(texts, pairs, strict=True))

    def _failed(self, message: str) -> Any:
        return self._triton.InferenceResponse(error=self._triton.TritonError(message))


class AnsweringModel(_Model):
    """Text in, and what `predict` answers as JSON: an artifact with its own runtime."""

    def _open(self, folder: Path, config: dict[str, Any]) -> None:
        threads = int(config["parameters"]["threads"]["string_value"]) or None
        kinds = {group["kind"] for group in config["instance_group"]}

        def opened(artifact: Artifact) -> Predictor:
            return Predictor(artifact).open("cuda" if kinds == {"KIND_GPU"} else "cpu", threads=threads)

        self._predictor = opened_with(folder, opened)
        self._worker = Worker(self._predictor, config["max_batch_size"])

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer some requests, in one batch."""
        jobs: dict[int, Job] = {}
        failed: dict[int, str] = {}
        for place, request in enumerate(requests):
            try:
                jobs[place] = self._job(request)
            except (AdaKronError, TypeError, ValueError) as error:
                failed[place] = str(error)
        replies = dict(zip(jobs, self._worker.answer([*jobs.values()]), strict=True)) if jobs else {}
        return [
            self._failed(failed[place]) if place in failed else self._response(replies[place])
            for place in range(len(requests))
        ]

    def _job(self, request: Any) -> Job:
        given = json.loads(request.parameters() or "{}")
        other = given.keys() - set(_OPTIONS)
        if other:
            raise RunnerError(f"the parameter {min(other)!r} is not known; {', '.join(_OPTIONS)} are")
        options = PredictOptions(**{name: int(value) for name, value in given.items()})
        return Job("", self._predictor.check(self._texts(request), options, self._strings(request, ADAPTER)))

    def _response(self, reply: Reply) -> Any:
        if reply.error is not None or reply.answers is None:
            return self._failed(reply.error[1] if reply.error else "there is no answer")
        rows = [[json.dumps(result).encode()] for result in reply.answers.results]
        return self._triton.InferenceResponse([self._triton.Tensor(PREDICTION, np.array(rows, dtype=object))])


class TokensModel(_Model):
    """Text in, and the tensors that the graph takes."""

    def _open(self, folder: Path, config: dict[str, Any]) -> None:
        said = json.loads(config["parameters"]["tokens"]["string_value"])
        self._folder, self._task, self._adapters = folder, Task(said["task"]), said["adapters"]
        self._config = read_object(folder / "config.json")
        self._encoder = encoder_of(
            folder, self._task, self._config, max_length=said["max_length"], plain=said["plain_tokenizer"]
        )
        self._names = [each["name"] for each in config["output"] if each["name"] != IDS]

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Make the tensors of some requests."""
        found = []
        for request in requests:
            try:
                tensors = self._tensors(request)
            except AdaKronError as error:
                found.append(self._failed(str(error)))
                continue
            found.append(self._triton.InferenceResponse(
                [self._triton.Tensor(name, each) for name, each in tensors.items()]
            ))  # fmt: skip
        return found

    def _tensors(self, request: Any) -> dict[str, Any]:
        texts = [fit_text(each, number, self._task) for number, each in enumerate(self._texts(request), 1)]
        encoded = self._encoder.encode(prepared(texts, self._task, self._folder))
        cut = next((number for number, each in enumerate(encoded, 1) if each.cut), None)
        if cut is not None:
            raise RunnerError(f"text {cut} is longer than the {self._encoder.max_length} tokens that the model takes")
        widest = max(len(each.ids) for each in encoded)
        width = max(widest, min(-(-widest // _STEP) * _STEP, self._encoder.max_length))
        inputs = [inputs_of(each, self._config) for each in encoded]
        tensors = padded_right(inputs, width, self._names, padding_id(self._config) or 0)
        if self._adapters:
            tensors[IDS] = self._ids(self._strings(request, ADAPTER) or [])
        return tensors

    def _ids(self, names: Sequence[str]) -> Any:
        other = next((name for name in names if name not in self._adapters), None)
        if other is not None:
            raise RunnerError(f"there is no adapter {other!r:.80}; there are {first_few(self._adapters, 8)}")
        return np.array([[self._adapters[name]] for name in names], dtype=np.int64)

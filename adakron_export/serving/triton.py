"""A model repository of Triton (https://docs.nvidia.com/deeplearning/triton-inference-server/user-guide).

With the backends `onnxruntime` and `tensorrt`: ``NAME`` takes tensors, ``NAME_tokens`` makes them of text, and
``NAME_from_text`` is the ensemble of the two. With the backend `python`, ``NAME`` takes text and answers as `predict`.
"""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from adakron_export.artifacts.adapters import adapter_folder, read_record
from adakron_export.artifacts.artifact import Artifact
from adakron_export.artifacts.engine import EngineFolder
from adakron_export.artifacts.manifest import ADAPTER_FOLDER, Bank, TensorInfo
from adakron_export.errors import RunnerError
from adakron_export.files.records import read_object
from adakron_export.graph.layout import IDS
from adakron_export.serving.requests import ADAPTER, PAIR, PREDICTION, TEXT
from adakron_export.serving.settings import TritonSettings
from adakron_export.serving.text_format import text_of
from adakron_export.tasks import Task

BACKENDS = ("onnxruntime", "python", "tensorrt")
_WARM_TOKENS = 16
_GOOD = 0.95  # of the largest rate of texts: a batch size that reaches it is preferred
_TYPES = {"int64": "TYPE_INT64", "int32": "TYPE_INT32", "float32": "TYPE_FP32", "float16": "TYPE_FP16"}
_MODEL = '''"""Written by adakron-export: `{name}` in Triton's Python backend."""

from adakron_export.serving.triton_models import {name} as TritonPythonModel  # noqa: F401
'''


@dataclass(frozen=True, slots=True)
class _Graph:
    """What runs as a graph, of an artifact or an engine.

    Attributes:
        backend: The backend of Triton that runs it.
        inputs: What it takes.
        outputs: What it puts out.
        files: The files of a version, by the names that Triton looks for.
        bank: What it has of adapters.
        folder: Where its tokenizer is.
        task: What it is for.
        max_length: The longest input, in tokens.
        plain_tokenizer: Whether ``tokenizer.json`` is enough.
        basic: Whether ONNX Runtime must leave its optimisers off that would change what is computed.
    """

    backend: str
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    files: Mapping[str, Path]
    bank: Bank | None
    folder: Path
    task: Task
    max_length: int | None
    plain_tokenizer: bool = False
    basic: bool = False


def model_names(exported: Artifact | EngineFolder, name: str, backend: str) -> list[str]:
    """What a repository will have: the model itself, and beside a graph of text what makes tensors of text."""
    alone = backend == "python" or Task(exported.manifest.task) is Task.IMAGE_CLASSIFICATION
    return [name] if alone else [name, f"{name}_tokens", f"{name}_from_text"]


def write_models(
    exported: Artifact | EngineFolder, folders: Mapping[str, Path], backend: str, settings: TritonSettings
) -> None:
    """Write the models.

    Args:
        exported: What is served.
        folders: An empty folder for each of `model_names`, in their order.
        backend: One of `BACKENDS`.
        settings: How Triton runs it.

    Raises:
        RunnerError: Triton cannot run it in this way; the message says how it can.
    """
    preferred = preferred_sizes(settings.bench, settings.max_batch_size) if settings.bench is not None else ()
    writer, name = _Writer(folders, settings, preferred), next(iter(folders))
    if backend == "python":
        if not isinstance(exported, Artifact):
            raise RunnerError("an engine runs with the backend tensorrt; the backend python runs artifacts")
        if Task(exported.manifest.task) is Task.IMAGE_CLASSIFICATION:
            raise RunnerError("the backend python takes text; serve a model of images with onnxruntime")
        writer.answering(name, exported)
        return
    graph = _graph(exported, backend, settings.threads)
    writer.graph(name, graph)
    if len(folders) > 1:
        _, tokens, ensemble = folders
        writer.tokens(tokens, graph)
        writer.ensemble(ensemble, name, tokens, graph)


def preferred_sizes(report: str, most: int) -> tuple[int, ...]:
    """The batch sizes that a report of ``bench --json`` shows to be good: near the largest rate of texts.

    Args:
        report: The file.
        most: Larger ones are left out.

    Raises:
        RunnerError: The file is no such report, or times a single batch size.
    """
    try:
        content = read_object(Path(report))
        sides = dict.fromkeys(row["side"] for row in content["latencies"])
        found = [side for side in sides if side != content["reference"]] or list(sides)
        rows = [row for row in content["latencies"] if [row["side"]] == found and len(row["shape"]) == 2]
        tokens = max({row["shape"][1] for row in rows}, key=[row["shape"][1] for row in rows].count, default=0)
        rates = {row["shape"][0]: row["texts_per_second"] for row in rows if row["shape"][1] == tokens}
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise RunnerError(f"{report}: no report of `adakron-export bench --json` ({error})") from error
    if len(found) > 1:
        raise RunnerError(f"{report} times {', '.join(found)}; give one of this artifact alone")
    rates = {size: rate for size, rate in rates.items() if 1 < size <= most}
    if len(rates) < 2:
        raise RunnerError(
            f"{report} has fewer than two batch sizes up to {most} of one length; measure some: bench --shapes "
            "2x32,4x32,8x32,16x32"
        )
    return tuple(sorted(size for size, rate in rates.items() if rate >= _GOOD * max(rates.values())))


def _graph(exported: Artifact | EngineFolder, backend: str, threads: int | None) -> _Graph:
    manifest, folder = exported.manifest, exported.folder
    task, bank = Task(manifest.task), manifest.bank
    if task.writes:
        raise RunnerError("a model that writes text runs step by step: serve it with --backend python")
    basic, plain = False, False
    if isinstance(exported, EngineFolder):
        _check_engine(exported, backend, threads)
        files = {"model.plan": exported.engine}
    else:
        _check_artifact(exported, backend)
        basic, plain = bool(exported.manifest.disabled_optimizers), exported.manifest.plain_tokenizer
        files = {path.name: path for path in sorted(folder.glob("model.onnx*"))}
    inputs = manifest.inputs
    if bank is not None and all(each.name != IDS for each in inputs):
        inputs = (*inputs, TensorInfo(IDS, "int64", ("batch_size",)))
    return _Graph(backend, inputs, manifest.outputs, files, bank, folder, task, manifest.max_length, plain, basic)


def _check_engine(engine: EngineFolder, backend: str, threads: int | None) -> None:
    if backend != "tensorrt" or engine.manifest.flavor != "tensorrt":
        raise RunnerError("Triton runs engines of TensorRT alone, with the backend tensorrt")
    if threads is not None:
        raise RunnerError("an engine runs on a GPU; leave threads out")
    if engine.manifest.bank is not None:
        raise RunnerError("an engine of a bank takes its stacks as inputs; serve a sealed bank with onnxruntime")


def _check_artifact(artifact: Artifact, backend: str) -> None:
    if backend != "onnxruntime":
        raise RunnerError("the backend tensorrt runs engines; build one: adakron-export tensorrt")
    if artifact.manifest.bank is not None and artifact.manifest.bank.places is None:
        raise RunnerError(
            f"{artifact.folder} takes its adapters as inputs, which Triton does not hold: make it with `bank create "
            "--sealed N`, or serve it with --backend python"
        )


@dataclass(frozen=True, slots=True)
class _Writer:
    folders: Mapping[str, Path]
    settings: TritonSettings
    preferred: tuple[int, ...]

    def graph(self, name: str, graph: _Graph) -> None:
        version = self._version(name)
        for file, path in graph.files.items():
            shutil.copyfile(path, version / file)
        warm = [self._warm(name, info) for info in graph.inputs]
        optimisation = {"optimization": {"graph": {"level": -1}}} if graph.basic else {}
        threads = (
            {}
            if self.settings.threads is None
            else {"intra_op_thread_count": {"string_value": str(self.settings.threads)}}
        )
        self._write(
            name,
            {
                "backend": graph.backend,
                **self._common("KIND_GPU" if graph.backend == "tensorrt" else None),
                "input": [_tensor(info) for info in graph.inputs],
                "output": [_tensor(info) for info in graph.outputs],
                **optimisation,
                "model_warmup": _warmup(warm),
                "parameters": {**_labels(graph), **threads},
            },
        )

    def tokens(self, name: str, graph: _Graph) -> None:
        version = self._version(name)
        shutil.copytree(graph.folder, version / "artifact", ignore=shutil.ignore_patterns("model.*", ADAPTER_FOLDER))
        said = {
            "task": graph.task.value, "max_length": graph.max_length, "plain_tokenizer": graph.plain_tokenizer,
            "adapters": dict(graph.bank.adapters) if graph.bank else {},
        }  # fmt: skip
        (version / "model.py").write_text(_MODEL.format(name="TokensModel"))
        config = {
            "backend": "python",
            **self._common("KIND_CPU"),
            "input": _text_inputs(graph.task, banked=graph.bank is not None),
            "output": [_tensor(info) for info in graph.inputs],
            "model_warmup": _warmup(self._warm_text(name, graph.task, graph.bank)),
            "parameters": {"tokens": {"string_value": json.dumps(said)}},
        }
        self._write(name, config)

    def ensemble(self, name: str, graph_name: str, tokens: str, graph: _Graph) -> None:
        self._version(name)
        texts = _text_inputs(graph.task, banked=graph.bank is not None)
        names = [info.name for info in graph.inputs]
        steps = [
            _step(tokens, [each["name"] for each in texts], names),
            _step(graph_name, names, [info.name for info in graph.outputs]),
        ]
        self._write(
            name,
            {
                "platform": "ensemble",
                "max_batch_size": self.settings.max_batch_size,
                "version_policy": {"latest": {"num_versions": 1}},
                "input": texts,
                "output": [_tensor(info) for info in graph.outputs],
                "ensemble_scheduling": {"step": steps},
                "parameters": _labels(graph),
            },
        )

    def answering(self, name: str, artifact: Artifact) -> None:
        version = self._version(name)
        shutil.copytree(artifact.folder, version / "artifact")
        (version / "model.py").write_text(_MODEL.format(name="AnsweringModel"))
        bank = artifact.manifest.bank
        task = Task(artifact.manifest.task)
        config = {
            "backend": "python",
            **self._common(),
            "input": _text_inputs(task, banked=bank is not None),
            "output": [{"name": PREDICTION, "data_type": "TYPE_STRING", "dims": [1]}],
            "model_warmup": _warmup(self._warm_text(name, task, bank)),
            "parameters": {"threads": {"string_value": str(self.settings.threads or 0)}},
        }
        self._write(name, config)

    def _common(self, kind: str | None = None) -> dict[str, Any]:
        settings = self.settings
        batching: dict[str, Any] = {"max_queue_delay_microseconds": round(1000 * settings.batch_wait_ms)}
        if self.preferred:
            batching["preferred_batch_size"] = list(self.preferred)
        kind = kind or ("KIND_GPU" if settings.gpu else "KIND_CPU")
        return {
            "max_batch_size": settings.max_batch_size,
            "version_policy": {"latest": {"num_versions": 1}},
            "instance_group": [{"count": settings.instances, "kind": kind}],
            "dynamic_batching": batching,
            **({"response_cache": {"enable": True}} if settings.response_cache else {}),
        }

    def _version(self, name: str) -> Path:
        version = self.folders[name] / "1"
        version.mkdir(parents=True)
        return version

    def _write(self, name: str, config: Mapping[str, Any]) -> None:
        (self.folders[name] / "config.pbtxt").write_text(text_of({"name": name, **config}))

    def _warm(self, name: str, info: TensorInfo) -> tuple[str, dict[str, Any]]:
        """Zeros, and a mask of ones: a text that is all padding is no text to some models."""
        shape = _warm_shape(info)
        said: dict[str, Any] = {"data_type": _TYPES[info.dtype], "dims": shape}
        if info.name != "attention_mask":
            return info.name, {**said, "zero_data": True}
        return info.name, {
            **said,
            "input_data_file": self._data(name, info.name, np.ones(shape, info.dtype).tobytes()),
        }

    def _warm_text(self, name: str, task: Task, bank: Bank | None) -> list[tuple[str, dict[str, Any]]]:
        texts = {TEXT: "Is it warm?"}
        if task is Task.QUESTION_ANSWERING:
            texts[PAIR] = "It is warm."
        if bank is not None:
            texts[ADAPTER] = bank.first
        return [
            (each, {"data_type": "TYPE_STRING", "dims": [1], "input_data_file": self._data(name, each, _packed(text))})
            for each, text in texts.items()
        ]

    def _data(self, name: str, file: str, content: bytes) -> str:
        place = self.folders[name] / "warmup"
        place.mkdir(exist_ok=True)
        (place / file).write_bytes(content)
        return file


def _step(model: str, inputs: Sequence[str], outputs: Sequence[str]) -> dict[str, Any]:
    """A step of an ensemble, whose tensors have the same names outside."""
    maps = {"input_map": {each: each for each in inputs}, "output_map": {each: each for each in outputs}}
    return {"model_name": model, "model_version": -1, **maps}


def _packed(text: str) -> bytes:
    """A string as Triton reads it from a file: its length, and its bytes."""
    raw = text.encode()
    return struct.pack("<I", len(raw)) + raw


def _text_inputs(task: Task, *, banked: bool) -> list[dict[str, Any]]:
    names = [TEXT, *([PAIR] if task is Task.QUESTION_ANSWERING else []), *([ADAPTER] if banked else [])]
    return [{"name": name, "data_type": "TYPE_STRING", "dims": [1]} for name in names]


def _tensor(info: TensorInfo) -> dict[str, Any]:
    """An input or output without its first axis, which Triton adds."""
    dims = [each if isinstance(each, int) else -1 for each in info.shape[1:]]
    said: dict[str, Any] = {"name": info.name, "data_type": _TYPES[info.dtype], "dims": dims or [1]}
    return said if dims else {**said, "reshape": {"shape": []}}


def _warm_shape(info: TensorInfo) -> list[int]:
    return [each if isinstance(each, int) else _WARM_TOKENS for each in info.shape[1:]] or [1]


def _warmup(inputs: Sequence[tuple[str, dict[str, Any]]]) -> list[dict[str, Any]]:
    return [{"name": "one text", "batch_size": 1, "inputs": dict(inputs)}]


def _labels(graph: _Graph) -> dict[str, Any]:
    """What the columns of the logits are called; an adapter of a bank has as many of them as it has labels."""
    config = read_object(graph.folder / "config.json")
    said = {"labels": config.get("id2label")}
    if graph.bank is not None:
        said = {
            f"labels.{name}": read_record(adapter_folder(graph.folder, name)).labels.get("id2label")
            for name in graph.bank.adapters
        }
    return {name: {"string_value": json.dumps(labels)} for name, labels in said.items() if labels}

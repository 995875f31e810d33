"""Runs an artifact on texts or images. With a fast tokenizer it needs no torch."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from adakron_export.artifacts.adapters import adapter_folder, read_record
from adakron_export.artifacts.artifact import Artifact, opened_with
from adakron_export.artifacts.generation_settings import read_settings
from adakron_export.data import predictions
from adakron_export.data.image_input import image_reader
from adakron_export.data.predictions import Classes
from adakron_export.errors import ArtifactError, RunnerError, first_few
from adakron_export.runtimes.base import ArtifactRunner
from adakron_export.runtimes.batching import BATCH_SIZE, Outputs, run_texts
from adakron_export.runtimes.table import runtime_on
from adakron_export.subjects.opening import open_artifact_on
from adakron_export.subjects.space import labels_of, read_config
from adakron_export.tasks import Task
from adakron_export.tokenization.encoding import Encoded, Text, TextEncoder, padding_id
from adakron_export.verbs.writing import TextWriter

_log = logging.getLogger(__name__)

_STRIDE = 128  # tokens that windows on a long context share
_TOP_TOKENS = 5


def predict(
    artifact: str | Path,
    texts: Sequence[Text | Mapping[str, str] | Path],
    *,
    device: str = "cpu",
    batch_size: int = BATCH_SIZE,
    top_k: int | None = None,
    max_new_tokens: int | None = None,
    num_beams: int | None = None,
    adapter: str | Sequence[str] | None = None,
    skip_damaged: bool = False,
    on_text: Callable[[int, str], None] | None = None,
) -> list[Any]:
    """What a model answers to each text or image; texts that are about as long as one another run together.

    Args:
        artifact: The exported folder.
        texts: At least one. A pair of texts is a tuple; a question and its context may be a mapping of these names; an
            image is the path of its file.
        device: Where it runs, such as ``cpu``, ``openvino`` or ``cuda``.
        batch_size: The most texts that run together.
        top_k: How many classes or tokens to give; the best class, or 5 tokens, by default.
        max_new_tokens: How much to write; what the model's generation settings say, or 50, by default.
        num_beams: How many continuations to follow at once, in text generation with a cache. It needs PyTorch, as do
            settings of ``generation_config.json`` by which the likeliest token is not always the next one.
        adapter: The adapter of a bank that answers, or one for each text or image.
        skip_damaged: Leave out adapters of a bank whose files are damaged.
        on_text: Called with the place of a text and each piece that is written of it, of one text after the other; for
            text generation with a cache. What beams write is one piece.

    Returns:
        By text or image: ``{label, score}`` of a class, a list of them where several hold or were asked for, and of a
        regression the number itself as ``score``; the list of ``{entity_group, score, word, start, end}``; the list of
        ``{score, token, token_str}`` of the mask; ``{answer, score, start, end}``; the sentence embedding as a list of
        numbers; ``{generated_text}``.

    Raises:
        ArtifactError: The artifact is damaged, or has no tokenizer or image processor.
        DataError: An image cannot be read.
        RunnerError: There is no text, one is not of the kind that the task needs, or an option is not for the task;
            or there is no such adapter.
    """
    _check_numbers(texts, batch_size=batch_size, top_k=top_k, max_new_tokens=max_new_tokens, num_beams=num_beams)
    _log.info("open the artifact")
    runtime_on(device)

    def opened(found: Artifact) -> _ImagePredictor | _Predictor:
        """Read all that is needed; what cannot be answered is refused before."""
        task = Task(found.manifest.task)
        _check_options(task, top_k, {"max_new_tokens": max_new_tokens, "num_beams": num_beams, "on_text": on_text})
        if skip_damaged and found.manifest.bank is None:
            raise RunnerError(f"{found.folder} is no bank, which skip_damaged is for; leave it out")
        chosen = _Chosen(found, adapter, len(texts))
        if task is Task.IMAGE_CLASSIFICATION:
            return _ImagePredictor(found, device, batch_size, top_k, chosen)
        for index, text in enumerate(texts, 1):
            _text(text, index, task)
        return _Predictor(found, device, batch_size, top_k, chosen)

    predictor = opened_with(artifact, opened, skip_damaged=skip_damaged)
    if isinstance(predictor, _ImagePredictor):
        _log.info("run the model on %s image(s)", len(texts))
        return predictor.classify(texts)
    task = predictor.task
    pairs = [_text(text, index, task) for index, text in enumerate(texts, 1)]
    _log.info("run the model on %s text(s)", len(texts))
    if task.writes:
        return predictor.writer().write(pairs, max_new_tokens, num_beams, on_text)
    return {
        Task.TEXT_CLASSIFICATION: predictor.classify,
        Task.TOKEN_CLASSIFICATION: predictor.tag,
        Task.FILL_MASK: predictor.fill,
        Task.QUESTION_ANSWERING: predictor.answer,
        Task.FEATURE_EXTRACTION: predictor.embed,
    }[task](pairs)


def _check_numbers(texts: Sequence[Any], **numbers: int | None) -> None:
    if not texts:
        raise RunnerError("there is no text to run on; pass --text or --input")
    for name, number in numbers.items():
        if number is not None and number < 1:
            raise RunnerError(f"{name} is {number}; it must be at least 1")


def _check_options(task: Task, top_k: int | None, of_writing: Mapping[str, Any]) -> None:
    if top_k is not None and task not in (Task.TEXT_CLASSIFICATION, Task.IMAGE_CLASSIFICATION, Task.FILL_MASK):
        raise RunnerError(f"top_k is for classification of texts or images and for fill-mask; {task} has one answer")
    for name, value in of_writing.items():
        if value is not None and not task.writes:
            raise RunnerError(f"{name} is for text-generation; this model is for {task}")
        if value is not None and name != "max_new_tokens" and task is Task.TEXT_GENERATION:
            raise RunnerError(f"{name} needs a cache; export the model as text-generation-with-past")


class _Chosen:
    """The adapters of a bank that answer, and what each calls its classes; of another artifact nothing but that.

    Args:
        artifact: The artifact.
        adapter: The adapter that answers, or one for each text.
        texts: How many texts or images there are.

    Raises:
        RunnerError: There are more or fewer names than texts, none for a bank, or some for no bank.
        ArtifactError: There is no such adapter.
    """

    def __init__(self, artifact: Artifact, adapter: str | Sequence[str] | None, texts: int) -> None:
        bank, self._config = artifact.manifest.bank, read_config(artifact)
        if bank is None and adapter is not None:
            raise RunnerError(f"{artifact.folder} is no bank, which an adapter is to be chosen from; leave it out")
        if bank is not None and adapter is None:
            raise RunnerError(
                f"{artifact.folder} is a bank; say which adapter answers, with --adapter (adapter=...): "
                f"{first_few(bank.adapters, 8)}"
            )
        if adapter is not None and not isinstance(adapter, str) and len(adapter) != texts:
            raise RunnerError(
                f"there are {len(adapter)} adapters for {texts} texts; name one for all, or one for each"
            )
        self.names = [adapter] * texts if isinstance(adapter, str) else list(adapter or ())
        self._configs = {
            name: {**self._config, **labels_of(read_record(adapter_folder(artifact.folder, name)))}
            for name in dict.fromkeys(self.names)
        }

    def at(self, indices: Sequence[int]) -> list[str] | None:
        """The adapters of some texts; ``None`` for what is no bank."""
        return [self.names[index] for index in indices] if self.names else None

    def classes(self, index: int, count: int) -> Classes:
        """What the classes of a text are called."""
        config = self._configs[self.names[index]] if self.names else self._config
        return Classes.of(config, count)


class _ImagePredictor:
    """An opened artifact of an image model, and what its outputs mean."""

    def __init__(self, artifact: Artifact, device: str, batch_size: int, top_k: int | None, chosen: _Chosen) -> None:
        self._read, self._chosen = image_reader(artifact.folder), chosen
        self._runner: Any = open_artifact_on(artifact, device)
        self._batch_size, self._top_k = batch_size, top_k

    def classify(self, files: Sequence[Any]) -> list[Any]:
        for index, file in enumerate(files, 1):
            if not isinstance(file, (str, Path)):
                raise RunnerError(f"image {index} is {file!r:.60}; the path of an image file is needed")
        found = []
        for start in range(0, len(files), self._batch_size):
            pixels = self._read([Path(file) for file in files[start : start + self._batch_size]])
            names = self._chosen.at(range(start, start + len(pixels)))
            logits = self._runner.run({"pixel_values": pixels}, *([names] if names else []))["logits"]
            found += [
                predictions.classify(row, self._chosen.classes(start + index, len(row)), top_k=self._top_k)
                for index, row in enumerate(logits)
            ]
        return found


def _text(text: Any, index: int, task: Task) -> Text:
    """A text, or a pair where the task takes one."""
    if isinstance(text, Mapping):
        if text.keys() != {"question", "context"}:
            raise RunnerError(f"text {index} has {', '.join(map(str, text))}; a mapping has a question and a context")
        text = (text["question"], text["context"])
    if isinstance(text, list):
        text = tuple(text)
    parts = text if isinstance(text, tuple) else (text,)
    if not all(isinstance(part, str) for part in parts) or (isinstance(text, tuple) and len(text) != 2):
        raise RunnerError(f"text {index} is {text!r:.60}; a string or a pair of strings is needed")
    if task is Task.QUESTION_ANSWERING and not isinstance(text, tuple):
        raise RunnerError(f"text {index} is a question without a context; give both: --text QUESTION --pair CONTEXT")
    if isinstance(text, tuple) and task not in (Task.QUESTION_ANSWERING, Task.TEXT_CLASSIFICATION):
        raise RunnerError(f"text {index} is a pair, which {task} has no use for; give one text")
    return text  # type: ignore[no-any-return]


class _Predictor:
    """An opened artifact, its tokenizer, and what its outputs mean."""

    def __init__(self, artifact: Artifact, device: str, batch_size: int, top_k: int | None, chosen: _Chosen) -> None:
        self.chosen = chosen
        self.task = Task(artifact.manifest.task)
        self.config = read_config(artifact)
        self.batch_size, self.top_k = batch_size, top_k
        self.folder = artifact.folder
        known = artifact.manifest.max_length or self.config.get("max_position_embeddings")
        self.encoder = TextEncoder(artifact.folder, max_length=known, plain=artifact.manifest.plain_tokenizer)
        own, tokens = padding_id(self.config), self.encoder.token("pad_token")
        if own is not None and tokens is not None and tokens[1] != own:
            _log.info("the tokenizer pads with %s, the model with %s: the model's is taken", tokens[1], own)
        self.runner: ArtifactRunner = open_artifact_on(artifact, device)

    def classify(self, texts: Sequence[Text]) -> list[Any]:
        outputs = self._run(self.encoder.encode(texts))
        return [
            predictions.classify(row["logits"], self.chosen.classes(index, len(row["logits"])), top_k=self.top_k)
            for index, row in enumerate(outputs)
        ]

    def tag(self, texts: Sequence[Text]) -> list[Any]:
        self._need_offsets()
        encoded = self.encoder.encode(texts)
        outputs = self._run(encoded)
        return [
            predictions.tag(row["logits"], each, str(text), self.chosen.classes(index, row["logits"].shape[-1]))
            for index, (row, each, text) in enumerate(zip(outputs, encoded, texts, strict=True))
        ]

    def fill(self, texts: Sequence[Text]) -> list[Any]:
        mask = self.encoder.token("mask_token")
        if mask is None:
            raise ArtifactError(f"{self.folder}: its tokenizer has no mask_token, which fill-mask needs")
        encoded = self.encoder.encode(texts)
        for index, each in enumerate(encoded, 1):
            if mask[1] not in each.ids:
                raise RunnerError(f"text {index} has no {mask[0]} to fill within {self.encoder.max_length} tokens")
        name = partial(self.encoder.decode, special=True)
        outputs = self._run(encoded)
        return [
            predictions.fill(row["logits"], each, mask[1], name, top_k=self.top_k or _TOP_TOKENS)
            for row, each in zip(outputs, encoded, strict=True)
        ]

    def answer(self, texts: Sequence[Text]) -> list[Any]:
        self._need_offsets()
        windows = self.encoder.encode(texts, stride=min(_STRIDE, self.encoder.max_length // 4))
        outputs = self._run(windows)
        found = []
        for index, text in enumerate(texts):
            of_text = [place for place, window in enumerate(windows) if window.source == index]
            starts, ends = ([outputs[place][name] for place in of_text] for name in ("start_logits", "end_logits"))
            found.append(predictions.answer(starts, ends, [windows[place] for place in of_text], text))
        return found

    def embed(self, texts: Sequence[Text]) -> list[Any]:
        settings = read_settings(self.folder / "sentence_bert_config.json")
        prompts = read_settings(self.folder / "config_sentence_transformers.json")
        prompt = (prompts.get("prompts") or {}).get(prompts.get("default_prompt_name"), "")
        lower = bool(settings.get("do_lower_case"))
        self.encoder.max_length = min(
            self.encoder.max_length, settings.get("max_seq_length") or self.encoder.max_length
        )
        prepared = [prompt + (str(text).lower() if lower else str(text)) for text in texts]
        return [row["sentence_embedding"].tolist() for row in self._run(self.encoder.encode(prepared))]

    def writer(self) -> TextWriter:
        """What goes on from a text."""
        return TextWriter(
            self.runner, self.encoder, self.folder, self.config, self.chosen.at, self._run, self.batch_size
        )

    def _run(self, encoded: Sequence[Encoded]) -> list[Outputs]:
        kinds = max(1, self.config.get("type_vocab_size") or 1)
        texts = [
            {"input_ids": each.ids, "token_type_ids": [min(kind, kinds - 1) for kind in each.type_ids]}
            for each in encoded
        ]
        names = self.chosen.at([each.source for each in encoded])
        return run_texts(self.runner, texts, batch_size=self.batch_size, adapters=names)

    def _need_offsets(self) -> None:
        if not self.encoder.has_offsets:
            raise ArtifactError(
                f"{self.folder} has only a slow tokenizer, which does not tell where in a text a token is; save a "
                "fast one (tokenizer.json) beside the adapter and export again"
            )

"""Runs an artifact on texts or images. With a fast tokenizer it needs no torch."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from adakron_export.artifacts.adapters import adapter_folder, read_record
from adakron_export.artifacts.artifact import Artifact, opened_with
from adakron_export.data import predictions
from adakron_export.data.image_input import image_reader
from adakron_export.data.predictions import Classes
from adakron_export.errors import ArtifactError, RunnerError, first_few
from adakron_export.extras import require
from adakron_export.files.records import read_object
from adakron_export.runtimes.base import ArtifactRunner
from adakron_export.runtimes.batching import BATCH_SIZE, Outputs, run_texts
from adakron_export.runtimes.decoding import decoder_of
from adakron_export.runtimes.generation import Writing, write_greedily
from adakron_export.runtimes.table import runtime_on
from adakron_export.subjects.opening import open_artifact_on
from adakron_export.subjects.space import labels_of, read_config
from adakron_export.tasks import Task
from adakron_export.tokenization.encoding import Encoded, Text, TextEncoder, padding_id

if TYPE_CHECKING:
    from adakron_export.runtimes.bank import BankRunner

_log = logging.getLogger(__name__)

_STRIDE = 128  # tokens that windows on a long context share
_TOP_TOKENS = 5
_NEW_TOKENS = 50
# What `generate` would do beside taking the likeliest token, and the value with which it does not.
_OTHER_GENERATION = {
    "num_beams": 1, "repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "bad_words_ids": None, "min_length": 0,
    "min_new_tokens": 0, "forced_bos_token_id": None, "forced_eos_token_id": None, "suppress_tokens": None,
    "begin_suppress_tokens": None, "sequence_bias": None, "guidance_scale": None,
}  # fmt: skip


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
        num_beams: How many continuations to follow at once, in text generation with a cache; needs PyTorch.
        adapter: The adapter of a bank that answers, or one for each text or image.
        skip_damaged: Leave out adapters of a bank whose files are damaged.
        on_text: Called with the place of a text and each piece that is written of it, of one text after the other; for
            text generation with a cache and without beams.

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
        return predictor.write(pairs, max_new_tokens, num_beams, on_text)
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
        settings = _read(self.folder / "sentence_bert_config.json")
        prompts = _read(self.folder / "config_sentence_transformers.json")
        prompt = (prompts.get("prompts") or {}).get(prompts.get("default_prompt_name"), "")
        lower = bool(settings.get("do_lower_case"))
        self.encoder.max_length = min(
            self.encoder.max_length, settings.get("max_seq_length") or self.encoder.max_length
        )
        prepared = [prompt + (str(text).lower() if lower else str(text)) for text in texts]
        return [row["sentence_embedding"].tolist() for row in self._run(self.encoder.encode(prepared))]

    def write(
        self, texts: Sequence[Text], max_new_tokens: int | None, num_beams: int | None,
        on_text: Callable[[int, str], None] | None,
    ) -> list[Any]:  # fmt: skip
        """The likeliest token, one after the other; or the best of several continuations."""
        settings = _read(self.folder / "generation_config.json")
        other = [name for name, plain in _OTHER_GENERATION.items() if settings.get(name) not in (None, plain)]
        if num_beams is not None and "num_beams" in other:
            other.remove("num_beams")
        if other:
            raise RunnerError(
                f"the model's generation settings have {', '.join(other)}; predict takes the likeliest token: use "
                "generate() of OnnxModel (README)"
            )
        if settings.get("do_sample"):
            _log.info("the model's generation settings ask for sampling; predict takes the likeliest token")
        ends = settings.get("eos_token_id", self.config.get("eos_token_id"))
        writing = Writing(
            count=max_new_tokens or settings.get("max_new_tokens") or _NEW_TOKENS,
            ends={ends} if isinstance(ends, int) else {*(ends or ())},
            limit=self.encoder.max_length,
        )
        encoded = self.encoder.encode(texts)
        if self.task is Task.TEXT_GENERATION:
            written = [self._written_anew(each, writing) for each in encoded]
        elif num_beams is not None and num_beams > 1:
            if on_text is not None:
                raise RunnerError("several beams show no text before they end; leave on_text or num_beams out")
            written = self._beams(encoded, writing, num_beams)
        else:
            written = self._greedy(encoded, writing, on_text)
        return [
            {"generated_text": str(text) + self._continued(each.ids, tokens)}
            for text, each, tokens in zip(texts, encoded, written, strict=True)
        ]

    def _continued(self, prompt: Sequence[int], tokens: Sequence[int]) -> str:
        return self.encoder.decode([*prompt, *tokens])[len(self.encoder.decode(list(prompt))) :]

    def _written_anew(self, encoded: Encoded, writing: Writing) -> list[int]:
        """Without a cache: the whole text is read for each token."""
        ids = list(encoded.ids)
        while len(ids) - len(encoded.ids) < writing.count and len(ids) < self.encoder.max_length:
            one = Encoded(ids, [0] * len(ids), source=encoded.source)
            ids.append(int(self._run([one])[0]["logits"][-1].argmax()))
            if ids[-1] in writing.ends:
                break
        return ids[len(encoded.ids) :]

    def _greedy(
        self, encoded: Sequence[Encoded], writing: Writing, on_text: Callable[[int, str], None] | None
    ) -> list[list[int]]:  # fmt: skip
        names, written = self.chosen.at([each.source for each in encoded]), list[list[int]]()
        for part in self._parts(len(encoded), names, 1 if on_text else self.batch_size):
            prompts = [encoded[row].ids for row in part]
            told = None if on_text is None else _Told(partial(self._continued, prompts[0]), partial(on_text, part[0]))
            written += write_greedily(
                decoder_of(self._runner_of(names, part[0])), prompts, writing, names=self.runner.input_names,
                pad_id=self.runner.pad_id, on_token=told,
            )  # fmt: skip
        return written

    def _beams(self, encoded: Sequence[Encoded], writing: Writing, num_beams: int) -> list[list[int]]:
        torch = require("torch", extra="export")
        from adakron_export.subjects.transformers_model import OnnxModel

        names, written = self.chosen.at([each.source for each in encoded]), list[list[int]]()
        for row, each in enumerate(encoded):
            model = OnnxModel.of_runner(self._runner_of(names, row), self.folder)
            found = model.generate(
                torch.tensor([each.ids]), num_beams=num_beams, max_new_tokens=writing.count, do_sample=False,
                pad_token_id=self.runner.pad_id,
            )  # fmt: skip
            written.append(found[0, len(each.ids) :].tolist())
        return written

    def _parts(self, count: int, names: Sequence[str] | None, size: int) -> list[list[int]]:
        """Texts that are written together: those that follow one another, of one adapter."""
        parts: list[list[int]] = []
        for row in range(count):
            last = parts[-1] if parts else []
            if last and len(last) < size and (names is None or names[last[0]] == names[row]):
                last.append(row)
            else:
                parts.append([row])
        return parts

    def _runner_of(self, names: Sequence[str] | None, row: int) -> ArtifactRunner:
        return self.runner if names is None else cast("BankRunner", self.runner).adapter(names[row])

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


class _Told:
    """Tells what was written, piece by piece; half a character waits for its other half."""

    def __init__(self, text_of: Callable[[Sequence[int]], str], tell: Callable[[str], None]) -> None:
        self._text_of, self._tell = text_of, tell
        self._told = 0

    def __call__(self, tokens: Sequence[int]) -> None:
        text = self._text_of(tokens)
        if not text.endswith("\ufffd"):
            self._tell(text[self._told :])
            self._told = len(text)


def _read(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        return read_object(file)
    except ValueError as error:
        raise ArtifactError(f"{file}: not readable ({error})") from error

"""An artifact that was opened once and answers texts or images. With a fast tokenizer it needs no torch."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from adakron_export.artifacts.adapters import AdapterRecord, adapter_folder, check_name, read_adapter, read_record
from adakron_export.artifacts.artifact import Artifact
from adakron_export.artifacts.generation_settings import read_settings
from adakron_export.data import predictions
from adakron_export.data.image_input import image_reader
from adakron_export.data.predictions import Classes
from adakron_export.errors import ArtifactError, RunnerError, first_few
from adakron_export.graph.stacks import check_rows
from adakron_export.runtimes.bank import BankRunner, check_fits
from adakron_export.runtimes.base import ArtifactRunner
from adakron_export.runtimes.batching import BATCH_SIZE, Outputs, run_texts
from adakron_export.serving.settings import PredictOptions
from adakron_export.serving.writing import TextWriter, new_tokens_of
from adakron_export.subjects.opening import open_artifact_on
from adakron_export.subjects.space import labels_of, read_config
from adakron_export.tasks import Task
from adakron_export.tokenization.encoding import Encoded, Text, TextEncoder, padding_id

_log = logging.getLogger(__name__)

_STRIDE = 128  # tokens that windows on a long context share
_TOP_TOKENS = 5
Given = Text | Path  # an image is the path of its file


@dataclass(frozen=True, slots=True)
class Questions:
    """Texts or images that were found to be fit for a model.

    Attributes:
        given: The texts or images.
        names: The adapter of a bank that answers each; ``None`` for another artifact.
        options: What was asked for beside.
    """

    given: tuple[Given, ...]
    names: tuple[str, ...] | None
    options: PredictOptions


@dataclass(frozen=True, slots=True)
class Answers:
    """What a model said.

    Attributes:
        results: An answer for each text or image, as `predict` returns them.
        cut: Places of the texts whose end was not read: they are longer than the model takes.
    """

    results: list[Any]
    cut: tuple[int, ...]


class Predictor:
    """An artifact, its tokenizer or image processor, and what its outputs mean.

    Args:
        artifact: The exported folder. Nothing runs before `open`; what can be asked is known at once.

    Attributes:
        adapters: The folder of each adapter of a bank, by name; empty for another artifact.

    Raises:
        ArtifactError: The folder has no tokenizer or image processor.
    """

    def __init__(self, artifact: Artifact) -> None:
        self.artifact, self.manifest = artifact, artifact.manifest
        self.task, self.config = Task(artifact.manifest.task), read_config(artifact)
        bank = artifact.manifest.bank
        self.adapters = {name: adapter_folder(artifact.folder, name) for name in (bank.adapters if bank else ())}
        self._configs: dict[str, Mapping[str, Any]] = {}
        self._runner: ArtifactRunner | None = None
        if self.task is Task.IMAGE_CLASSIFICATION:
            self._read_images = image_reader(artifact.folder)
        else:
            self._encoder = encoder_of(
                artifact.folder, self.task, self.config, max_length=self.manifest.max_length,
                plain=self.manifest.plain_tokenizer,
            )  # fmt: skip

    @property
    def runner(self) -> ArtifactRunner:
        """What computes."""
        assert self._runner is not None
        return self._runner

    @property
    def encoder(self) -> TextEncoder:
        """The tokenizer, of a model of text."""
        return self._encoder

    def open(self, device: str, *, threads: int | None = None) -> Predictor:
        """Open the runtime.

        Raises:
            ArtifactError: The graph is damaged.
            RunnerError: The device is not available.
        """
        self._runner = open_artifact_on(self.artifact, device, threads=threads)
        return self

    def check(
        self, given: Sequence[Any], options: PredictOptions, adapter: str | Sequence[str] | None = None
    ) -> Questions:
        """What is asked, where this model can answer it; arguments as of `predict`.

        Raises:
            RunnerError: There is no text, one is not of the kind that the task needs, or an option is not for the
                task; or there is no such adapter.
        """
        if not given:
            raise RunnerError("there is no text to run on; pass --text or --input")
        _check_options(self.task, options)
        names = self.check_adapters(adapter, len(given))
        kind = _image if self.task is Task.IMAGE_CLASSIFICATION else partial(fit_text, task=self.task)
        return Questions(tuple(kind(each, index) for index, each in enumerate(given, 1)), names, options)

    def at_most(self, questions: Questions, new_tokens: int) -> Questions:
        """The same questions, for which no more is written, whatever the model's settings say."""
        if new_tokens_of(self.artifact.folder) <= new_tokens:
            return questions
        return replace(questions, options=replace(questions.options, max_new_tokens=new_tokens))

    def answer(
        self, questions: Questions, *, batch_size: int = BATCH_SIZE, on_text: Callable[[int, str], None] | None = None
    ) -> Answers:
        """What the model says to questions that `check` found fit.

        Args:
            questions: The questions.
            batch_size: The most texts that run together.
            on_text: Called with pieces of what is written, as by `predict`.
        """
        asked = _Asked(self, questions, batch_size)
        ways: dict[Task, Callable[[], list[Any]]] = {
            Task.TEXT_CLASSIFICATION: asked.classify,
            Task.TOKEN_CLASSIFICATION: asked.tag,
            Task.FILL_MASK: asked.fill,
            Task.QUESTION_ANSWERING: asked.answer,
            Task.FEATURE_EXTRACTION: asked.embed,
            Task.IMAGE_CLASSIFICATION: asked.classify_images,
            Task.TEXT_GENERATION: partial(asked.write, on_text),
        }
        return Answers(ways[self.task.trained](), tuple(sorted(asked.cut)))

    def check_adapters(self, adapter: str | Sequence[str] | None, texts: int) -> tuple[str, ...] | None:
        """The adapter of each text; ``None`` for what is no bank.

        Raises:
            RunnerError: There is no such adapter, or there are more or fewer of them than texts.
        """
        folder = self.artifact.folder
        if not self.adapters:
            if adapter is not None:
                raise RunnerError(f"{folder} is no bank, which an adapter is to be chosen from; leave it out")
            return None
        listed = first_few(self.adapters, 8)
        if adapter is None:
            raise RunnerError(f"{folder} is a bank; say which adapter answers, with --adapter (adapter=...): {listed}")
        if not isinstance(adapter, str) and len(adapter) != texts:
            raise RunnerError(
                f"there are {len(adapter)} adapters for {texts} texts; name one for all, or one for each"
            )
        names = (adapter,) * texts if isinstance(adapter, str) else tuple(adapter)
        missing = next((name for name in names if name not in self.adapters), None)
        if missing is not None:
            raise RunnerError(f"{folder} has no adapter {missing!r:.80}; it has {listed}")
        return names

    def add(self, name: str, folder: Path) -> None:
        """Take another adapter of a bank; see `BankRunner.add`. Answers under way are of those that were there."""
        self._check_bank(f"take the adapter {name!r}")
        if name in self.adapters:
            raise RunnerError(f"there is an adapter {name!r} already; remove it before, or choose another name")
        record = read_record(folder)
        check_fits(self.manifest, record, str(folder))
        if self._runner is None:
            check_name(name)
            bank = self.manifest.bank
            assert bank is not None
            check_rows(bank.layout, read_adapter(folder).rows)
        else:
            _bank(self._runner).add(name, folder)
        self.adapters = {**self.adapters, name: folder}
        self._configs[name] = self._with_labels(record)

    def remove(self, name: str) -> None:
        """Forget an adapter of a bank; see `BankRunner.remove`. Answers under way still have it."""
        self._check_bank(f"forget the adapter {name!r}")
        self.check_adapters(name, 1)
        if len(self.adapters) == 1:
            raise RunnerError(f"{name!r} is the bank's last adapter")
        if self._runner is not None:
            _bank(self._runner).remove(name)
        self.adapters = {each: folder for each, folder in self.adapters.items() if each != name}
        self._configs.pop(name, None)

    def classes(self, name: str | None, count: int) -> Classes:
        """What the classes of the model, or of an adapter, are called."""
        return Classes.of(self.config if name is None else self._config_of(name), count)

    def _config_of(self, name: str) -> Mapping[str, Any]:
        if name not in self._configs:
            self._configs[name] = self._with_labels(read_record(self.adapters[name]))
        return self._configs[name]

    def _with_labels(self, record: AdapterRecord) -> Mapping[str, Any]:
        return {**self.config, **labels_of(record)}

    def _check_bank(self, what: str) -> None:
        bank = self.manifest.bank
        if bank is None:
            raise RunnerError(f"{self.artifact.folder} is no bank, which alone can {what}")
        if bank.places is not None:
            raise RunnerError(f"{self.artifact.folder} is sealed and cannot {what}: its stacks are in a file")


def encoder_of(
    folder: Path, task: Task, config: Mapping[str, Any], *, max_length: int | None, plain: bool
) -> TextEncoder:  # fmt: skip
    """The tokenizer of an exported folder, which cuts off as its model and its library do.

    Args:
        folder: The folder.
        task: What the model is for.
        config: Its ``config.json``.
        max_length: The longest input, in tokens.
        plain: Whether ``tokenizer.json`` is enough.

    Raises:
        ArtifactError: There is no tokenizer.
    """
    encoder = TextEncoder(folder, max_length=max_length or config.get("max_position_embeddings"), plain=plain)
    own, tokens = padding_id(config), encoder.token("pad_token")
    if own is not None and tokens is not None and tokens[1] != own:
        _log.info("the tokenizer pads with %s, the model with %s: the model's is taken", tokens[1], own)
    if task is Task.FEATURE_EXTRACTION:
        limit = read_settings(folder / "sentence_bert_config.json").get("max_seq_length")
        encoder.max_length = min(encoder.max_length, limit or encoder.max_length)
    return encoder


def inputs_of(encoded: Encoded, config: Mapping[str, Any]) -> dict[str, list[int]]:
    """What a model reads of a text; one with fewer kinds of tokens has no more of them."""
    kinds = max(1, config.get("type_vocab_size") or 1)
    return {"input_ids": encoded.ids, "token_type_ids": [min(kind, kinds - 1) for kind in encoded.type_ids]}


def prepared(texts: Sequence[Any], task: Task, folder: Path) -> Sequence[Any]:
    """Texts as the tokenizer gets them: sentence-transformers puts a prompt before them, and may lower their case."""
    if task is not Task.FEATURE_EXTRACTION:
        return texts
    prompts = read_settings(folder / "config_sentence_transformers.json")
    prompt = (prompts.get("prompts") or {}).get(prompts.get("default_prompt_name"), "")
    lower = bool(read_settings(folder / "sentence_bert_config.json").get("do_lower_case"))
    return [prompt + (str(text).lower() if lower else str(text)) for text in texts]


def _bank(runner: ArtifactRunner) -> BankRunner:
    assert isinstance(runner, BankRunner)
    return runner


def _check_options(task: Task, options: PredictOptions) -> None:
    if options.top_k is not None and task not in (
        Task.TEXT_CLASSIFICATION, Task.IMAGE_CLASSIFICATION, Task.FILL_MASK
    ):  # fmt: skip
        raise RunnerError(f"top_k is for classification of texts or images and for fill-mask; {task} has one answer")
    for name in ("max_new_tokens", "num_beams"):
        if getattr(options, name) is not None:
            check_writes(task, name)


def check_writes(task: Task, name: str) -> None:
    """Raise unless an option of writing is for this task."""
    if not task.writes:
        raise RunnerError(f"{name} is for text-generation; this model is for {task}")
    if name != "max_new_tokens" and task is Task.TEXT_GENERATION:
        raise RunnerError(f"{name} needs a cache; export the model as text-generation-with-past")


def _image(file: Any, index: int) -> Path:
    if not isinstance(file, (str, Path)):
        raise RunnerError(f"image {index} is {file!r:.60}; the path of an image file is needed")
    return Path(file)


def fit_text(text: Any, index: int, task: Task) -> Text:
    """A text, or a pair where the task takes one.

    Raises:
        RunnerError: The text is something else; the message has its number.
    """
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


class _Asked:
    """Some texts or images, and the opened model that answers them."""

    def __init__(self, predictor: Predictor, questions: Questions, batch_size: int) -> None:
        self._predictor, self._runner = predictor, predictor.runner
        self._texts: Sequence[Any] = questions.given
        self._names, self._options, self._batch_size = questions.names, questions.options, batch_size
        self.cut: set[int] = set()

    def classify(self) -> list[Any]:
        outputs = self._run(self._predictor.encoder.encode(self._texts))
        return [self._class_of(index, row["logits"]) for index, row in enumerate(outputs)]

    def classify_images(self) -> list[Any]:
        found: list[Any] = []
        for start in range(0, len(self._texts), self._batch_size):
            pixels = self._predictor._read_images(self._texts[start : start + self._batch_size])
            names = self._names and self._names[start : start + len(pixels)]
            logits = self._runner.run({"pixel_values": pixels}, *([names] if names else []))["logits"]
            found += [self._class_of(start + index, row) for index, row in enumerate(logits)]
        return found

    def tag(self) -> list[Any]:
        self._need_offsets()
        encoded = self._predictor.encoder.encode(self._texts)
        outputs = self._run(encoded)
        return [
            predictions.tag(row["logits"], each, str(text), self._classes(index, row["logits"].shape[-1]))
            for index, (row, each, text) in enumerate(zip(outputs, encoded, self._texts, strict=True))
        ]

    def fill(self) -> list[Any]:
        encoder = self._predictor.encoder
        mask = encoder.token("mask_token")
        if mask is None:
            raise ArtifactError(f"{encoder.folder}: its tokenizer has no mask_token, which fill-mask needs")
        encoded = encoder.encode(self._texts)
        for index, each in enumerate(encoded, 1):
            if mask[1] not in each.ids:
                raise RunnerError(f"text {index} has no {mask[0]} to fill within {encoder.max_length} tokens")
        name = partial(encoder.decode, special=True)
        outputs = self._run(encoded)
        return [
            predictions.fill(row["logits"], each, mask[1], name, top_k=self._options.top_k or _TOP_TOKENS)
            for row, each in zip(outputs, encoded, strict=True)
        ]

    def answer(self) -> list[Any]:
        self._need_offsets()
        encoder = self._predictor.encoder
        windows = encoder.encode(self._texts, stride=min(_STRIDE, encoder.max_length // 4))
        outputs = self._run(windows)
        found = []
        for index, text in enumerate(self._texts):
            of_text = [place for place, window in enumerate(windows) if window.source == index]
            starts, ends = ([outputs[place][name] for place in of_text] for name in ("start_logits", "end_logits"))
            found.append(predictions.answer(starts, ends, [windows[place] for place in of_text], text))
        return found

    def embed(self) -> list[Any]:
        texts = prepared(self._texts, self._predictor.task, self._predictor.artifact.folder)
        return [row["sentence_embedding"].tolist() for row in self._run(self._predictor.encoder.encode(texts))]

    def write(self, on_text: Callable[[int, str], None] | None) -> list[Any]:
        predictor = self._predictor
        writer = TextWriter(
            self._runner, predictor.encoder, predictor.artifact.folder, predictor.config, self._at, self._run,
            self._batch_size,
        )  # fmt: skip
        return writer.write(self._texts, self._options.max_new_tokens, self._options.num_beams, on_text)

    def _class_of(self, index: int, logits: Any) -> Any:
        return predictions.classify(logits, self._classes(index, len(logits)), top_k=self._options.top_k)

    def _classes(self, index: int, count: int) -> Classes:
        return self._predictor.classes(self._names[index] if self._names else None, count)

    def _at(self, indices: Sequence[int]) -> list[str] | None:
        """The adapters of some texts; ``None`` for what is no bank."""
        return [self._names[index] for index in indices] if self._names else None

    def _run(self, encoded: Sequence[Encoded]) -> list[Outputs]:
        texts = [inputs_of(each, self._predictor.config) for each in encoded]
        self.cut.update(each.source for each in encoded if each.cut)
        names = self._at([each.source for each in encoded])
        return run_texts(self._runner, texts, batch_size=self._batch_size, adapters=names)

    def _need_offsets(self) -> None:
        if not self._predictor.encoder.has_offsets:
            raise ArtifactError(
                f"{self._predictor.artifact.folder} has only a slow tokenizer, which does not tell where in a text a "
                "token is; save a fast one (tokenizer.json) beside the adapter and export again"
            )

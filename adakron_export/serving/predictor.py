"""An artifact that was opened once and answers texts or images. With a fast tokenizer it needs no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from adakron_export.artifacts.adapters import AdapterRecord, adapter_folder, check_name, read_adapter, read_record
from adakron_export.artifacts.artifact import Artifact
from adakron_export.data.image_input import image_reader
from adakron_export.data.predictions import Classes
from adakron_export.errors import RunnerError, first_few
from adakron_export.graph.stacks import check_rows
from adakron_export.runtimes.bank import BankRunner, check_fits
from adakron_export.runtimes.base import ArtifactRunner
from adakron_export.runtimes.batching import BATCH_SIZE
from adakron_export.serving.answering import Answers, Asked
from adakron_export.serving.questions import Questions, check_options, fit_image, fit_text
from adakron_export.serving.settings import PredictOptions
from adakron_export.serving.texts import encoder_of
from adakron_export.serving.writing import new_tokens_of
from adakron_export.subjects.opening import open_artifact_on
from adakron_export.subjects.space import labels_of, read_config
from adakron_export.tasks import Task
from adakron_export.tokenization.encoding import TextEncoder


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
            self.read_images = image_reader(artifact.folder)
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
        check_options(self.task, options)
        names = self.check_adapters(adapter, len(given))
        kind = fit_image if self.task is Task.IMAGE_CLASSIFICATION else partial(fit_text, task=self.task)
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
        return Asked(self, questions, batch_size).answers(on_text)

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


def _bank(runner: ArtifactRunner) -> BankRunner:
    assert isinstance(runner, BankRunner)
    return runner

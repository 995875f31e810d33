"""What an opened model answers to texts or images, task by task."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from adakron_export.data import predictions
from adakron_export.data.predictions import Classes
from adakron_export.errors import ArtifactError, RunnerError
from adakron_export.runtimes.batching import Outputs, run_texts
from adakron_export.serving.questions import Questions
from adakron_export.serving.texts import inputs_of, prepared
from adakron_export.serving.writing import TextWriter
from adakron_export.tasks import Task
from adakron_export.tokenization.encoding import Encoded

if TYPE_CHECKING:
    from adakron_export.serving.predictor import Predictor

_STRIDE = 128  # tokens that windows on a long context share
_TOP_TOKENS = 5


@dataclass(frozen=True, slots=True)
class Answers:
    """What a model said.

    Attributes:
        results: An answer for each text or image, as `predict` returns them.
        cut: Places of the texts whose end was not read: they are longer than the model takes.
    """

    results: list[Any]
    cut: tuple[int, ...]


class Asked:
    """Some texts or images, and the opened model that answers them."""

    def __init__(self, predictor: Predictor, questions: Questions, batch_size: int) -> None:
        self._predictor, self._runner = predictor, predictor.runner
        self._texts: Sequence[Any] = questions.given
        self._names, self._options, self._batch_size = questions.names, questions.options, batch_size
        self._cut: set[int] = set()

    def answers(self, on_text: Callable[[int, str], None] | None) -> Answers:
        """What the model says; ``on_text`` is called with pieces of what is written, as by `predict`."""
        ways: dict[Task, Callable[[], list[Any]]] = {
            Task.TEXT_CLASSIFICATION: self._classify,
            Task.TOKEN_CLASSIFICATION: self._tag,
            Task.FILL_MASK: self._fill,
            Task.QUESTION_ANSWERING: self._answer,
            Task.FEATURE_EXTRACTION: self._embed,
            Task.IMAGE_CLASSIFICATION: self._classify_images,
            Task.TEXT_GENERATION: partial(self._write, on_text),
        }
        return Answers(ways[self._predictor.task.trained](), tuple(sorted(self._cut)))

    def _classify(self) -> list[Any]:
        outputs = self._run(self._predictor.encoder.encode(self._texts))
        return [self._class_of(index, row["logits"]) for index, row in enumerate(outputs)]

    def _classify_images(self) -> list[Any]:
        found: list[Any] = []
        for start in range(0, len(self._texts), self._batch_size):
            pixels = self._predictor.read_images(self._texts[start : start + self._batch_size])
            names = self._names and self._names[start : start + len(pixels)]
            logits = self._runner.run({"pixel_values": pixels}, *([names] if names else []))["logits"]
            found += [self._class_of(start + index, row) for index, row in enumerate(logits)]
        return found

    def _tag(self) -> list[Any]:
        self._need_offsets()
        encoded = self._predictor.encoder.encode(self._texts)
        outputs = self._run(encoded)
        return [
            predictions.tag(row["logits"], each, str(text), self._classes(index, row["logits"].shape[-1]))
            for index, (row, each, text) in enumerate(zip(outputs, encoded, self._texts, strict=True))
        ]

    def _fill(self) -> list[Any]:
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

    def _answer(self) -> list[Any]:
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

    def _embed(self) -> list[Any]:
        texts = prepared(self._texts, self._predictor.task, self._predictor.artifact.folder)
        return [row["sentence_embedding"].tolist() for row in self._run(self._predictor.encoder.encode(texts))]

    def _write(self, on_text: Callable[[int, str], None] | None) -> list[Any]:
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
        self._cut.update(each.source for each in encoded if each.cut)
        names = self._at([each.source for each in encoded])
        return run_texts(self._runner, texts, batch_size=self._batch_size, adapters=names)

    def _need_offsets(self) -> None:
        if not self._predictor.encoder.has_offsets:
            raise ArtifactError(
                f"{self._predictor.artifact.folder} has only a slow tokenizer, which does not tell where in a text a "
                "token is; save a fast one (tokenizer.json) beside the adapter and export again"
            )

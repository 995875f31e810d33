"""Writes on from texts with an opened artifact, for `predict`. Only other ways than the likeliest token need torch."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from adakron_export.artifacts.generation_settings import GENERATION, in_effect, read_settings
from adakron_export.extras import require
from adakron_export.runtimes.base import ArtifactRunner
from adakron_export.runtimes.batching import Outputs
from adakron_export.runtimes.decoding import decoder_of, keeps_cache
from adakron_export.runtimes.generation import Writing, padded, write_greedily
from adakron_export.tokenization.encoding import Encoded, Text, TextEncoder, load_tokenizer

if TYPE_CHECKING:
    from adakron_export.runtimes.bank import BankRunner

_log = logging.getLogger(__name__)

_NEW_TOKENS = 50
# Settings by which the likeliest token is not always the next one.
_OTHER_WAYS = (
    "num_beams", "repetition_penalty", "no_repeat_ngram_size", "bad_words_ids", "min_length", "min_new_tokens",
    "forced_bos_token_id", "forced_eos_token_id", "suppress_tokens", "begin_suppress_tokens", "sequence_bias",
    "guidance_scale", "stop_strings",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class TextWriter:
    """What of an opened artifact writes.

    Attributes:
        runner: What computes; a bank, where each text has an adapter.
        encoder: Its tokenizer.
        folder: Where its settings are.
        config: Its configuration.
        adapters: Names the adapter of each of some texts; ``None`` where there is no bank.
        run: Reads tokens without a cache.
        batch_size: The most texts that are written together.
    """

    runner: ArtifactRunner
    encoder: TextEncoder
    folder: Path
    config: Mapping[str, Any]
    adapters: Callable[[Sequence[int]], Any]
    run: Callable[[Sequence[Encoded]], list[Outputs]]
    batch_size: int

    def write(
        self, texts: Sequence[Text], max_new_tokens: int | None, num_beams: int | None,
        on_text: Callable[[int, str], None] | None,
    ) -> list[Any]:  # fmt: skip
        """The likeliest token, one after the other; or as ``generation_config.json`` and ``num_beams`` say."""
        settings = read_settings(self.folder / GENERATION)
        if settings.get("do_sample"):
            _log.info("the model's generation settings ask for sampling; predict takes the likeliest token")
        ends = settings.get("eos_token_id", self.config.get("eos_token_id"))
        writing = Writing(
            count=max_new_tokens or new_tokens_of(self.folder),
            ends={ends} if isinstance(ends, int) else {*(ends or ())},
            limit=self.encoder.max_length,
        )
        ways = {**settings, **({} if num_beams is None else {"num_beams": num_beams})}
        encoded = self.encoder.encode(texts)
        size = 1 if on_text or self._is_tight(encoded, writing) else self.batch_size
        if in_effect(ways, _OTHER_WAYS):
            written = self._generated(encoded, writing, num_beams, on_text, size)
        elif not keeps_cache(self.runner):
            written = [self._written_anew(each, writing) for each in encoded]
        else:
            written = self._greedy(encoded, writing, on_text, size)
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
            ids.append(int(self.run([one])[0]["logits"][-1].argmax()))
            if ids[-1] in writing.ends:
                break
        return ids[len(encoded.ids) :]

    def _is_tight(self, encoded: Sequence[Encoded], writing: Writing) -> bool:
        """Whether a long prompt beside a short one would leave that one less room than it has by itself."""
        longest = max(len(each.ids) for each in encoded)
        return writing.limit is not None and longest + writing.count > writing.limit

    def _greedy(
        self, encoded: Sequence[Encoded], writing: Writing, on_text: Callable[[int, str], None] | None, size: int
    ) -> list[list[int]]:  # fmt: skip
        names, written = self.adapters([each.source for each in encoded]), list[list[int]]()
        for start in range(0, len(encoded), size):
            part = range(start, min(start + size, len(encoded)))
            prompts = [encoded[row].ids for row in part]
            told = None if on_text is None else _Told(partial(self._continued, prompts[0]), partial(on_text, part[0]))
            written += write_greedily(
                decoder_of(self.runner, None if names is None else [names[row] for row in part]), prompts, writing,
                names=self.runner.input_names, pad_id=self.runner.pad_id, on_token=told,
            )  # fmt: skip
            if told is not None:
                told(written[-1], last=True)
        return written

    def _generated(
        self, encoded: Sequence[Encoded], writing: Writing, num_beams: int | None,
        on_text: Callable[[int, str], None] | None, size: int,
    ) -> list[list[int]]:  # fmt: skip
        """What transformers' `generate` writes; each text is told when it is whole."""
        torch = require("torch", extra="export")
        from adakron_export.subjects.transformers_model import OnnxModel

        more: dict[str, Any] = {} if num_beams is None else {"num_beams": num_beams}
        stops = bool(read_settings(self.folder / GENERATION).get("stop_strings"))
        if stops:
            more["tokenizer"] = load_tokenizer(self.folder)
        names, written = self.adapters([each.source for each in encoded]), list[list[int]]()
        models: dict[str | None, OnnxModel] = {}
        for part in self._parts(len(encoded), names, size):
            name = None if names is None else names[part[0]]
            if name not in models:
                runner = self.runner if name is None else cast("BankRunner", self.runner).adapter(name)
                models[name] = OnnxModel.of_runner(runner, self.folder)
            ids, mask = padded([encoded[row].ids for row in part], self.runner.pad_id)
            found = models[name].generate(
                torch.from_numpy(ids), attention_mask=torch.from_numpy(mask), max_new_tokens=writing.count,
                do_sample=False, num_return_sequences=1, pad_token_id=self.runner.pad_id, **more,
            )  # fmt: skip
            for row, tokens in zip(part, found[:, ids.shape[1] :].tolist(), strict=True):
                end = next((place for place, token in enumerate(tokens, 1) if token in writing.ends), len(tokens))
                while stops and end and tokens[end - 1] == self.runner.pad_id:
                    end -= 1  # behind a stop string that another text of the batch has not reached
                written.append(tokens[:end])
                if on_text is not None:
                    on_text(row, self._continued(encoded[row].ids, written[-1]))
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


def new_tokens_of(folder: Path) -> int:
    """How much a model writes where nobody says it."""
    return int(read_settings(folder / GENERATION).get("max_new_tokens") or _NEW_TOKENS)


class _Told:
    """Tells what was written, piece by piece; half a character waits for its other half."""

    def __init__(self, text_of: Callable[[Sequence[int]], str], tell: Callable[[str], None]) -> None:
        self._text_of, self._tell = text_of, tell
        self._told = 0

    def __call__(self, tokens: Sequence[int], *, last: bool = False) -> None:
        text = self._text_of(tokens)
        if len(text) > self._told and (last or not text.endswith("\ufffd")):
            self._tell(text[self._told :])
            self._told = len(text)

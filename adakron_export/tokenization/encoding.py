"""Texts to token ids: with transformers' tokenizers, or where `tokenizers` alone gives the same, without them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adakron_export.errors import ArtifactError, RunnerError, told_as
from adakron_export.extras import require
from adakron_export.files.records import read_object
from adakron_export.tokenization.companions import has_tokenizer

Text = str | tuple[str, str]
_UNLIMITED = 10**9  # transformers writes 1e30 where a tokenizer knows no longest text
# Texts on which tokenizer.json alone must give what transformers gives.
TRIED: tuple[Text, ...] = (
    "", " ", "A sentence.", "  Two  blanks, and a\ttab.\nA new line ", "ÀÉÎõü straße İstanbul ﬁ", "你好 世界",
    "emoji 👍🏽 and unseen \U0001f9ff", "[CLS] [SEP] [MASK] </s> <s> <mask> <|endoftext|>", "don't can't U.S.A. 3.14",
    ("A question?", "Its context, which is longer."), ("", "second"),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Encoded:
    """One text, or a window on a pair of them, as tokens.

    Attributes:
        ids: Ids of the tokens.
        type_ids: 0 or 1 by token: which text it is of.
        offsets: First character and the one after the last, in the text that the token is of.
        words: The word of each token; ``None`` where it is of none.
        parts: Number of the text that each token is of; ``None`` for special tokens.
        source: The text that it is of, among those that were encoded.
        cut: Whether the end of the text is missing, which was longer than the model takes.
    """

    ids: list[int]
    type_ids: list[int]
    offsets: list[tuple[int, int]] = field(default_factory=list)
    words: list[int | None] = field(default_factory=list)
    parts: list[int | None] = field(default_factory=list)
    source: int = 0
    cut: bool = False


class TextEncoder:
    """The tokenizer in a folder.

    Args:
        folder: The folder with its files.
        max_length: What the model takes, in tokens; the tokenizer's own limit counts too.
        plain: Whether ``tokenizer.json`` is enough, as `is_plain` found; else transformers reads the folder.

    Raises:
        ArtifactError: There is no tokenizer, or it cannot be read.
        MissingPackageError: What reads it is not installed.
    """

    def __init__(self, folder: Path, *, max_length: int | None = None, plain: bool = False) -> None:
        if not has_tokenizer(folder):
            raise ArtifactError(
                f"{folder} has no tokenizer; put the backbone's tokenizer files beside it and export again"
            )
        self.folder = folder
        with told_as(ArtifactError, f"{folder}: its tokenizer cannot be read"):
            self._settings = _read_settings(folder)
            self._slow: Any = None
            if plain:
                self._tokenizer = require("tokenizers", extra="cpu").Tokenizer.from_file(
                    str(folder / "tokenizer.json")
                )
                names = self._settings.get("model_input_names")
            else:
                loaded = load_tokenizer(folder)
                names = loaded.model_input_names
                self._settings = {**self._settings, "mask_token": loaded.mask_token, "pad_token": loaded.pad_token,
                                  "model_max_length": loaded.model_max_length}  # fmt: skip
                self._slow, self._tokenizer = (None, loaded.backend_tokenizer) if loaded.is_fast else (loaded, None)
        self._types = names is None or "token_type_ids" in names
        limits: list[Any] = [max_length, self._settings.get("model_max_length")]
        self.max_length = int(min([limit for limit in limits if _is_length(limit)] + [_UNLIMITED]))

    @property
    def has_offsets(self) -> bool:
        """Whether it tells where in its text a token is."""
        return self._slow is None

    def vocabulary(self) -> dict[str, int]:
        """The id of each token, added ones included."""
        return dict((self._tokenizer if self._slow is None else self._slow).get_vocab())

    def token(self, name: str) -> tuple[str, int] | None:
        """A special token, such as ``mask_token``, and its id."""
        named = self._settings.get(name)
        text = named.get("content") if isinstance(named, dict) else named
        if not isinstance(text, str):
            return None
        found = self._slow.convert_tokens_to_ids(text) if self._slow else self._tokenizer.token_to_id(text)
        return None if found is None else (text, int(found))

    def decode(self, ids: Sequence[int], *, special: bool = False) -> str:
        """The text of tokens; special ones are left out unless they are asked for."""
        reader = self._tokenizer if self._slow is None else self._slow
        return str(reader.decode(list(ids), skip_special_tokens=not special))

    def encode(self, texts: Sequence[Text], *, stride: int | None = None) -> list[Encoded]:
        """Tokens of each text, cut off at the longest that the model takes.

        Args:
            texts: Texts, or pairs of them.
            stride: Tokens that windows on the second text share; with it a pair becomes as many windows as it needs.

        Raises:
            RunnerError: A text is no text, or a first one leaves its second no room.
        """
        for index, text in enumerate(texts):
            parts = text if isinstance(text, tuple) else (text,)
            if not all(isinstance(part, str) for part in parts) or len(parts) > 2:
                raise RunnerError(f"text {index + 1} is a {type(text).__name__}; give a text, or a pair of them")
            try:
                "".join(parts).encode()
            except UnicodeEncodeError as error:
                raise RunnerError(f"text {index + 1} is no valid Unicode: {error.reason} at {error.start}") from error
        if self._slow is not None:
            return [self._encode_slowly(text, source) for source, text in enumerate(texts)]
        if self.max_length < _UNLIMITED:
            strategy = "longest_first" if stride is None else "only_second"
            side = self._settings.get("truncation_side") or "right"
            self._tokenizer.enable_truncation(self.max_length, stride=stride or 0, strategy=strategy, direction=side)
        else:
            self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        found = []
        for source, text in enumerate(texts):
            try:
                whole = self._tokenizer.encode(*text) if isinstance(text, tuple) else self._tokenizer.encode(text)
            except Exception as error:  # its errors have no class
                raise RunnerError(
                    f"text {source + 1} leaves no room for its second text within {self.max_length} tokens ({error})"
                ) from error
            windows = [whole, *(whole.overflowing if stride is not None else ())]
            cut = stride is None and bool(whole.overflowing)
            found += [self._encoded(window, source, cut=cut) for window in windows]
        return found

    def _encoded(self, window: Any, source: int, *, cut: bool) -> Encoded:
        types = list(window.type_ids) if self._types else [0] * len(window.ids)
        return Encoded(
            list(window.ids),
            types,
            list(window.offsets),
            list(window.word_ids),
            list(window.sequence_ids),
            source,
            cut,
        )

    def _encode_slowly(self, text: Text, source: int) -> Encoded:
        limit = {"truncation": True, "max_length": self.max_length} if self.max_length < _UNLIMITED else {}
        parts = text if isinstance(text, tuple) else (text,)
        found = self._slow(*parts, **limit)
        ids = found["input_ids"]
        cut = len(ids) >= self.max_length and len(self._slow(*parts, verbose=False)["input_ids"]) > len(ids)
        return Encoded(ids, found.get("token_type_ids") or [0] * len(ids), source=source, cut=cut)


def _is_length(limit: Any) -> bool:
    return isinstance(limit, (int, float)) and not isinstance(limit, bool) and limit >= 1


def is_plain(folder: Path, *, decodes: bool = True) -> bool:
    """Whether ``tokenizer.json`` alone gives what transformers' tokenizer of the folder gives.

    Args:
        folder: The folder with the tokenizer.
        decodes: Whether ids are made texts again, too.

    Raises:
        ArtifactError: Transformers cannot read the tokenizer.
    """
    if not (folder / "tokenizer.json").is_file():
        return False
    expected = TextEncoder(folder)
    if not expected.has_offsets:
        return False
    alone = TextEncoder(folder, plain=True)
    same_tokens = all(alone.token(name) == expected.token(name) for name in ("pad_token", "mask_token"))
    pairs = [(alone.encode([text]), expected.encode([text])) for text in TRIED]
    same_texts = not decodes or all(alone.decode(left[0].ids) == expected.decode(left[0].ids) for left, _ in pairs)
    return same_tokens and same_texts and all(_same(left, right) for left, right in pairs)


def _same(left: list[Encoded], right: list[Encoded]) -> bool:
    return [(each.ids, each.type_ids, each.offsets) for each in left] == [
        (each.ids, each.type_ids, each.offsets) for each in right
    ]


def largest_id(folder: Path) -> int:
    """The largest id of any token.

    Raises:
        ArtifactError: The tokenizer cannot be read.
    """
    with told_as(ArtifactError, f"{folder}: its tokenizer cannot be read"):
        return max(load_tokenizer(folder).get_vocab().values(), default=0)


def padding_id(config: Mapping[str, Any]) -> int | None:
    """The model's token for padding; ``None`` where its configuration has none that is a token."""
    token, size = config.get("pad_token_id"), config.get("vocab_size")
    return token if isinstance(token, int) and 0 <= token < (size if isinstance(size, int) else token + 1) else None


def load_tokenizer(folder: Path) -> Any:
    """What transformers makes of a folder's files; nothing in them is run."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)


def _read_settings(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            found |= read_object(folder / name)
    return found

"""What makes two models the same one beside their numbers: inputs, lengths, labels, tokens and settings.

A user of an exported folder reads its labels and its tokenizer, never the checkpoint's. So both are compared: the
tokenizer by what it does, the rest by what is written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adakron_export.errors import AdaKronError, told_as
from adakron_export.files.records import read_json
from adakron_export.subjects.opened import Opened, OpenedArtifact, OpenedCheckpoint, OpenedEngine
from adakron_export.subjects.space import full_config
from adakron_export.tokenization.companions import SETTINGS, tokenizer_source
from adakron_export.tokenization.encoding import TRIED, TextEncoder

_STALE = "it was exported before that was changed, or changed since; export it again"
# What a configuration says of answers; the rest tells how it was made or computes nothing.
_ANSWERS = (
    "model_type", "problem_type", "vocab_size", "type_vocab_size", "max_position_embeddings", "pad_token_id",
    "bos_token_id", "eos_token_id", "sep_token_id", "cls_token_id", "mask_token_id", "image_size", "num_channels",
)  # fmt: skip
_TOKENS = ("pad_token", "mask_token", "cls_token", "sep_token", "unk_token", "bos_token", "eos_token")
_BOOKKEEPING = ("transformers_version", "_commit_hash", "__version__", "_from_model_config")
_PIECES = 400  # of the vocabulary, which are encoded as texts


@dataclass(frozen=True, slots=True)
class Identity:
    """What is held against another one.

    Attributes:
        sources: Folders of its companion files: the first that has one counts.
        config: Its ``config.json``, defaults included.
        inputs: Names.
        outputs: Names.
        max_length: The longest input, in tokens.
        plain_tokenizer: Whether its texts are read by ``tokenizer.json`` alone, where transformers is not wanted.
    """

    sources: tuple[Path, ...]
    config: Mapping[str, Any]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    max_length: int | None
    plain_tokenizer: bool = False


def identity_of(opened: Opened) -> Identity:
    """What is held against another side beside its numbers."""
    names = opened.runner.input_names, opened.runner.output_names
    if isinstance(opened, OpenedArtifact):
        manifest = opened.artifact.manifest
        config = {**full_config(opened.artifact), **opened.own_labels}
        return Identity(opened.folders, config, *names, manifest.max_length, manifest.plain_tokenizer)
    if isinstance(opened, OpenedEngine):
        config = {**full_config(opened.engine), **opened.own_labels}
        return Identity(opened.folders, config, *names, opened.engine.manifest.max_length)
    assert isinstance(opened, OpenedCheckpoint)
    from adakron_export.checkpoints.task_model import position_limit

    return Identity(opened.folders, opened.config, *names, position_limit(opened.eager.model))


def differences(reference: Identity, candidate: Identity) -> list[str]:
    """In what a candidate is another model than the reference, in words; empty where it is the same one.

    Raises:
        AdaKronError: A file of either cannot be read.
    """
    found = [
        f"{what}: the candidate has {of_candidate}, the reference {of_reference}"
        for what, of_reference, of_candidate in (
            ("inputs", sorted(reference.inputs), sorted(candidate.inputs)),
            ("outputs", sorted(reference.outputs), sorted(candidate.outputs)),
            ("longest input", reference.max_length, candidate.max_length),
        )
        if of_reference != of_candidate
    ]
    found += _labels(reference.config, candidate.config)
    found += [
        f"config.json: {name} is {candidate.config[name]!r}, in the reference {reference.config[name]!r}; {_STALE}"
        for name in _ANSWERS
        if name in reference.config and name in candidate.config and reference.config[name] != candidate.config[name]
    ]
    return [*found, *_tokenizers(reference, candidate), *_settings(reference, candidate)]


def _labels(reference: Mapping[str, Any], candidate: Mapping[str, Any]) -> list[str]:
    of_reference, of_candidate = (_by_id(config) for config in (reference, candidate))
    known = sorted({*of_reference, *of_candidate}, key=str)
    wrong = [index for index in known if of_reference.get(index) != of_candidate.get(index)]
    if not wrong:
        return []
    index = wrong[0]
    more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
    here, there = of_candidate.get(index), of_reference.get(index)
    return [f"labels: {index} is {here!r}, in the reference {there!r}{more}; {_STALE}"]


def _by_id(config: Mapping[str, Any]) -> dict[str, str]:
    labels = config.get("id2label")
    return {str(index): str(name) for index, name in labels.items()} if isinstance(labels, Mapping) else {}


def _tokenizers(reference: Identity, candidate: Identity) -> list[str]:
    of_reference, of_candidate = tokenizer_source(reference.sources), tokenizer_source(candidate.sources)
    if of_reference is None or of_candidate is None:
        has, lacks = ("reference", "candidate") if of_candidate is None else ("candidate", "reference")
        return [] if of_reference is of_candidate else [f"tokenizer: the {has} has one and the {lacks} has none"]
    expected = TextEncoder(of_reference)
    ways = [False, True] if candidate.plain_tokenizer else [False]
    tried = (_encoders(expected, TextEncoder(of_candidate, plain=plain)) for plain in ways)
    return next(filter(None, tried), [])


def _encoders(first: TextEncoder, second: TextEncoder) -> list[str]:
    """The first thing that two tokenizers do differently."""
    vocabularies = first.vocabulary(), second.vocabulary()
    wrong = [token for token, index in vocabularies[0].items() if vocabularies[1].get(token) != index]
    wrong += [token for token in vocabularies[1] if token not in vocabularies[0]]
    if wrong:
        token = min(wrong)
        numbers = [each.get(token) for each in vocabularies]
        return [
            f"tokenizer: {token!r} is token {numbers[1]}, in the reference {numbers[0]}, and so are {len(wrong) - 1} "
            f"others; {_STALE}"
        ]
    for name in _TOKENS:
        if first.token(name) != second.token(name):
            return [f"tokenizer: {name} is {second.token(name)}, in the reference {first.token(name)}; {_STALE}"]
    if first.max_length != second.max_length:
        return [f"tokenizer: it cuts at {second.max_length} tokens, the reference at {first.max_length}; {_STALE}"]
    pieces = sorted(vocabularies[0])
    texts = [*TRIED, *(f"{piece} {piece}" for piece in pieces[:: max(1, len(pieces) // _PIECES)])]
    for text in texts:
        ours, theirs = (encoder.encode([text])[0] for encoder in (second, first))
        if (ours.ids, ours.type_ids) != (theirs.ids, theirs.type_ids):
            return [f"tokenizer: {text!r:.60} becomes {ours.ids[:8]}, in the reference {theirs.ids[:8]}; {_STALE}"]
    return []


def _settings(reference: Identity, candidate: Identity) -> list[str]:
    """Files of settings that a user of either folder gets."""
    found = []
    for name in SETTINGS:
        of_reference, of_candidate = (_read(each.sources, name) for each in (reference, candidate))
        if of_reference != of_candidate:
            what = "is not in the reference" if of_reference is None else "differs"
            what = "is missing" if of_candidate is None else what
            found.append(f"{name} {what}; {_STALE}")
    return found


def _read(sources: Sequence[Path], name: str) -> Any:
    file = next((source / name for source in sources if (source / name).is_file()), None)
    if file is None:
        return None
    with told_as(AdaKronError, f"{file}: not readable"):
        content = read_json(file)
    if isinstance(content, dict):
        return {key: value for key, value in content.items() if key not in _BOOKKEEPING}
    return content

"""What lies beside a model's weights and changes what its user gets: tokenizer, generation settings, pooling.

Files are copied as they are: other versions of transformers and other libraries read them too.
"""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from adakron_export.errors import CheckpointError
from adakron_export.files.records import read_json, read_object

# Without one of these there is no tokenizer; a class of transformers may name others (`vocab_files_names`).
VOCABULARIES = (
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "spm.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tokenizer.model",
)
TOKENIZER_FILES = (
    *VOCABULARIES,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "merges.txt",
    "chat_template.jinja",
)
_OTHERS = ("generation_config.json", "preprocessor_config.json", "processor_config.json")
_SENTENCE = ("modules.json", "sentence_bert_config.json", "config_sentence_transformers.json")
SETTINGS = (*_OTHERS, *_SENTENCE)  # JSON that changes what a user of the folder gets


def has_tokenizer(folder: Path) -> bool:
    """Whether a tokenizer's files are in a folder."""
    return (folder / "tokenizer_config.json").is_file() or any((folder / name).is_file() for name in VOCABULARIES)


def tokenizer_source(sources: Sequence[Path]) -> Path | None:
    """The first folder with a tokenizer, of a checkpoint and its backbone: the one that all of this package takes."""
    return next((source for source in sources if has_tokenizer(source)), None)


def copy_companions(sources: Sequence[Path], folder: Path) -> None:
    """Copy what changes the answers.

    Args:
        sources: The checkpoint's folder and the backbone's, or an artifact's: the first one that has something wins.
        folder: Where it goes; files that are there stay.
    """
    source = tokenizer_source(sources)
    if source is not None:
        _copy(source, (*TOKENIZER_FILES, *_class_files(source)), folder)
    for source in sources:
        _copy(source, _OTHERS, folder)
    sentences = next((each for each in sources if (each / "modules.json").is_file()), None)
    if sentences is not None:
        _copy(sentences, (*_SENTENCE, *_module_files(sentences)), folder)


def companion_names(folder: Path) -> list[str]:
    """What `copy_companions` copies out of a folder like this one."""
    return [*TOKENIZER_FILES, *_class_files(folder), *SETTINGS, *_module_files(folder)]


def sentence_modules(folder: Path) -> list[dict[str, Any]]:
    """The rows of sentence-transformers' ``modules.json``; empty where there is none.

    Raises:
        ValueError: The file cannot be read, or names a place outside of its folder.
    """
    file = folder / "modules.json"
    if not file.is_file():
        return []
    rows = read_json(file)
    if not isinstance(rows, list) or not all(
        isinstance(row, dict) and isinstance(row.get("type"), str) for row in rows
    ):
        raise ValueError(f"{file}: not a list of modules")
    for row in rows:
        path = row.get("path", "")
        if not isinstance(path, str) or not (folder / path).resolve().is_relative_to(folder.resolve()):
            raise ValueError(f"{file}: the module {row.get('name')!r} lies outside of the folder")
    return rows


def _module_files(folder: Path) -> list[str]:
    paths = [row.get("path", "") for row in sentence_modules(folder)]
    return [
        file.relative_to(folder).as_posix()
        for path in paths
        if path
        for file in sorted((folder / path).glob("*"))
        if file.suffix in (".json", ".safetensors", ".bin")
    ]


def _class_files(folder: Path) -> list[str]:
    """Other files that the tokenizer's class of transformers reads, such as PhoBERT's ``bpe.codes``."""
    if importlib.util.find_spec("transformers") is None:
        return []
    import transformers
    from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES

    settings, config = (_read_object(folder / name) for name in ("tokenizer_config.json", "config.json"))
    named = settings.get("tokenizer_class") or config.get("tokenizer_class")
    kind = getattr(transformers, str(named or TOKENIZER_MAPPING_NAMES.get(config.get("model_type"))), None)
    names = getattr(kind, "vocab_files_names", None) or {}
    return [name for name in names.values() if isinstance(name, str) and Path(name).name == name]


def _read_object(file: Path) -> dict[str, Any]:
    """A JSON object; empty where there is none, for who needs it reads it again and says what is wrong."""
    try:
        return read_object(file)
    except (OSError, ValueError):
        return {}


def _copy(source: Path, names: Iterable[str], folder: Path) -> None:
    for name in names:
        file, copy = source / name, folder / name
        if file.is_file() and not copy.exists():
            _check_inside(file, source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)


def _check_inside(file: Path, folder: Path) -> None:
    """Raise where a link leads out of a folder: what it points to is no file of the model.

    The hub's cache is made of links, from ``snapshots/COMMIT/`` into ``blobs/`` of the same repository.
    """
    place, real = folder.resolve(), file.resolve()
    in_cache = place.parent.name == "snapshots" and real.is_relative_to(place.parent.parent / "blobs")
    if not real.is_relative_to(place) and not in_cache:
        raise CheckpointError(f"{file} is a link out of its folder, to {real}; put the file itself there")

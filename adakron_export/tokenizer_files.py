"""A tokenizer's files, copied as they are: other versions of transformers and other libraries read them too."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

_NAMES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "spm.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tokenizer.model",
    "chat_template.jinja",
    "preprocessor_config.json",
)


def copy_tokenizer(sources: Sequence[Path], folder: Path) -> None:
    """Copy the tokenizer of the first source that has a whole one, else what files there are.

    Args:
        sources: Folders in the order of preference.
        folder: Where they go; files that are there stay.
    """
    chosen = next((source for source in sources if (source / "tokenizer_config.json").is_file()), None)
    for source in [chosen] if chosen else sources:
        for name in _NAMES:
            if (source / name).is_file() and not (folder / name).exists():
                shutil.copyfile(source / name, folder / name)

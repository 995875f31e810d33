"""What a file may ask for, checked before anything is allocated.

A configuration of a few hundred bytes can name a million layers, and a pattern of twenty characters can take years to
match. So sizes are held to what the weights beside them can fill, and patterns are tried in a process with a limit.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from adakron_export.errors import AdaKronError, BackboneError, CheckpointError, first_few
from adakron_export.files.records import read_object

_LARGEST = 2**53  # of a number in a configuration, beyond which floats are not whole
_MOST_LAYERS, _MOST_LABELS, _WIDEST = 1024, 100_000, 2**20
_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_WIDTHS = ("hidden_size", "n_embd", "dim", "d_model")
_INNER = ("intermediate_size", "n_inner", "hidden_dim")
_SIZES = (
    *_WIDTHS, *_INNER, "embedding_size", "num_attention_heads", "n_head", "n_heads", "num_key_value_heads", "head_dim",
    "type_vocab_size", "image_size", "patch_size", "num_channels", "attention_head_size", "max_relative_positions",
    "position_buckets", "pooler_hidden_size", "num_hidden_groups", "inner_group_num",
)  # fmt: skip
_TABLES = ("vocab_size", "max_position_embeddings", "n_positions")
_SMALLEST_BYTES = 0.25  # that a number takes in a file of weights, in 2 bits
_PLAIN = re.compile(r"[\w.*|\\+$^-]*")  # patterns that cannot take long: one repeat after the other
_LONGEST_PATTERN, _PATTERN_SECONDS = 2000, 5
_MATCH = """
import json, re, sys
patterns, names = json.load(sys.stdin)
for pattern in patterns:
    for name in names:
        re.fullmatch(pattern, name), re.match(rf"(.*\\.)?({pattern})$", name)
"""


def check_config_file(folder: Path, weights: Iterable[Path]) -> None:
    """Raise where ``config.json`` asks for a model that its weights cannot fill.

    Args:
        folder: The folder with the configuration.
        weights: The files of the weights.

    Raises:
        BackboneError: The configuration does, or cannot be read.
    """
    file = folder / "config.json"
    try:
        config = read_object(file)
    except FileNotFoundError:
        return  # which is said by who needs it
    except (OSError, ValueError) as error:
        raise BackboneError(f"{file}: not a readable configuration ({error})") from error
    _check_numbers(config, file)
    labels = config.get("id2label")
    counts = {"num_labels": config.get("num_labels"), "id2label": len(labels) if isinstance(labels, dict) else None}
    limits = dict.fromkeys(counts, _MOST_LABELS) | dict.fromkeys(_LAYERS, _MOST_LAYERS)
    limits |= dict.fromkeys(_SIZES, _WIDEST)
    for name, limit in limits.items():
        number = counts.get(name) if name in counts else config.get(name)
        if isinstance(number, int) and number > limit:
            raise BackboneError(f"{file}: {name} is {number}, and more than {limit} are not read")
    held = sum(weight.stat().st_size for weight in weights) / _SMALLEST_BYTES
    wanted = _numbers_of(config)
    if held and wanted > held:
        raise BackboneError(
            f"{file}: a model of this configuration has some {wanted:.3g} numbers, and its weights hold at most "
            f"{held:.3g}; the configuration is of another model"
        )


def _check_numbers(value: Any, file: Path) -> None:
    if isinstance(value, int) and abs(value) > _LARGEST:
        raise BackboneError(f"{file}: holds a number of {value.bit_length()} bits, which no setting has")
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _check_numbers(part, file)


def _numbers_of(config: Mapping[str, Any]) -> float:
    """About how many numbers its tables and layers hold, rather too few."""

    def largest(names: Iterable[str]) -> int:
        found = [config.get(name) for name in names]
        return max((number for number in found if isinstance(number, int)), default=0)

    width, inner = largest(_WIDTHS), largest(_INNER)
    layers = config.get("num_hidden_groups") or largest(_LAYERS)  # ALBERT's layers share their weights
    embedding = config.get("embedding_size") or width
    if not isinstance(layers, int) or not isinstance(embedding, int):
        return 0.0
    tables = sum(number for name in _TABLES if isinstance(number := config.get(name), int) and name == "vocab_size")
    return float(tables) * embedding + float(layers) * (2.0 * width * width + 2.0 * width * inner)


def check_tensors_of_file(file: Path, tensors: Mapping[str, Tensor]) -> None:
    """Raise unless a checkpoint's tensors are plain, real and finite, and no larger than their file.

    Raises:
        CheckpointError: One is not.
    """
    for name, tensor in tensors.items():
        kind = _kind_of(tensor)
        if kind:
            raise CheckpointError(f"{file}: {name} is {kind}; save plain tensors of real numbers")
    held = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    if held > file.stat().st_size:
        raise CheckpointError(f"{file}: its tensors say that they have {held} bytes, more than the file has")
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor.float()).all()):
            raise CheckpointError(f"{file}: {name} holds NaN or Inf; take a checkpoint from before training diverged")


def _kind_of(tensor: Tensor) -> str:
    """What a tensor is beside plain and real; empty where it is both."""
    if tensor.layout is not torch.strided or tensor.is_nested:
        return "a sparse or nested tensor"
    if tensor.is_quantized:
        return "a quantised tensor"
    if tensor.is_meta:
        return "a tensor without data"
    return f"of {tensor.dtype}" if tensor.is_complex() else ""


def check_finite(name: str, model: nn.Module) -> None:
    """Raise where a backbone holds NaN or Inf.

    Raises:
        BackboneError: The configuration does.
    """
    broken = [key for key, tensor in model.named_parameters() if not bool(torch.isfinite(tensor).all())]
    if broken:
        raise BackboneError(f"backbone {name!r} holds NaN or Inf in {first_few(broken)}; take another copy of it")


def check_patterns(patterns: Iterable[Any], names: Iterable[str], error: type[AdaKronError], place: str) -> None:
    """Raise where a regular expression of a file cannot be matched in reasonable time.

    Args:
        patterns: Patterns of modules; what is no text is none.
        names: Names of the model's modules.
        error: What to raise.
        place: The file, for the message.
    """
    texts = [pattern for pattern in patterns if isinstance(pattern, str)]
    for text in texts:
        if len(text) > _LONGEST_PATTERN:
            raise error(
                f"{place}: a pattern of modules has {len(text)} characters; at most {_LONGEST_PATTERN} are read"
            )
        try:
            re.compile(text)
        except (re.error, RecursionError, OverflowError) as problem:
            raise error(f"{place}: {text!r:.80} is no regular expression ({problem})") from problem
    doubtful = [text for text in texts if not _PLAIN.fullmatch(text) or text.count("*") + text.count("+") > 3]
    if not doubtful:
        return
    try:
        subprocess.run(
            [sys.executable, "-I", "-c", _MATCH], input=json.dumps([doubtful, list(names)]), text=True, check=False,
            timeout=_PATTERN_SECONDS, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
    except subprocess.TimeoutExpired as problem:
        raise error(
            f"{place}: the pattern {doubtful[0]!r:.80} takes too long to match; write it without repeats in repeats"
        ) from problem

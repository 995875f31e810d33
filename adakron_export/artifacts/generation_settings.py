"""``generation_config.json`` beside an artifact, and other settings there."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from adakron_export.errors import ArtifactError
from adakron_export.files.records import read_object

GENERATION = "generation_config.json"
# Settings of transformers' `generate`, and the value with which each does nothing.
NEUTRAL: dict[str, Any] = {
    "num_beams": 1, "repetition_penalty": 1.0, "min_length": 0, "no_repeat_ngram_size": 0, "diversity_penalty": 0.0,
    "num_beam_groups": 1, "bad_words_ids": None, "min_p": None, "min_new_tokens": 0, "typical_p": 1.0,
    "epsilon_cutoff": 0.0, "eta_cutoff": 0.0, "penalty_alpha": None, "forced_bos_token_id": None,
    "forced_eos_token_id": None, "suppress_tokens": None, "begin_suppress_tokens": None, "sequence_bias": None,
    "guidance_scale": None, "exponential_decay_length_penalty": None, "stop_strings": None,
    "renormalize_logits": False, "remove_invalid_values": False,
}  # fmt: skip


def in_effect(settings: Mapping[str, Any], names: Collection[str]) -> list[str]:
    """Those of some names of `NEUTRAL` whose settings do something."""
    return [name for name in names if settings.get(name) not in (None, NEUTRAL[name])]


def read_settings(file: Path) -> dict[str, Any]:
    """A file of settings beside an artifact; empty where there is none.

    Raises:
        ArtifactError: The file cannot be read.
    """
    if not file.is_file():
        return {}
    try:
        return read_object(file)
    except ValueError as error:
        raise ArtifactError(f"{file}: not readable ({error})") from error

"""``genai_config.json``: what onnxruntime-genai reads beside a model to write with it."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from adakron_export.artifacts.generation_settings import GENERATION, NEUTRAL, in_effect, read_settings
from adakron_export.artifacts.manifest import MODEL, Manifest, TensorInfo
from adakron_export.files.records import read_object, write_json
from adakron_export.graph.keys import EXACT_SUMS
from adakron_export.tasks import PAST, PRESENT, Task

FILE = "genai_config.json"
_log = logging.getLogger(__name__)
_TARGETS, _DTYPES = ("portable", "ort-cpu"), ("fp32", "fp16", "int8", "int4")
_INPUTS = {"input_ids", "attention_mask", "position_ids"}
# Settings of generation_config.json that it has too, and what they are where nobody says.
_SEARCH = {
    "do_sample": False, "num_beams": 1, "num_return_sequences": 1, "min_length": 0, "temperature": 1.0, "top_k": 50,
    "top_p": 1.0, "repetition_penalty": 1.0, "length_penalty": 1.0, "early_stopping": False,
}  # fmt: skip
# Settings that it would drop.
_OTHERS = NEUTRAL.keys() - _SEARCH.keys()


def write_genai_config(folder: Path, manifest: Manifest) -> None:
    """Write it where onnxruntime-genai can run the model as it is meant; say why where it cannot.

    Args:
        folder: The artifact's, with ``config.json`` and, if there is one, ``generation_config.json``.
        manifest: What the artifact is.

    Raises:
        ArtifactError: ``generation_config.json`` cannot be read.
    """
    spec = manifest.spec
    if manifest.task != Task.TEXT_GENERATION_WITH_PAST or spec.target not in _TARGETS or spec.dtype not in _DTYPES:
        return
    config, settings = read_object(folder / "config.json"), read_settings(folder / GENERATION)
    problem = _problem(manifest, config, settings)
    if problem:
        _log.info("%s is not written: %s", FILE, problem)
        return
    if settings.get("max_new_tokens") is not None:
        _log.info("%s has max_length, which counts the prompt, in the place of max_new_tokens", FILE)
    write_json(folder / FILE, {"model": _model(manifest, config, settings), "search": _search(config, settings)})


def _problem(manifest: Manifest, config: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    """Why it could not run the model, or would write something else; empty where it can."""
    others = sorted(in_effect(settings, _OTHERS))
    if others:
        return f"onnxruntime-genai has no {others[0]}, which {GENERATION} sets"
    if not isinstance(settings.get("early_stopping", False), bool | None):
        return f"onnxruntime-genai has no early_stopping {settings['early_stopping']!r}"
    if _ends(config, settings) in (None, []):
        return "no eos_token_id says where a text ends"
    if not isinstance(_window(config), int):
        return "config.json has no max_position_embeddings"
    shapes = {info.shape[1::2] for info in _kept(manifest.inputs)}
    if len(shapes) > 1:
        return "onnxruntime-genai takes keys and values of one shape in all layers"
    more = {info.name for info in manifest.inputs if not info.name.startswith(PAST)} - _INPUTS
    return f"onnxruntime-genai does not fill the input {min(more)}" if more else ""


def _model(manifest: Manifest, config: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    kept = _kept(manifest.inputs)
    heads, width = kept[0].shape[1::2]
    ends = _ends(config, settings)
    first, padding = (_setting(name, config, settings) for name in ("bos_token_id", "pad_token_id"))
    names = {info.name: info.name for info in manifest.inputs if info.name in _INPUTS}
    spec = manifest.spec
    exact = {EXACT_SUMS: "1"} if spec.dtype == "int8" and not spec.lowered_for.any_session else {}
    return {
        "type": "decoder",  # any whose inputs and outputs are named below
        "vocab_size": next(info.shape[-1] for info in manifest.outputs if info.name == "logits"),
        "context_length": _window(config),
        **({} if first is None else {"bos_token_id": first}),
        "eos_token_id": ends,
        "pad_token_id": padding if padding is not None else ends[0] if isinstance(ends, list) else ends,
        "decoder": {
            "filename": MODEL,
            "session_options": {"log_id": "onnxruntime-genai", "provider_options": [], **exact},
            "num_hidden_layers": len(kept) // 2,
            "num_attention_heads": config.get("num_attention_heads", config.get("n_head", heads)),
            "num_key_value_heads": heads,
            "head_size": width,
            "hidden_size": config.get("hidden_size", config.get("n_embd", 0)),
            "inputs": {**names, "past_key_names": f"{PAST}%d.key", "past_value_names": f"{PAST}%d.value"},
            "outputs": {
                "logits": "logits",
                "present_key_names": f"{PRESENT}%d.key",
                "present_value_names": f"{PRESENT}%d.value",
            },
        },
    }


def _search(config: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    said = {name: settings[name] for name in _SEARCH if settings.get(name) is not None}
    length = settings.get("max_length") or _window(config)
    # The keys and values of a step are new ones: no operator of the graph writes into those of the past.
    return {**_SEARCH, **said, "max_length": length, "past_present_share_buffer": False}


def _kept(inputs: Iterable[TensorInfo]) -> list[TensorInfo]:
    return [info for info in inputs if info.name.startswith(PAST)]


def _ends(config: Mapping[str, Any], settings: Mapping[str, Any]) -> Any:
    return _setting("eos_token_id", config, settings)


def _window(config: Mapping[str, Any]) -> Any:
    return config.get("max_position_embeddings", config.get("n_positions"))


def _setting(name: str, config: Mapping[str, Any], settings: Mapping[str, Any]) -> Any:
    own = settings.get(name)
    return config.get(name) if own is None else own

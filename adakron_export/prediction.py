"""Runs an artifact on texts, through transformers' pipelines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from adakron_export.artifact import open_artifact
from adakron_export.errors import ArtifactError, RunnerError
from adakron_export.runtimes.batching import BATCH_SIZE, group_by_length
from adakron_export.tasks import Task

# Their pipelines pay no regard to padding; others would put it out, or have to pad in front.
_BATCHED = (Task.TEXT_CLASSIFICATION, Task.TOKEN_CLASSIFICATION)


def predict(
    artifact: str | Path,
    texts: Sequence[str],
    *,
    device: str = "cpu",
    progress: Callable[[str], None] = lambda _: None,
) -> list[Any]:
    """What `transformers.pipeline` answers for each text; texts that are about as long as one another run together.

    Args:
        artifact: The exported folder.
        texts: At least one.
        device: ``cpu``, ``openvino`` or ``cuda``.
        progress: Told of each stage as it begins.

    Raises:
        ArtifactError: It is damaged, or has no tokenizer.
        RunnerError: There is no text, or the task needs more than one.
    """
    opened = open_artifact(artifact)
    if not texts:
        raise RunnerError("there is no text to run on; pass --text or --input")
    if opened.manifest.task in (Task.QUESTION_ANSWERING, Task.IMAGE_CLASSIFICATION):
        raise RunnerError(
            f"{opened.manifest.task} needs more than a text; use transformers.pipeline with OnnxModel (README)"
        )
    if not (opened.folder / "tokenizer_config.json").is_file():
        raise ArtifactError(
            f"{opened.folder} has no tokenizer; put the backbone's tokenizer files beside it and export again"
        )
    progress("open the artifact")
    from transformers import AutoTokenizer, pipeline

    from adakron_export.runtimes.transformers_model import OnnxModel

    model = OnnxModel.from_pretrained(artifact, device=device)
    tokenizer = AutoTokenizer.from_pretrained(str(opened.folder))
    run = pipeline(opened.manifest.task, model=model, tokenizer=tokenizer)
    longest = opened.manifest.max_length
    options = {"truncation": True, "max_length": longest} if _truncates(opened.manifest.task, longest) else {}
    progress(f"run the model on {len(texts)} text(s)")
    if opened.manifest.task not in _BATCHED:
        return list(run(list(texts), **options))
    lengths = [len(ids) for ids in tokenizer(list(texts))["input_ids"]]
    order = [row for batch in group_by_length(lengths, longest=longest) for row in batch.rows]
    answers = run([texts[row] for row in order], batch_size=BATCH_SIZE, **options)
    return [answer for _, answer in sorted(zip(order, answers, strict=True), key=lambda pair: pair[0])]


def _truncates(task: str, longest: int | None) -> bool:
    return longest is not None and task in (Task.TEXT_CLASSIFICATION, Task.FEATURE_EXTRACTION)

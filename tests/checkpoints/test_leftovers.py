"""Backbones that hold more than transformers reads."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from adakron_export import load_model
from adakron_export.errors import BackboneError
from adakron_export.tasks import Task
from tiny import save_checkpoint

DISTANCES = "encoder.layer.0.attention.self.distance_embedding.weight"


@pytest.mark.parametrize("task", [Task.TEXT_CLASSIFICATION, Task.FEATURE_EXTRACTION])
@pytest.mark.parametrize(("tensor", "used"), [(f"bert.{DISTANCES}", True), ("bert.embeddings.position_ids", False),
                                              ("cls.predictions.bias", False)])  # fmt: skip
def test_tensors_of_the_body_are_not_dropped(tensor, used, task, tmp_path):
    checkpoint = save_checkpoint(tmp_path, task=task)
    file = tmp_path / "backbone/model.safetensors"
    if task is Task.FEATURE_EXTRACTION:
        tensor = tensor.removeprefix("bert.")
    save_file({**load_file(file), tensor: torch.zeros(3)}, file, metadata={"format": "pt"})
    if used:
        with pytest.raises(BackboneError, match=DISTANCES):
            load_model(checkpoint)
    else:
        load_model(checkpoint)


def test_positions_that_transformers_ignores_are_refused(tmp_path):
    checkpoint = save_checkpoint(tmp_path)
    file = tmp_path / "backbone/config.json"
    settings = json.loads(file.read_text())
    file.write_text(json.dumps({**settings, "position_embedding_type": "absolute"}))
    load_model(checkpoint)
    file.write_text(json.dumps({**settings, "position_embedding_type": "relative_key_query"}))
    with pytest.raises(BackboneError, match="relative_key_query.*computes with 'absolute'"):
        load_model(checkpoint)

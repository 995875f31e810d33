"""The chain of sentence-transformers' modules behind a backbone."""

import json

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import save_file

from adakron_export import export_onnx, open_artifact, open_runner
from adakron_export.errors import BackboneError
from adakron_export.tasks import Task
from tiny import first, save_checkpoint

IDS = np.array([[2, 30, 40, 3, 1, 1], [2, 50, 60, 70, 80, 3]])
BATCH = {"input_ids": IDS, "attention_mask": (IDS != 1).astype(np.int64), "token_type_ids": np.zeros_like(IDS)}
KINDS = "sentence_transformers.models."


def chain(backbone, *modules):
    """Write the modules; each is its kind, its settings and its weights."""
    rows = [{"idx": 0, "name": "0", "path": "", "type": f"{KINDS}Transformer"}]
    for index, (kind, settings, weights) in enumerate(modules, 1):
        folder = backbone / f"{index}_{kind}"
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(settings))
        if weights:
            save_file(weights, folder / "model.safetensors")
        rows.append({"idx": index, "name": str(index), "path": folder.name, "type": f"{KINDS}{kind}"})
    (backbone / "modules.json").write_text(json.dumps(rows))
    (backbone / "sentence_bert_config.json").write_text('{"max_seq_length": 17}')


def pooled(hidden, mode):
    """By hand, of the first text, which has four tokens."""
    tokens = hidden[0, :4].astype(np.float64)
    weights = np.arange(1, 5)[:, None]
    return {
        "cls_token": tokens[0],
        "max_tokens": tokens.max(0),
        "mean_tokens": tokens.mean(0),
        "mean_sqrt_len_tokens": tokens.sum(0) / 2,
        "weightedmean_tokens": (tokens * weights).sum(0) / weights.sum(),
        "lasttoken": tokens[3],
    }[mode]


MODES = ["cls_token", "max_tokens", "mean_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken"]


@pytest.mark.parametrize("modes", first(2, [MODES, *([mode] for mode in MODES)]))
def test_each_pooling_and_all_together(modes, tmp_path):
    checkpoint = save_checkpoint(tmp_path, "bert", Task.FEATURE_EXTRACTION)
    settings = {f"pooling_mode_{mode}": mode in modes for mode in MODES}
    chain(tmp_path / "backbone", ("Pooling", {"word_embedding_dimension": 32, **settings}, None))
    assert export_onnx(checkpoint, tmp_path / "out").written
    outputs = open_runner(tmp_path / "out").run(BATCH)
    expected = np.concatenate([pooled(outputs["last_hidden_state"], mode) for mode in modes])
    np.testing.assert_allclose(outputs["sentence_embedding"][0], expected, atol=1e-5)


@pytest.mark.parametrize("dtype", first(1, ["fp16", "fp32"]))
def test_dense_norm_and_length_follow_and_their_files_are_copied(dtype, tmp_path):
    checkpoint = save_checkpoint(tmp_path, "bert", Task.FEATURE_EXTRACTION)
    torch.manual_seed(0)
    dense = {"linear.weight": torch.randn(24, 32), "linear.bias": torch.randn(24)}
    norm = {"norm.weight": torch.rand(24) + 0.5, "norm.bias": torch.randn(24)}
    settings = {"in_features": 32, "out_features": 24, "bias": True,
                "activation_function": "torch.nn.modules.activation.Tanh"}  # fmt: skip
    chain(
        tmp_path / "backbone",
        ("Pooling", {"embedding_dimension": 32, "pooling_mode": "mean"}, None),
        ("Dense", settings, dense),
        ("LayerNorm", {"dimension": 24}, norm),
        ("Normalize", {}, None),
    )
    assert export_onnx(checkpoint, tmp_path / "out", dtype=dtype).written
    for name in ("modules.json", "sentence_bert_config.json", "1_Pooling/config.json", "2_Dense/model.safetensors"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "backbone" / name).read_bytes()
        assert name in open_artifact(tmp_path / "out").manifest.files
    shape = onnx.load(tmp_path / "out/model.onnx").graph.output[1].type.tensor_type.shape
    assert shape.dim[1].dim_value == 24
    if dtype == "fp16":
        return
    outputs = open_runner(tmp_path / "out").run(BATCH)
    vector = torch.tensor(pooled(outputs["last_hidden_state"], "mean_tokens"), dtype=torch.float32)
    vector = torch.tanh(dense["linear.weight"] @ vector + dense["linear.bias"])
    vector = torch.nn.functional.layer_norm(vector, [24], norm["norm.weight"], norm["norm.bias"])
    expected = vector / vector.norm()
    np.testing.assert_allclose(outputs["sentence_embedding"][0], expected.numpy(), atol=1e-5)


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        ([("Pooling", {"pooling_mode": "mean"}, None), ("WordWeights", {}, None)], "models.WordWeights cannot be"),
        ([("Normalize", {}, None)], "Transformer, Normalize is no such chain"),
        ([("Pooling", {"pooling_mode": "median"}, None)], r"pooling \['median'\] is not supported"),
        ([("Pooling", {"pooling_mode": "mean", "include_prompt": False}, None)], "leaves prompts out"),
        ([("Pooling", {"pooling_mode": "mean"}, None),
          ("Dense", {"in_features": 32, "out_features": 4, "activation_function": "my.Own"}, None)], "activation Own"),
        ([("Pooling", {"pooling_mode": "mean"}, None),
          ("Dense", {"in_features": 32, "out_features": 4}, None)], "cannot be followed"),
    ],
)  # fmt: skip
def test_what_cannot_be_computed_is_refused_by_name(modules, message, tmp_path):
    checkpoint = save_checkpoint(tmp_path, "bert", Task.FEATURE_EXTRACTION)
    chain(tmp_path / "backbone", *modules)
    with pytest.raises(BackboneError, match=message):
        export_onnx(checkpoint, tmp_path / "out")


def test_modules_outside_of_the_folder_are_not_followed(tmp_path):
    checkpoint = save_checkpoint(tmp_path, "bert", Task.FEATURE_EXTRACTION)
    chain(tmp_path / "backbone", ("Pooling", {"pooling_mode": "mean"}, None))
    rows = json.loads((tmp_path / "backbone/modules.json").read_text())
    rows[1]["path"] = "../elsewhere"
    (tmp_path / "backbone/modules.json").write_text(json.dumps(rows))
    with pytest.raises(BackboneError, match="lies outside"):
        export_onnx(checkpoint, tmp_path / "out")

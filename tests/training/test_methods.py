"""Other methods than AdaKron, trained by the same recipes."""

import json

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification

from adakron_export import Recipe, export_onnx, load_model, predict, train
from adakron_export.checkpoints.finding import find_checkpoint
from adakron_export.errors import AdapterConfigError, TrainingError
from tiny import first, save_backbone

ROWS = [("the film was good", "up"), ("the plot was awful", "down"), ("a great actor", "up"), ("a sad film", "down")]
METHODS = {
    "lora": {"r": 4, "lora_alpha": 16.0},
    "houlsby": {"method": "bottleneck", "position": "both", "original_ln_before": False, "activation": "silu", "r": 6},
    "parallel": {"method": "bottleneck", "parallel": True, "scaling": 2.0},
    "bottleneck": {"reduction_factor": 4.0},
}


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    torch.manual_seed(0)
    return save_backbone(tmp_path_factory.mktemp("methods") / "backbone")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    file = tmp_path_factory.mktemp("methods") / "data.csv"
    file.write_text("text,label\n" + "".join(f"{text},{label}\n" for text, label in ROWS * 16))
    return file


def recipe_of(backbone, data, method, **changes):
    settings = {
        "method": method,
        "epochs": 12.0,
        "batch_size": 8,
        "learning_rate": 1e-2,
        "seed": 3,
        **METHODS.get(method, {}),
    }
    return Recipe(backbone=str(backbone), data=str(data), **{**settings, **changes})


@pytest.mark.parametrize("method", first(2, METHODS))
def test_a_method_learns_and_is_exported(method, backbone, data, tmp_path):
    result = train(recipe_of(backbone, data, method), tmp_path / "out")
    assert result.metrics["accuracy"] == 1.0
    kind = "peft" if method == "lora" else "bottleneck"
    assert find_checkpoint(tmp_path / "out").kind == kind
    record = json.loads((tmp_path / "out" / "training.json").read_text())
    config = load_model(tmp_path / "out").active_peft_config
    assert config.r == METHODS[method].get("r")
    assert record["parameters"]["adapters"] > 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert ("LoRA (r=4, lora_alpha=16.0)" if method == "lora" else "bottleneck adapters (") in card
    assert export_onnx(tmp_path / "out", tmp_path / "artifact").parity.passed
    assert predict(tmp_path / "artifact", ["the film was good"])[0]["label"] == "up"


def test_peft_alone_loads_what_lora_trained(backbone, data, tmp_path):
    train(recipe_of(backbone, data, "lora", epochs=1.0), tmp_path / "out")
    model = AutoModelForSequenceClassification.from_pretrained(backbone, num_labels=2)
    assert PeftModel.from_pretrained(model, tmp_path / "out").active_peft_config.r == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "lora", "k": 8}, "k is for adakron, and the method is lora; leave it out"),
        ({"method": "bottleneck", "lora_alpha": 8.0}, "lora_alpha is for lora, and the method is bottleneck"),
        ({"parallel": True}, "parallel is for bottleneck, and the method is adakron"),
        ({"method": "bottleneck", "r": 8, "reduction_factor": 4.0}, "both say how wide a bottleneck is"),
        ({"method": "lora", "lora_alpha": 0.0}, "lora_alpha is 0, and nothing would be learned"),
        ({"method": "bottleneck", "scaling": 0.0}, "scaling is 0, and nothing would be learned"),
        ({"method": "prefix"}, "method is 'prefix'"),
    ],
)
def test_a_setting_of_another_method_is_refused_at_once(changes, message):
    with pytest.raises(TrainingError, match=message):
        Recipe(backbone="backbone", data="data.csv", **changes)


def test_an_impossible_bottleneck_is_named(backbone, data, tmp_path):
    with pytest.raises(AdapterConfigError, match="activation is 'unheard'"):
        train(recipe_of(backbone, data, "bottleneck", activation="unheard"), tmp_path / "out")

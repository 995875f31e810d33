import pytest
from peft import PeftConfig
from transformers import RoFormerConfig, RoFormerModel

from adakron_export import AdaKronConfig
from adakron_export.errors import AdaKronError
from adakron_export.tasks import Task
from tiny import adapted, backbone_of


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"r": 50, "k": 4}, "r=50 is not divisible by k=4.*r=48 and r=52"),
        ({"r": 0}, "r is 0"),
        ({"k": 2.0}, "k is 2.0"),
        ({"num_experts": 0}, "num_experts is 0"),
        ({"activation": "gleu"}, "activation is 'gleu'; choose one of gelu"),
        ({"kron_order": "a1a2"}, "kron_order is 'a1a2'; choose one of a2_a1, a1_a2"),
    ],
)
def test_impossible_settings_are_refused_with_the_way_out(settings, message):
    with pytest.raises(AdaKronError, match=message):
        AdaKronConfig(**settings)


def test_errors_are_value_errors_for_peft_users():
    with pytest.raises(ValueError, match="not divisible"):
        AdaKronConfig(r=10, k=4)


def test_config_survives_a_round_trip(tmp_path):
    config = AdaKronConfig(r=16, k=2, activation="silu", kron_order="a1_a2", num_experts=3, layers_to_transform=[0])
    config.save_pretrained(str(tmp_path))
    loaded = PeftConfig.from_pretrained(str(tmp_path))
    assert isinstance(loaded, AdaKronConfig)
    assert loaded == config


def test_unknown_backbone_needs_target_modules():
    config = RoFormerConfig(vocab_size=20, hidden_size=32, num_hidden_layers=2, num_attention_heads=4)
    with pytest.raises(AdaKronError, match="no FFN output is known for model_type 'roformer'; pass target_modules"):
        adapted(RoFormerModel(config), Task.FEATURE_EXTRACTION)
    named = adapted(RoFormerModel(config), Task.FEATURE_EXTRACTION, target_modules=["intermediate.dense"])
    assert len(named.base_model.targeted_module_names) == 2


def test_target_that_is_no_projection_is_refused():
    with pytest.raises(AdaKronError, match=r"LayerNorm is a LayerNorm.*linear projections"):
        adapted(backbone_of("bert"), target_modules=["output.LayerNorm"])

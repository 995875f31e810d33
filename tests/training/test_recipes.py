"""The recipes that come with the package: each builds its model, and trains as many parameters as it should."""

import pytest
from transformers import CONFIG_MAPPING

from adakron_export.tasks import Task
from adakron_export.training.model import count_parameters, empty_trainable
from adakron_export.training.recipe import make_recipe, read_settings
from conftest import ROOT

RECIPES = ROOT / "models/recipes"
# The published configurations, as far as they differ from the class's defaults.
BACKBONES = {
    "google-bert/bert-base-uncased": ("bert", {}),
    "FacebookAI/roberta-large": (
        "roberta",
        {"vocab_size": 50265, "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16,
         "intermediate_size": 4096, "max_position_embeddings": 514, "type_vocab_size": 1},
    ),
    "microsoft/deberta-v3-base": (
        "deberta-v2",
        {"vocab_size": 128100, "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
         "intermediate_size": 3072, "relative_attention": True, "position_buckets": 256, "share_att_key": True,
         "norm_rel_ebd": "layer_norm", "pos_att_type": ["p2c", "c2p"], "position_biased_input": False,
         "type_vocab_size": 0},
    ),
    "openai-community/gpt2-medium": ("gpt2", {"n_embd": 1024, "n_layer": 24, "n_head": 16}),
    "sentence-transformers/all-MiniLM-L6-v2": (
        "bert", {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
    ),
}  # fmt: skip
# Adapters per layer: (r/k)(d+1) + k(d+1) + d(r+1), with k(d+1) for each expert; then the head.
EXPECTED = {
    "bert-base-glue": (599_232, 1_538, 109_483_778),
    "roberta-large-glue": (614_592, 1_051_650, 355_361_794),
    "roberta-large-cola": (614_592, 1_051_650, 355_361_794),
    "deberta-v3-base-squad-r32": (414_864, 1_538, 183_833_090),
    "deberta-v3-base-squad-r64": (783_600, 1_538, 183_833_090),
    "gpt2-medium-nlg-1-expert": (368_784, 0, 354_823_168),
    "gpt2-medium-nlg-4-experts": (663_984, 0, 354_823_168),
    "minilm-sst2": (80_700, 770, 22_713_986),
}


def test_every_recipe_has_its_counts():
    assert {file.stem for file in RECIPES.iterdir()} == set(EXPECTED)


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_recipe_trains_its_parameters(name):
    settings = read_settings(name)
    assert read_settings(RECIPES / f"{name}.yaml") == settings
    recipe = make_recipe({"data": "glue:sst2", **settings})
    model_type, changes = BACKBONES[recipe.backbone]
    counts = count_parameters(empty_trainable(CONFIG_MAPPING[model_type](**changes), recipe, Task(recipe.task)))
    adapters, head, backbone = EXPECTED[name]
    assert (counts.adapters, counts.head) == (adapters, head)
    assert counts.total == adapters + backbone


def test_the_paper_trains_its_share():
    adapters, _, backbone = EXPECTED["bert-base-glue"]
    assert round(100 * adapters / backbone, 2) == 0.55


def test_the_reference_settings():
    roberta = make_recipe({"data": "glue:sst2", **read_settings("roberta-large-glue")})
    assert (roberta.learning_rate, roberta.batch_size, roberta.warmup, roberta.weight_decay, roberta.epochs) == (
        3e-4, 64, 0.06, 0.1, 20.0
    )  # fmt: skip
    assert read_settings("roberta-large-cola")["epochs"] == 80
    assert [read_settings(f"gpt2-medium-nlg-{name}").get("num_experts") for name in ("1-expert", "4-experts")] == [
        1,
        4,
    ]

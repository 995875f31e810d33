"""`transformers.pipeline` on an artifact answers what it answers on the eager model."""

import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer, ViTImageProcessor, pipeline

from adakron_export import OnnxModel, export_onnx, load_model
from adakron_export.tasks import Task
from conftest import DEMO
from tiny import save_checkpoint

TEXTS = ["The printer stopped working.", "Thanks, the new camera is wonderful!"]


@pytest.fixture
def tokenizer():
    return AutoTokenizer.from_pretrained(DEMO)


def both(tmp_path, model_type, task):
    checkpoint = save_checkpoint(tmp_path, model_type, task, changes={"vocab_size": 700, "pad_token_id": 0})
    assert export_onnx(checkpoint, tmp_path / "out").written
    return load_model(checkpoint).get_base_model(), OnnxModel.from_pretrained(tmp_path / "out")


def assert_same(found, expected):
    """Equal but for the last digits of the numbers."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert_same(found[key], value)
    elif isinstance(expected, (list, tuple)):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
    elif isinstance(expected, (float, np.floating)):
        assert abs(found - expected) < 1e-4
    else:
        assert found == expected


@pytest.mark.parametrize(
    ("task", "arguments", "options"),
    [
        (Task.TEXT_CLASSIFICATION, (TEXTS,), {"top_k": None}),
        (Task.TEXT_CLASSIFICATION, (TEXTS,), {"batch_size": 2}),
        (Task.TOKEN_CLASSIFICATION, (TEXTS,), {}),
        (Task.FILL_MASK, ("The [MASK] stopped.",), {"top_k": 3}),
        (Task.FEATURE_EXTRACTION, (TEXTS,), {}),
    ],
)
def test_text_pipelines(task, arguments, options, tmp_path, tokenizer, caplog):
    eager, exported = both(tmp_path, "bert", task)
    expected = pipeline(task.value, model=eager, tokenizer=tokenizer)(*arguments, **options)
    caplog.clear()
    found = pipeline(task.value, model=exported, tokenizer=tokenizer)(*arguments, **options)
    assert_same(found, expected)
    assert "not supported" not in caplog.text


def test_question_answering_gives_the_same_logits(tmp_path, tokenizer):
    """transformers 5 has no pipeline for it any more: the model class is used as its examples use it."""
    eager, exported = both(tmp_path, "bert", Task.QUESTION_ANSWERING)
    inputs = tokenizer("What stopped?", "The printer stopped this morning.", return_tensors="pt")
    with torch.no_grad():
        expected = eager(**inputs)
    found = exported(**inputs)
    torch.testing.assert_close(found.start_logits, expected.start_logits, rtol=0, atol=1e-4)
    torch.testing.assert_close(found.end_logits, expected.end_logits, rtol=0, atol=1e-4)


def test_text_generation(tmp_path, tokenizer):
    eager, exported = both(tmp_path, "gpt2", Task.TEXT_GENERATION)
    options = {"max_new_tokens": 6, "do_sample": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = pipeline("text-generation", model=eager, tokenizer=tokenizer)(TEXTS[0], **options)
        found = pipeline("text-generation", model=exported, tokenizer=tokenizer)(TEXTS[0], **options)
    assert len(found[0]["generated_text"]) > len(TEXTS[0])
    assert found == expected


def test_image_classification(tmp_path):
    checkpoint = save_checkpoint(tmp_path, "vit")
    export_onnx(checkpoint, tmp_path / "out")
    processor = ViTImageProcessor(size={"height": 16, "width": 16})
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8))
    models = (load_model(checkpoint).get_base_model(), OnnxModel.from_pretrained(tmp_path / "out"))
    expected, found = (
        pipeline("image-classification", model=model, image_processor=processor)(image) for model in models
    )
    assert_same(found, expected)


def test_tokenizer_opens_from_the_artifact(demo_artifact, tokenizer):
    assert AutoTokenizer.from_pretrained(demo_artifact)(TEXTS[0]) == tokenizer(TEXTS[0])


def test_saved_again_it_is_the_same_artifact(demo_artifact, tmp_path):
    OnnxModel.from_pretrained(demo_artifact).save_pretrained(tmp_path / "copy")
    assert OnnxModel.from_pretrained(tmp_path / "copy").config.id2label == {0: "praise", 1: "problem", 2: "question"}

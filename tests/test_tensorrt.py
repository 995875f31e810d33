"""TensorRT-RTX parses the artifacts and builds engines from them; it needs no GPU for that."""

import pytest

from adakron_export import export_onnx
from conftest import DEMO
from rtx import engine_of, parse, trt
from tiny import save_checkpoint


@pytest.mark.parametrize("target", ["portable", "tensorrt"])
@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
def test_demo_builds_in_every_dtype(target, dtype, tmp_path):
    assert export_onnx(DEMO, tmp_path / "out", target=target, dtype=dtype).written
    messages, engine = engine_of(tmp_path / "out")
    assert messages.errors == []
    assert engine.nbytes > 100_000


@pytest.mark.parametrize("model_type", ["roberta", "deberta-v2", "albert", "modernbert", "gpt2", "llama", "vit"])
def test_backbones_build(model_type, tmp_path):
    assert export_onnx(save_checkpoint(tmp_path, model_type), tmp_path / "out").written
    messages, _engine = engine_of(tmp_path / "out")
    assert messages.errors == []


def test_the_functions_of_all_layers_are_absorbed_without_a_word(demo_artifact):
    messages, _builder, network, _parser = parse(demo_artifact)
    assert not [warning for warning in messages.warnings if "epeated" in warning or "KronAdapter" in warning]
    assert not [
        layer for layer in map(network.get_layer, range(network.num_layers)) if layer.type == trt.LayerType.PLUGIN_V3
    ]


def test_a_node_without_its_function_is_what_tensorrt_refuses(demo_artifact, tmp_path):
    """The negative control: it is the function that makes the file acceptable."""
    import onnx

    model = onnx.load(demo_artifact / "model.onnx")
    del model.functions[:]
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(AssertionError, match="Plugin not found"):
        parse(tmp_path)

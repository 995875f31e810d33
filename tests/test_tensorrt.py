"""TensorRT-RTX parses the artifacts and builds engines from them; it needs no GPU for that."""

import pytest

from adakron_export import export_onnx
from conftest import DEMO
from tiny import save_checkpoint

trt = pytest.importorskip("tensorrt_rtx", reason="needs the extra tensorrt-rtx")


class Messages(trt.ILogger):
    """Collects what the builder says."""

    def __init__(self):
        trt.ILogger.__init__(self)
        self.warnings: list[str] = []
        self.errors: list[str] = []

    def log(self, severity, message):
        if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
            self.errors.append(message)
        elif severity == trt.ILogger.WARNING:
            self.warnings.append(message)


def parse(folder):
    """The parsed network, with what keeps it alive."""
    messages = Messages()
    builder = trt.Builder(messages)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, messages)
    parsed = parser.parse_from_file(str(folder / "model.onnx"))
    errors = [parser.get_error(index).desc() for index in range(parser.num_errors)]
    assert parsed, errors
    return messages, builder, network, parser


def engine_of(folder):
    messages, builder, network, _parser = parse(folder)
    config = builder.create_builder_config()
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        rest = tuple(tensor.shape)[1:]
        shapes = [
            (batch, *(tokens if size == -1 else size for size in rest)) for batch, tokens in ((1, 1), (2, 16), (4, 32))
        ]
        profile.set_shape(tensor.name, *shapes)
    config.add_optimization_profile(profile)
    engine = builder.build_serialized_network(network, config)
    assert engine is not None, messages.errors
    return messages, engine


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

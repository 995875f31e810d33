"""Parses and builds with TensorRT-RTX, which needs no GPU for that."""

import pytest

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

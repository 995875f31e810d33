"""An engine of a bank runs: everything but the GPU, whose place ONNX Runtime takes behind TensorRT's interface."""

import ctypes
from types import SimpleNamespace

import numpy as np
import onnxruntime as ort
import pytest

from adakron_export import (
    BankSettings,
    EngineShapes,
    Subject,
    create_bank,
    export_engine,
    open_bank,
    open_runner,
)
from adakron_export.engines import loading
from adakron_export.errors import EngineError, RunnerError
from adakron_export.runtimes import tensorrt
from conftest import DEMO
from host_memory import HostMemory

pytest.importorskip("tensorrt_rtx", reason="needs the extra tensorrt-rtx")
REPLY = Subject(DEMO / "reply", backbone=DEMO / "backbone")


@pytest.fixture(scope="module")
def bank(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bank") / "bank"
    create_bank({"topic": DEMO, "reply": REPLY}, folder, target="tensorrt", settings=BankSettings(validate=False))
    return folder


@pytest.fixture(scope="module")
def engine(bank, tmp_path_factory):
    shapes = EngineShapes(min_shape=(1, 1), opt_shape=(2, 16), max_shape=(4, 32), max_adapters=3)
    return export_engine(bank, tmp_path_factory.mktemp("engine") / "out", flavor="rtx", shapes=shapes).folder.folder


class Context:
    """TensorRT's execution context: it knows shapes and addresses, and nothing of arrays."""

    def __init__(self, session):
        self.session, self.shapes, self.addresses = session, {}, {}

    def set_optimization_profile_async(self, *_):
        return True

    def set_input_shape(self, name, shape):
        self.shapes[name] = shape
        return True

    def infer_shapes(self):
        return [value.name for value in self.session.get_inputs() if value.name not in self.shapes]

    def get_tensor_shape(self, _):
        return (self.shapes["input_ids"][0], 3)

    def set_tensor_address(self, name, address):
        self.addresses[name] = address

    def _at(self, name, shape, kind):
        return np.ctypeslib.as_array(ctypes.cast(self.addresses[name], ctypes.POINTER(kind)), shape)

    def execute_async_v3(self, _):
        kinds = {"tensor(int64)": ctypes.c_int64, "tensor(float)": ctypes.c_float}
        feed = {value.name: self._at(value.name, self.shapes[value.name], kinds[value.type]) for value in
                self.session.get_inputs()}  # fmt: skip
        (logits,) = self.session.run(None, feed)
        self._at("logits", logits.shape, ctypes.c_float)[:] = logits
        return True


@pytest.fixture
def loaded(bank, monkeypatch):
    session = ort.InferenceSession(bank / "model.onnx")
    state = SimpleNamespace(
        create_execution_context=lambda *_: Context(session), create_runtime_config=SimpleNamespace
    )
    module = SimpleNamespace(__name__="tensorrt_rtx", CudaGraphStrategy=SimpleNamespace(WHOLE_GRAPH_CAPTURE=1))
    said = SimpleNamespace(last_words=lambda: "out of luck")
    monkeypatch.setattr(tensorrt, "load_engine", lambda _: loading.LoadedEngine(module, state, said, None))
    monkeypatch.setattr(tensorrt, "_GpuMemory", HostMemory)
    monkeypatch.setattr(HostMemory, "uploads", 0)


def test_an_engine_answers_as_the_bank_and_uploads_adapters_once(bank, engine, loaded, demo_batch, tmp_path):
    runner, expected = open_bank(engine), open_bank(bank)
    for adapters in ("reply", ["topic", "reply"]):
        found, wanted = (each.run(demo_batch, adapters)["logits"] for each in (runner, expected))
        for row, right in zip(found, wanted, strict=True):
            np.testing.assert_allclose(row, right, rtol=0, atol=1e-6)
    stacks = len(runner.manifest.bank.layout.stacks)
    assert HostMemory.uploads == stacks + 2 * 4  # and three inputs and the ids of each call
    np.testing.assert_array_equal(
        open_runner(engine, adapter="reply").run(demo_batch)["logits"], runner.run(demo_batch, "reply")["logits"]
    )


def test_adapters_are_added_up_to_what_the_engine_was_built_for(bank, engine, loaded, demo_batch):
    runner = open_bank(engine)
    runner.add("again", bank / "adapters/topic")
    np.testing.assert_array_equal(runner.run(demo_batch, "again")["logits"], runner.run(demo_batch, "topic")["logits"])
    with pytest.raises(RunnerError, match=r"takes 3 adapters, and 4 are needed"):
        runner.add("more", bank / "adapters/topic")
    assert runner.names == ("topic", "reply", "again")
    runner.remove("again")
    runner.add("other", bank / "adapters/reply")
    np.testing.assert_array_equal(runner.run(demo_batch, "other")["logits"], runner.run(demo_batch, "reply")["logits"])


def test_room_for_adapters_is_for_banks(demo_artifact, tmp_path):
    with pytest.raises(EngineError, match=r"is no bank; leave max_adapters out"):
        export_engine(demo_artifact, tmp_path / "out", flavor="rtx", shapes=EngineShapes(max_adapters=3))

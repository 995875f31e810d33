"""Engines run: everything but the GPU itself, whose place ONNX Runtime takes behind TensorRT's interface.

The engine's folder is a real one, of TensorRT for RTX; what needs a GPU is its loading and its contexts, which are
stood in for here and run for real by `make gpu`.
"""

import ctypes
import json
import shutil
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from adakron_export import EngineShapes, open_artifact, open_runner, validate
from adakron_export.artifacts.engine import open_engine
from adakron_export.artifacts.shapes import choose_profile
from adakron_export.engines import loading
from adakron_export.errors import EngineError, RunnerError
from adakron_export.machine.gpu import Gpu, has_gpu
from adakron_export.runtimes import tensorrt
from adakron_export.runtimes.ort import OrtRunner
from adakron_export.subjects.space import exported_space
from adakron_export.validation.batches import batch_of
from adakron_export.verbs.tensorrt import export_engine
from conftest import DEMO
from host_memory import HostMemory

pytest.importorskip("tensorrt_rtx", reason="needs the extra tensorrt-rtx")
ADA = Gpu("Ada", "8.9", "13.0")


@pytest.fixture(scope="module")
def engine(demo_artifact, tmp_path_factory):
    folder = tmp_path_factory.mktemp("engine") / "out"
    profiles = (((1, 1), (2, 16), (4, 32)), ((1, 1), (1, 8), (1, 8)), ((8, 16), (8, 16), (8, 16)))
    return export_engine(demo_artifact, folder, flavor="rtx", shapes=EngineShapes(profiles=profiles)).folder


class Context:
    """TensorRT's execution context: it knows one shape at a time, and addresses, and answers False where it cannot."""

    def __init__(self, engine):
        self.engine, self.shapes, self.addresses = engine, {}, {}

    def set_optimization_profile_async(self, index, stream):
        self.bounds = self.engine.bounds[index]
        return True

    def set_input_shape(self, name, shape):
        self.shapes[name] = shape
        return choose_profile([self.bounds], shape) is not None

    def infer_shapes(self):
        return [name for name in self.engine.names if name not in self.shapes]

    def get_tensor_shape(self, name):
        return (self.shapes["input_ids"][0], self.engine.classes)

    def set_tensor_address(self, name, address):
        self.addresses[name] = address

    def execute_async_v3(self, stream):
        def at(name, shape, kind):
            pointer = ctypes.cast(self.addresses[name], ctypes.POINTER(kind))
            return np.ctypeslib.as_array(pointer, shape)

        batch = {name: at(name, self.shapes[name], ctypes.c_int64) for name in self.engine.names}
        logits = self.engine.runner.run(batch)["logits"]
        at("logits", logits.shape, ctypes.c_float)[:] = logits + self.engine.off_by
        self.engine.launches += 1
        return not self.engine.broken


@pytest.fixture
def loaded(engine, demo_artifact, monkeypatch):
    """What the stand-in of the engine counts, and how it can be broken."""
    runner = OrtRunner(open_artifact(demo_artifact))
    state = SimpleNamespace(
        runner=runner, names=runner.input_names, classes=3, bounds=engine.manifest.bounds, off_by=0.0, launches=0,
        contexts=0, broken=False,
    )  # fmt: skip

    def new_context(*_):
        state.contexts += 1
        return Context(state)

    state.create_execution_context = new_context
    state.create_runtime_config = SimpleNamespace
    module = SimpleNamespace(__name__="tensorrt_rtx", CudaGraphStrategy=SimpleNamespace(WHOLE_GRAPH_CAPTURE=1))
    said = SimpleNamespace(last_words=lambda: "out of luck")
    monkeypatch.setattr(tensorrt, "load_engine", lambda _: loading.LoadedEngine(module, state, said, None))
    monkeypatch.setattr(tensorrt, "_GpuMemory", HostMemory)
    return state


def of_flavor(engine, name):
    return replace(engine, manifest=replace(engine.manifest, flavor=name))


def test_validate_holds_an_engine_against_its_checkpoint_within_its_shapes(engine, loaded, cli):
    report = validate(engine.folder, against=DEMO)
    assert report.passed
    assert report.candidate == f"tensorrt_rtx {engine.manifest.version} on a stand-in"
    names = {row.batch for row in report.rows}
    assert {"one-text", "padded-left", "1x1", "1x32", "4x1", "8x16", "1x8"} <= names
    assert "realistic" not in names  # of 8 texts of several lengths
    assert "validated within the engine's shapes: 1x1 to 4x32 or 1x1 to 1x8 or 8x16 to 8x16" in report.notes
    loaded.off_by = 0.01
    result = cli("validate", engine.folder, "--against", DEMO, code=1)
    assert "an engine shows neither weights nor layers" in result.stdout


def test_text_is_batched_as_the_engine_takes_it(engine, loaded, tmp_path):
    data = tmp_path / "texts.csv"
    data.write_text("text,label\n" + "".join(f"the printer stopped {index},problem\n" for index in range(9)))
    report = validate(engine.folder, against=DEMO, data=data)
    assert report.accuracy is not None
    assert report.accuracy.examples == 9
    assert report.passed


@pytest.mark.parametrize("record_launches", [False, True])
@pytest.mark.parametrize("flavor", ["rtx", "tensorrt"])
def test_shapes_may_change_from_batch_to_batch(engine, loaded, flavor, record_launches):
    runner = tensorrt.TensorRTRunner(of_flavor(engine, flavor), record_launches=record_launches)
    space = exported_space(engine)
    batches = [batch_of(space, texts, tokens).inputs for texts, tokens in ((2, 16), (1, 5), (8, 16), (2, 16))]
    timed = runner.prepare(batches[0])
    for batch in (*batches, *batches):
        np.testing.assert_array_equal(runner.run(batch)["logits"], loaded.runner.run(batch)["logits"])
    assert timed() > 0.0
    recorded = 1 + 3 if record_launches and flavor == "tensorrt" else 0  # of `prepare`, and of three shapes
    assert loaded.contexts == len(engine.manifest.bounds) + recorded


def test_recorded_shapes_do_not_pile_up(engine, loaded, monkeypatch):
    monkeypatch.setattr(tensorrt, "_RECORDED_SHAPES", 2)
    runner = tensorrt.TensorRTRunner(of_flavor(engine, "tensorrt"), record_launches=True)
    space = exported_space(engine)
    for texts, tokens in ((1, 1), (2, 2), (1, 1), (3, 3), (1, 1), (2, 2)):
        runner.run(batch_of(space, texts, tokens).inputs)
    assert loaded.contexts == len(engine.manifest.bounds) + 4  # 2x2 had to go, and came again


def test_outside_the_profiles_is_an_error_and_no_wrong_answer(engine, loaded):
    runner = open_runner(engine.folder)
    space = replace(exported_space(engine), bounds=())
    with pytest.raises(RunnerError, match=r"batch is 5x16 .*takes 1x1 to 4x32 or 1x1 to 1x8 or 8x16 to 8x16; split"):
        runner.run(batch_of(space, 5, 16).inputs)
    assert loaded.launches == 0
    loaded.broken = True
    with pytest.raises(RunnerError, match="cannot run this batch: out of luck"):
        runner.run(batch_of(space, 2, 16).inputs)
    assert choose_profile(engine.manifest.bounds, (1, 8)) == 1
    assert choose_profile(engine.manifest.bounds, (8, 16)) == 2
    assert choose_profile(engine.manifest.bounds, (8, 15)) is None


@pytest.mark.parametrize(
    ("flavor", "changed", "message"),
    [
        ("rtx", {}, None),
        ("rtx", {"version": "1.0.0"}, "built by rtx 1.0.0, here is "),
        ("rtx", {"compute_capability": ("8.6", "12.0")}, "built for compute capability 8.6, 12.0, the Ada has 8.9"),
        ("rtx", {"compute_capability": ("8.6", "8.9")}, None),
        ("rtx", {"built_on": "9.0"}, None),
        ("rtx", {"options": {"strip_weights": True}}, "it holds no weights"),
        ("tensorrt", {"built_on": "8.9"}, None),
        ("tensorrt", {"built_on": "9.0"}, "built on a GPU of compute capability 9.0, the Ada has 8.9; build it here"),
        ("tensorrt", {"built_on": "9.0", "options": {"hardware_compatible": True}}, None),
        ("tensorrt", {"version": "10.0", "built_on": "8.9", "options": {"version_compatible": True}}, None),
    ],
)
def test_an_engine_is_loaded_only_where_it_belongs(engine, flavor, changed, message):
    manifest = replace(engine.manifest, flavor=flavor, **changed)
    problem = loading.misfit(manifest, version=engine.manifest.version, gpu=ADA)
    if message is None:
        assert problem is None
    else:
        assert message in problem


@pytest.mark.skipif(has_gpu(), reason="there is a GPU")
def test_without_a_gpu_every_command_says_so(engine, cli):
    for command in (("validate", engine.folder, "--against", DEMO), ("bench", engine.folder, "--against", DEMO)):
        result = cli(*command, code=2)
        assert "this machine has no NVIDIA GPU" in " ".join(result.stderr.split())


def test_onnx_runtimes_plugin_is_refused_with_the_reason(demo_artifact, monkeypatch, cli):
    plugin = SimpleNamespace(get_library_path=lambda: "/nowhere/libplugin.so", __spec__=True)
    monkeypatch.setitem(sys.modules, "onnxruntime_ep_nv_tensorrt_rtx", plugin)
    result = cli("validate", demo_artifact, "--against", DEMO, "--device", "tensorrt-rtx", code=2)
    assert "cannot load NvTensorRTRTXExecutionProvider, which needs an NVIDIA driver" in result.stderr
    monkeypatch.setitem(sys.modules, "onnxruntime_ep_nv_tensorrt_rtx", None)
    result = cli("validate", demo_artifact, "--against", DEMO, "--device", "tensorrt-rtx", code=2)
    assert "pip install 'adakron-export[ort-rtx]'" in result.stderr


def test_a_plan_that_is_refused_is_one_message(engine, monkeypatch):
    monkeypatch.setattr(loading, "first_gpu", lambda: ADA)
    if not has_gpu():
        with pytest.raises(EngineError, match=r"tensorrt_rtx [\d.]+ refuses it: .*CUDA"):
            loading.load_engine(engine)


def test_manifests_of_engines_are_checked(engine, tmp_path):
    folder = tmp_path / "out"
    shutil.copytree(engine.folder, folder)
    content = json.loads((folder / "adakron_engine.json").read_text())
    for change in (
        {"flavor": "best"},
        {"profiles": []},
        {"profiles": [["1by1"]]},
        {"inputs": [{"name": "input_ids", "dtype": "object", "shape": [1]}]},
        {"options": []},
        {"max_length": "long"},
    ):
        (folder / "adakron_engine.json").write_text(json.dumps({**content, **change}))
        with pytest.raises(EngineError, match="not a"):
            open_engine(folder)

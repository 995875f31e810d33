"""TensorRT engines: TensorRT for RTX builds real ones here, for it needs no GPU for that."""

import json
import os
import shutil
import signal
from dataclasses import replace

import onnx
import pytest

from adakron_export import EngineShapes, Subject, export_onnx
from adakron_export.artifacts.artifact import open_artifact, write_manifest
from adakron_export.artifacts.engine import open_engine
from adakron_export.artifacts.shapes import profiles_for
from adakron_export.engines.settings import EngineOptions
from adakron_export.errors import ArtifactError, BuildError, EngineError
from adakron_export.machine import flavors
from adakron_export.tasks import Task
from adakron_export.verbs.doctor import examine
from adakron_export.verbs.tensorrt import export_engine
from conftest import DEMO, stages
from tiny import first, save_checkpoint

pytest.importorskip("tensorrt_rtx", reason="needs the extra tensorrt-rtx")
SMALL = {"shapes": EngineShapes(min_shape=(1, 1), opt_shape=(2, 16), max_shape=(4, 32))}


@pytest.fixture(scope="module")
def engine(demo_artifact, tmp_path_factory):
    return export_engine(demo_artifact, tmp_path_factory.mktemp("engine") / "out", flavor="rtx", **SMALL)


@pytest.fixture
def without_function(demo_artifact, tmp_path):
    """The negative control: it is the function that makes the file acceptable to TensorRT."""
    folder = tmp_path / "without_function"
    shutil.copytree(demo_artifact, folder)
    model = onnx.load(folder / "model.onnx")
    del model.functions[:]
    onnx.save(model, folder / "model.onnx")
    write_manifest(folder, open_artifact(demo_artifact).manifest)
    return folder


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
def test_a_checkpoint_builds_in_every_dtype(dtype, tmp_path):
    built = export_engine(DEMO, tmp_path / "out", flavor="rtx", dtype=dtype, **SMALL)
    assert built.folder.manifest.dtype == dtype
    assert built.engine_bytes > 100_000
    assert " ERROR" not in (tmp_path / "out" / "build.log").read_text()


@pytest.mark.parametrize(
    "model_type", first(3, ["deberta-v2", "llama", "vit", "albert", "gpt2", "modernbert", "roberta"])
)
def test_backbones_build(model_type, tmp_path):
    assert export_onnx(save_checkpoint(tmp_path, model_type), tmp_path / "out", target="tensorrt").written
    export_engine(tmp_path / "out", tmp_path / "engine", flavor="rtx", **SMALL)


@pytest.mark.parametrize(
    "task", first(2, [Task.QUESTION_ANSWERING, Task.FEATURE_EXTRACTION, Task.TOKEN_CLASSIFICATION, Task.FILL_MASK])
)
@pytest.mark.parametrize("dtype", [*(pytest.param(name, marks=pytest.mark.slow) for name in ("fp32", "bf16")), "fp16"])
def test_tasks_build_in_every_dtype(task, dtype, tmp_path):
    checkpoint = save_checkpoint(tmp_path, "bert", task)
    built = export_engine(
        Subject(checkpoint, task=task.value), tmp_path / "engine", flavor="rtx", dtype=dtype, **SMALL
    )
    assert built.folder.manifest.task == task.value


def test_the_folder_says_what_was_built_and_how(engine, demo_artifact):
    folder = engine.folder.folder
    assert {file.name for file in folder.iterdir()} >= {"model.engine", "build.log", "config.json", "tokenizer.json"}
    manifest = open_engine(folder).manifest
    assert (manifest.flavor, manifest.dtype, manifest.profiles) == ("rtx", "fp32", (("1x1", "2x16", "4x32"),))
    assert manifest.source["model.onnx"] == open_artifact(demo_artifact).manifest.files["model.onnx"]
    assert manifest.layers > 100
    names = ("input_ids", "attention_mask", "token_type_ids")
    shapes = {kind: ",".join(f"{name}:{shape}" for name in names)
              for kind, shape in (("min", "1x1"), ("opt", "2x16"), ("max", "4x32"))}  # fmt: skip
    assert manifest.command == (
        f"tensorrt_rtx --onnx={demo_artifact}/model.onnx --saveEngine={folder}/model.engine --skipInference "
        f"--minShapes={shapes['min']} --optShapes={shapes['opt']} --maxShapes={shapes['max']}"
    )


def test_several_profiles_and_capabilities(demo_artifact, tmp_path, cli):
    arguments = ("--flavor", "rtx", "--profile", "1x1,1x8,1x64", "--profile", "8x16,8x16,8x16")
    cli("tensorrt", demo_artifact, "-o", tmp_path / "out", *arguments, "--compute-capability", "8.6,12.0")
    manifest = open_engine(tmp_path / "out").manifest
    assert manifest.profiles == (("1x1", "1x8", "1x64"), ("8x16", "8x16", "8x16"))
    assert manifest.compute_capability == ("8.6", "12.0")
    assert "--profile=1 --minShapes=input_ids:8x16" in manifest.command
    assert manifest.command.endswith("--computeCapabilities=86,120")


def test_default_shapes_end_where_the_model_does(demo_artifact):
    manifest = open_artifact(demo_artifact).manifest

    def shapes(limit, smallest=None, best=None, largest=None):
        changed = replace(manifest, max_length=limit)
        (profile,) = profiles_for(changed, EngineShapes(min_shape=smallest, opt_shape=best, max_shape=largest))
        return profile.shapes

    assert shapes(None) == ((1, 1), (8, 128), (32, 512))
    assert shapes(64) == ((1, 1), (8, 64), (32, 64))
    assert shapes(512, largest=(4, 64)) == ((1, 1), (4, 64), (4, 64))
    assert shapes(512, smallest=(16, 200)) == ((16, 200), (16, 200), (32, 512))
    assert shapes(512, best=(64, 8)) == ((1, 1), (64, 8), (64, 512))


def test_functions_are_absorbed_without_a_word(engine):
    log = (engine.folder.folder / "build.log").read_text()
    warnings = [line for line in log.splitlines() if line.startswith(("WARNING", "ERROR"))]
    assert not [line for line in warnings if "epeated" in line or "KronAdapter" in line]


def test_a_refused_node_is_named_with_its_module_and_the_log_is_kept(without_function, tmp_path):
    with pytest.raises(
        BuildError, match=r"Plugin not found.*node_kron_adapter is in bert\.encoder\.layer\.0\.output"
    ) as found:
        export_engine(without_function, tmp_path / "out", flavor="rtx", **SMALL)
    assert f"log is {tmp_path}/out.failed.log" in str(found.value)
    assert "Plugin not found" in (tmp_path / "out.failed.log").read_text()
    assert not (tmp_path / "out").exists()


def test_check_asks_the_parser(cli, demo_artifact, without_function):
    assert "check passed" in cli("check", demo_artifact, "--for", "tensorrt").stdout
    content = json.loads(cli("check", without_function, "--json", code=1).stdout)
    assert content["passed"] is False
    assert content["ops"][0] == {"op": "adakron::KronAdapter", "count": 3, "refused": 3}
    assert all(row["refused"] == 0 for row in content["ops"][1:])
    assert len(content["problems"]) == 3


def test_a_build_that_fails_leaves_the_last_good_engine(engine, without_function, tmp_path):
    shutil.copytree(engine.folder.folder, tmp_path / "out")
    with pytest.raises(BuildError):
        export_engine(without_function, tmp_path / "out", flavor="rtx", overwrite=True)
    assert open_engine(tmp_path / "out").manifest == engine.folder.manifest


def test_ctrl_c_stops_the_build_and_writes_nothing(demo_artifact, tmp_path):
    def press(stage):
        if stage.startswith("build"):
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), stages(press):
        export_engine(demo_artifact, tmp_path / "out", flavor="rtx", **SMALL)
    assert list(tmp_path.iterdir()) == []
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--strip-weights"], "rtx does not take --strip-weights: it needs a GPU while it builds"),
        (["--refittable"], "rtx does not take --refittable"),
        (["--timing-cache", "cache"], "rtx does not take --timing-cache: it times nothing"),
        (["--hardware-compatible"], "--compute-capability says which may"),
        (["--version-compatible"], "rtx does not take --version-compatible"),
        (["--compute-capability", "9.0"], "'9.0' is unknown to tensorrt_rtx"),
        (["--compute-capability", "7.5"], "Turing"),
        (["--max-shape", "4x128"], "the largest shape has 128 tokens, the model takes 64"),
        (["--min-shape", "4x8", "--opt-shape", "2x8"], "must grow from the smallest to the largest"),
        (["--opt-shape", "8x8,2x2"], "is 2 shapes; write one"),
        (["--profile", "1x1,8x8"], "a profile has three shapes"),
        (["--profile", "1x1,1x1,1x1", "--max-shape", "8x8"], "not both"),
        (["--workspace", "0"], "workspace is 0"),
        (["--dtype", "fp16"], "is in fp32, and an engine has the precision of its graph"),
        (["--dtype", "int3"], "'int3' is not one of 'fp32'"),
    ],
)
def test_refusals(cli, demo_artifact, arguments, message, tmp_path):
    result = cli("tensorrt", demo_artifact, "-o", tmp_path / "out", "--flavor", "rtx", *arguments, code=2)
    assert message in " ".join(result.stderr.split())
    assert not (tmp_path / "out").exists()


def test_the_other_flavor_is_missed_or_misses_its_gpu(demo_artifact, tmp_path, monkeypatch):
    with pytest.raises(EngineError, match="flavor 'best' is unknown; choose auto, tensorrt, rtx"):
        export_engine(demo_artifact, tmp_path / "out", flavor="best")
    capable = EngineOptions(compute_capability=("8.6",))
    with pytest.raises(
        EngineError, match="tensorrt does not take --compute-capability: it builds for the GPU it runs"
    ):
        export_engine(demo_artifact, tmp_path / "out", flavor="tensorrt", options=capable)
    if not flavors.has_gpu():
        installed = replace(flavors.FLAVORS["tensorrt"], module="tensorrt_rtx")
        monkeypatch.setitem(flavors.FLAVORS, "tensorrt", installed)
        with pytest.raises(
            EngineError, match="builds only where an NVIDIA GPU is; --flavor rtx builds on any machine"
        ):
            export_engine(demo_artifact, tmp_path / "out", flavor="tensorrt", **SMALL)
        assert flavors.flavor_named("auto").name == "rtx"
    absent = replace(flavors.FLAVORS["rtx"], module="tensorrt_of_nobody")
    monkeypatch.setitem(flavors.FLAVORS, "rtx", absent)
    with pytest.raises(
        ImportError, match=r"'tensorrt_of_nobody', which is not installed.*adakron-export\[tensorrt-rtx\]"
    ):
        export_engine(demo_artifact, tmp_path / "out", flavor="rtx")
    assert list(tmp_path.iterdir()) == []


def test_damaged_folders(engine, tmp_path):
    with pytest.raises(EngineError, match="no engine"):
        open_engine(tmp_path)
    for name, change, message in [
        ("model.engine", lambda data: data[:-1] + b"x", "changed since it was written: model.engine"),
        ("adakron_engine.json", lambda data: data[:50], "not a readable manifest"),
        ("adakron_engine.json", lambda data: data.replace(b'"flavor"', b'"flavour"'), "not a readable manifest"),
        ("adakron_engine.json", lambda data: data.replace(b'"config.json"', b'"../x"'), "names files outside"),
        ("adakron_engine.json", lambda data: data.replace(b'"rtx"', b"3"), "not a readable manifest"),
    ]:
        folder = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        shutil.copytree(engine.folder.folder, folder)
        (folder / name).write_bytes(change((folder / name).read_bytes()))
        with pytest.raises(EngineError, match=message):
            open_engine(folder)


def test_what_is_not_ours_is_not_replaced(demo_artifact, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(EngineError, match="would be replaced"):
        export_engine(demo_artifact, tmp_path / "out", flavor="rtx")
    with pytest.raises(ArtifactError, match="changed since it was written"):
        broken = tmp_path / "broken"
        shutil.copytree(demo_artifact, broken)
        (broken / "model.onnx").write_bytes(b"")
        export_engine(broken, tmp_path / "engine", flavor="rtx")


def test_doctor_without_torch_and_with_a_broken_builder(monkeypatch):
    from importlib import util

    from adakron_export.verbs import doctor

    found = util.find_spec
    monkeypatch.setattr(util, "find_spec", lambda name, *rest: None if name == "torch" else found(name, *rest))
    monkeypatch.setattr(doctor, "_builders", lambda: {"tensorrt_rtx": "broken: no library"})
    works = {row.what: row.works for row in examine().abilities}
    assert works["run artifacts in ONNX Runtime on the CPU (--device cpu)"]
    for what in ("export to ONNX (without validation)", "export, and validate against checkpoints", "train",
                 "build engines for RTX GPUs (tensorrt --flavor rtx)"):  # fmt: skip
        assert not works[what], what


def test_doctor_says_what_works_and_what_to_do(cli):
    text = cli("doctor").stdout
    assert "yes  export to ONNX" in text
    assert "yes  build engines for RTX GPUs" in text
    found = examine()
    assert "CPUExecutionProvider" in found.providers
    assert found.versions["tensorrt_rtx"]
    missing = [row for row in found.abilities if not row.works]
    assert all(row.remedy for row in missing)
    if not flavors.has_gpu():
        assert found.machine["gpu"] is None
        assert {row.remedy for row in missing} == {"this machine has no NVIDIA GPU, or no driver for it"}
    assert json.loads(cli("doctor", "--json").stdout)["format_version"] == 1

"""What files and folders of others must not be able to do."""

import ast
import gzip
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from click.testing import CliRunner
from onnx import TensorProto, helper
from safetensors.torch import load_file, save_file

import adakron_export
from adakron_export import ExportSettings, export_onnx, load_model, open_artifact, open_runner, validate
from adakron_export.artifacts.artifact import write_manifest
from adakron_export.artifacts.engine import EngineFolder
from adakron_export.cli.main import main  # noqa: TID251 - it is what is tested
from adakron_export.data.reading import read_files
from adakron_export.engines.loading import check_loadable, load_engine
from adakron_export.errors import (
    AdapterConfigError,
    ArtifactError,
    BackboneError,
    BadSignatureError,
    CheckpointError,
    DataError,
    EngineError,
    RunnerError,
    SignatureError,
    TrainingError,
)
from adakron_export.reporting.terminal import one_line, printable
from adakron_export.training.recipe import make_recipe, read_settings
from conftest import DEMO, reference_case

IDS = np.array([[2, 9, 3]])
BATCH = {"input_ids": IDS, "attention_mask": IDS * 0 + 1, "token_type_ids": IDS * 0}


def test_every_call_of_transformers_refuses_remote_code():
    package = Path(adakron_export.__file__).parent
    found = 0
    for file in package.rglob("*.py"):
        for call in ast.walk(ast.parse(file.read_text())):
            if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Attribute):
                continue
            loader = ast.unparse(call.func.value)
            if call.func.attr not in ("from_pretrained", "from_config") or not loader.split(".")[-1].startswith(
                ("Auto", "auto_")
            ):
                continue
            found += 1
            said = {word.arg: ast.unparse(word.value) for word in call.keywords}
            assert said.get("trust_remote_code") == "False", f"{file}:{call.lineno}"
    assert found >= 7


def test_an_artifacts_own_python_is_not_run(demo_artifact, tmp_path):
    folder = shutil.copytree(demo_artifact, tmp_path / "artifact")
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n")
    for name in ("tokenizer_config.json", "config.json"):
        content = json.loads((folder / name).read_text())
        remote = {"AutoTokenizer": ["evil.Evil", None], "AutoConfig": "evil.Evil"}
        content |= {"auto_map": remote, "model_type": "evil", "tokenizer_class": "Evil"}
        (folder / name).write_text(json.dumps(content))
    manifest = json.loads((folder / "adakron_export.json").read_text()) | {"plain_tokenizer": False}
    (folder / "adakron_export.json").write_text(json.dumps(manifest))
    write_manifest(folder, open_artifact(folder, wait=False).manifest)
    command = [sys.executable, "-m", "adakron_export.cli.main", "predict", folder, "--text", "It works"]
    subprocess.run(command, input="y\n" * 9, text=True, capture_output=True, check=False, timeout=120)
    assert not (tmp_path / "ran").exists()


def with_settings(tmp_path, name, **changes):
    checkpoint = shutil.copytree(DEMO, tmp_path / "checkpoint")
    if name.startswith("backbone/"):
        (checkpoint / "config.json").unlink()  # which would count in its place
    content = json.loads((checkpoint / name).read_text()) | changes
    (checkpoint / name).write_text(json.dumps(content))
    return checkpoint


@pytest.mark.parametrize(
    ("name", "changes", "error", "message"),
    [
        ("adapter_config.json", {"target_modules": "(.+)+!"}, CheckpointError, "too long to match"),
        ("adapter_config.json", {"target_modules": "(" * 500}, CheckpointError, "no regular expression"),
        ("adapter_config.json", {"r": 10**9, "k": 1}, CheckpointError, "at most 65536"),
        ("adapter_config.json", {"num_experts": 10**8}, AdapterConfigError, "from 1 to 1024"),
        ("backbone/config.json", {"num_hidden_layers": 10**6}, BackboneError, "more than 1024"),
        ("backbone/config.json", {"num_hidden_layers": 1000}, BackboneError, "configuration is of another model"),
        ("backbone/config.json", {"vocab_size": 10**9}, BackboneError, "configuration is of another model"),
        ("backbone/config.json", {"hidden_size": 10**5, "intermediate_size": 10**6}, BackboneError, "another model"),
        ("backbone/config.json", {"num_labels": 10**8}, BackboneError, "num_labels is 100000000"),
        ("config.json", {"num_labels": 10**8}, BackboneError, "num_labels is 100000000"),
        ("config.json", {"hidden_size": 10**300}, BackboneError, "which no setting has"),
    ],
)
def test_what_a_file_asks_for_has_a_bound(name, changes, error, message, tmp_path):
    start = time.perf_counter()
    with pytest.raises(error, match=message):
        load_model(with_settings(tmp_path, name, **changes))
    assert time.perf_counter() - start < 20


def test_bounds_of_recipes(tmp_path):
    bomb = "a: &a [x, x, x, x, x, x, x, x]\n" + "".join(
        f"{chr(98 + n)}: &{chr(98 + n)} [{', '.join([f'*{chr(97 + n)}'] * 9)}]\n" for n in range(9)
    )
    (tmp_path / "bomb.yaml").write_text(bomb)
    with pytest.raises(TrainingError, match="alias"):
        read_settings(tmp_path / "bomb.yaml")
    with pytest.raises(TrainingError, match="write 2-5"):
        make_recipe({"backbone": "x", "data": "y", "layers": "0-99999999999"})


def test_bounds_of_the_references_files(tmp_path):
    case = reference_case("bert-glue-r48")
    state = torch.load(case.file, weights_only=True)
    key = next(name for name in state if "deepspeed_experts.0" in name)
    torch.save({**state, key.replace("experts.0", "experts.100000000"): state[key]}, tmp_path / "model.bin")
    with pytest.raises(CheckpointError, match="an expert 100000000"):
        load_model(tmp_path / "model.bin", backbone=case.backbone)
    for odd, message in (
        (state[key].to(torch.complex64), "complex64"),
        (state[key].to_sparse(), "sparse or nested"),
        (state[key] * float("nan"), "NaN or Inf"),
        (state[key].reshape(-1)[:1].expand(10**11), "more than the file has"),
        (state[key].to("meta"), "without data"),
    ):
        torch.save({**state, key: odd}, tmp_path / "model.bin")
        with pytest.raises(CheckpointError, match=message):
            load_model(tmp_path / "model.bin", backbone=case.backbone)


@pytest.mark.parametrize("validated", [True, False])
def test_an_adapter_with_nan_is_not_exported(validated, tmp_path):
    checkpoint = shutil.copytree(DEMO, tmp_path / "checkpoint")
    tensors = load_file(checkpoint / "adapter_model.safetensors")
    name = next(name for name in tensors if "adakron_up.weight" in name)
    tensors[name][0, 0] = float("nan")
    save_file(tensors, checkpoint / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match=f"{name} holds NaN or Inf"):
        export_onnx(checkpoint, tmp_path / "out", settings=ExportSettings(validate=validated))


def test_texts_that_stand_for_more_than_memory_holds(tmp_path, monkeypatch):
    import pyarrow as pa
    import pyarrow.parquet as pq

    from adakron_export.data import reading

    monkeypatch.setattr(reading, "_LARGEST_TEXT", 2**24)
    pq.write_table(pa.table({"text": ["x" * 4000] * 20_000}), tmp_path / "bomb.parquet")
    assert (tmp_path / "bomb.parquet").stat().st_size < 20_000
    with gzip.open(tmp_path / "bomb.csv.gz", "wb") as stream:
        stream.write(b"text,label\n" + b"x" * 2**25)
    for name in ("bomb.parquet", "bomb.csv.gz"):
        with pytest.raises(DataError, match="stands for more than 16 MiB"):
            read_files([tmp_path / name])


def test_a_pipe_is_no_file(tmp_path, cli):
    os.mkfifo(tmp_path / "adakron_export.json")
    os.mkfifo(tmp_path / "baseline.json")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "folder/adakron_export.json")
    start = time.perf_counter()
    cli("predict", tmp_path / "folder", "--text", "x", code=2)
    cli("bench", tmp_path / "folder", "--against", DEMO, "--baseline", tmp_path / "baseline.json", code=2)
    assert time.perf_counter() - start < 15


def endless(folder):
    """A graph that counts to 2^62 before it answers."""
    true = helper.make_tensor("true", TensorProto.BOOL, [], [True])
    body = helper.make_graph(
        [helper.make_node("Identity", ["condition"], ["again"])],
        "body",
        [helper.make_tensor_value_info("step", TensorProto.INT64, []),
         helper.make_tensor_value_info("condition", TensorProto.BOOL, [])],
        [helper.make_tensor_value_info("again", TensorProto.BOOL, [])],
    )  # fmt: skip
    model = onnx.load(folder / "model.onnx")
    model.graph.initializer.extend([true, helper.make_tensor("count", TensorProto.INT64, [], [2**62])])
    model.graph.node.insert(0, helper.make_node("Loop", ["count", "true"], [], body=body))
    onnx.save(model, folder / "model.onnx")


def outside(folder):
    model = onnx.load(folder / "model.onnx")
    weight = next(weight for weight in model.graph.initializer if weight.dims)
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    entry = weight.external_data.add()
    entry.key, entry.value = "location", "../../../etc/hostname"
    (folder / "model.onnx").write_bytes(model.SerializeToString())


@pytest.mark.parametrize(
    ("change", "message"), [(endless, "operator Loop"), (outside, "which the manifest does not list")]
)
def test_graphs_that_need_not_end_or_read_elsewhere_are_refused(change, message, demo_artifact, tmp_path):
    folder = shutil.copytree(demo_artifact, tmp_path / "artifact")
    change(folder)
    write_manifest(folder, open_artifact(demo_artifact).manifest)
    with pytest.raises(ArtifactError, match=message):
        open_runner(folder)
    with pytest.raises(ArtifactError, match=message):
        validate(folder, against=DEMO)


@pytest.fixture(scope="module")
def runners(demo_artifact, tmp_path_factory):
    folder = tmp_path_factory.mktemp("openvino") / "artifact"
    assert export_onnx(DEMO, folder, target="openvino", settings=ExportSettings(validate=False)).written
    pytest.importorskip("openvino")
    return [open_runner(demo_artifact), open_runner(DEMO), open_runner(folder, device="openvino")]


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (np.array([[2, -1, 3]]), "negative"),
        (np.array([[2, 700, 3]]), "the token 700; the model's tokens lie below 700"),
        (np.array([[2.5, 9.0, 3.0]]), "no whole numbers"),
        (np.array([[2 + 1j, 9, 3]]), "no whole numbers"),
        (np.array([["a", "b", "c"]]), "no whole numbers"),
    ],
)
def test_ids_that_are_none_are_refused_by_every_runtime(ids, message, runners):
    for runner in runners:
        with pytest.raises(RunnerError, match=message if "700" not in message else "700|index out of range"):
            runner.run({**BATCH, "input_ids": ids})


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred\x1b[0m", "\x1b[31mred\x1b[0m"),  # our own styles
        ("\x1b]0;title\x07", "\\x1b]0;title\\x07"),
        ("\x1b[2J\x1b[8m", "\\x1b[2J\\x1b[8m"),
        ("a\rb\x08\x9b1m", "a\\x0db\\x08\\x9b1m"),
        ("\u202eabc\u2066", "\\u202eabc\\u2066"),
        ("::error ::x", "\\x3a:error ::x"),
        ("ok\n  ::set-output name=x", "ok\n  \\x3a:set-output name=x"),
        ("x ##[error]y", "x \\x23#[error]y"),
        ("a: b::c\n\tx", "a: b::c\n\tx"),
    ],
)
def test_what_a_terminal_or_a_ci_would_obey_is_escaped(text, shown):
    assert printable(text) == shown


def test_labels_are_shown_on_a_line_of_their_own(demo_artifact, tmp_path, cli):
    assert one_line("a\n::error x") == "a\\n::error x"
    folder = shutil.copytree(demo_artifact, tmp_path / "artifact")
    content = json.loads((folder / "config.json").read_text())
    evil = "praise\n::error file=x::\x1b]0;owned\x07"
    (folder / "config.json").write_text(json.dumps({**content, "id2label": dict.fromkeys("012", evil)}))
    write_manifest(folder, open_artifact(demo_artifact).manifest)
    shown = cli("predict", folder, "--text", "It works").stdout
    assert "\x1b" not in shown
    assert not any(line.lstrip().startswith("::") for line in shown.splitlines())
    assert json.loads(cli("predict", folder, "--text", "It works", "--json").stdout)[0]["result"]["label"] == evil


def test_what_was_not_foreseen_has_an_exit_code_of_its_own(monkeypatch, demo_artifact):
    def fail(*_args, **_rest):
        raise ZeroDivisionError("not foreseen")

    monkeypatch.setattr(adakron_export, "predict", fail)
    result = CliRunner().invoke(main, ["predict", str(demo_artifact), "--text", "x"])
    assert result.exit_code == 3
    assert "ZeroDivisionError: not foreseen" in result.stderr
    assert "Please report it" in result.stderr


@pytest.mark.skipif(os.geteuid() != 0 and not os.access("/proc", os.W_OK), reason="needs a place that refuses files")
@pytest.mark.parametrize("command", ["onnx", "predict", "bench", "validate", "train"])
def test_a_place_that_cannot_be_written_is_found_before_the_work(command, demo_artifact, cli):
    words = {
        "onnx": ("onnx", DEMO, "-o", "/proc/out"),
        "predict": ("predict", demo_artifact, "--text", "x", "-o", "/proc/out.jsonl"),
        "bench": ("bench", demo_artifact, "--against", DEMO, "--save-baseline", "/proc/base.json"),
        "validate": ("validate", demo_artifact, "--against", DEMO, "--report", "/proc/report"),
        "train": ("train", "--backbone", DEMO / "backbone", "--data", DEMO / "train.tsv", "-o", "/proc/out"),
    }[command]
    result = cli(*words, code=2)
    assert "/proc" in result.stderr
    assert "read the data" not in result.stderr
    assert "batch" not in result.stderr


@pytest.fixture
def keys(tmp_path):
    pytest.importorskip("model_signing")
    from cryptography.hazmat.primitives import serialization as form
    from cryptography.hazmat.primitives.asymmetric import ec

    for name in ("mine", "other"):
        key = ec.generate_private_key(ec.SECP256R1())
        private = key.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption())
        public = key.public_key().public_bytes(form.Encoding.PEM, form.PublicFormat.SubjectPublicKeyInfo)
        (tmp_path / f"{name}.pem").write_bytes(private)
        (tmp_path / f"{name}.pub").write_bytes(public)
    return tmp_path


def test_signatures(keys, demo_artifact, cli):
    folder = shutil.copytree(demo_artifact, keys / "artifact")
    unsigned = cli("predict", folder, "--text", "x", "--require-signature", keys / "mine.pub", code=2)
    assert "is not signed" in unsigned.stderr
    cli("sign", folder, "--key", keys / "mine.pem")
    assert "every file is as it was signed" in cli("verify", folder, "--key", keys / "mine.pub").stdout
    cli("predict", folder, "--text", "x", "--require-signature", keys / "mine.pub")
    assert "verify FAILED" in cli("verify", folder, "--key", keys / "other.pub", code=1).stdout
    (folder / "README.md").write_text("another card")
    write_manifest(folder, open_artifact(folder, wait=False).manifest)  # whoever changes a file can do that too
    assert "README.md" in cli("verify", folder, "--key", keys / "mine.pub", code=1).stdout
    refused = cli("validate", folder, "--against", DEMO, "--require-signature", keys / "mine.pub", code=2)
    assert "does not hold" in refused.stderr


def test_keys_that_are_none(keys, demo_artifact):
    from adakron_export.verbs.sign import sign, verify

    folder = shutil.copytree(demo_artifact, keys / "artifact")
    (keys / "text.pem").write_text("no key")
    for key in ("text.pem", "nowhere.pem"):
        with pytest.raises(SignatureError, match=key):
            sign(folder, keys / key)
    sign(folder, keys / "mine.pem")
    with pytest.raises(BadSignatureError):
        verify(folder, keys / "text.pem")


def test_host_code_of_engines_is_off():
    from types import SimpleNamespace
    from typing import Any, cast

    manifest = cast(Any, SimpleNamespace(flavor="rtx", options={"version_compatible": True}))
    folder = EngineFolder(Path("engine"), manifest)
    pytest.importorskip("tensorrt_rtx", reason="needs the extra tensorrt-rtx")
    from adakron_export.engines import loading

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(loading, "first_gpu", lambda: SimpleNamespace(name="x", compute_capability="8.9"))
        with pytest.raises(EngineError, match="--allow-engine-code"):
            check_loadable(folder)
        with pytest.raises(EngineError, match="--allow-engine-code"):
            load_engine(folder)


def test_readers_of_graphs_agree(demo_artifact):
    """The scan that opening makes and the library see the same operators."""
    from adakron_export.files.protobuf import read_fields

    content = memoryview((demo_artifact / "model.onnx").read_bytes())
    graph = next(part for field, part in read_fields(content) if field == 7)
    nodes = [part for field, part in read_fields(graph) if field == 1]
    assert len(nodes) == len(list(ir.load(demo_artifact / "model.onnx").graph))

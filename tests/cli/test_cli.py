"""The command line: what it prints, where, and its exit codes."""

import json
import os
import subprocess
import sys

import pytest

from adakron_export import __version__, open_artifact
from conftest import DEMO
from tiny import save_checkpoint


def test_version(cli):
    assert cli("--version").output == f"adakron-export, version {__version__}\n"


def test_help_of_every_command_fits_and_imports_nothing_heavy():
    code = (
        "import sys; from importlib.metadata import entry_points as e; "
        "main = next(iter(e(group='console_scripts', name='adakron-export'))).load(); "
        "main(['--help'], standalone_mode=False); "
        "heavy = {'torch', 'transformers', 'peft', 'onnx', 'onnxruntime', 'optimum', 'numpy'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    output = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    commands = output.partition("Commands:")[2].split("\n")
    assert [line.split()[0] for line in commands if line] == [
        "bank",
        "bench",
        "check",
        "compare",
        "convert",
        "doctor",
        "inspect",
        "onnx",
        "predict",
        "serve",
        "sign",
        "tensorrt",
        "train",
        "triton",
        "tune",
        "validate",
        "verify",
    ]
    assert not any(line.endswith("...") for line in commands)


def test_onnx_prints_verdict_and_files_on_stdout_and_stages_on_stderr(cli, tmp_path):
    result = cli("onnx", DEMO, "-o", tmp_path / "out")
    assert "parity passed" in result.stdout
    assert "model.onnx" in result.stdout
    assert f"next: adakron-export inspect {tmp_path / 'out'}" in result.stdout
    assert "fold the adapters" in result.stderr
    assert max(map(len, result.stdout.partition("wrote")[0].splitlines())) <= 80


def test_choices_are_those_of_the_tables(cli, tmp_path):
    named = cli("onnx", DEMO, "-o", tmp_path / "out", "--no-validate", "--dtype", "float16")
    assert open_artifact(tmp_path / "out").manifest.spec.dtype == "fp16", named.output
    result = cli("onnx", DEMO, "-o", tmp_path / "other", "--dtype", "float8", code=2)
    assert "'float8' is not one of 'fp32', 'fp16', 'bf16', 'int8', 'fp8', 'int4'" in result.stderr


@pytest.mark.parametrize(
    ("dtype", "file", "name"), [("fp32", "model.onnx", "fp32"), ("int8", "model_quantized.onnx", "q8")]
)
def test_the_layout_of_transformers_js(cli, tmp_path, demo_artifact, dtype, file, name):
    out = tmp_path / "out"
    cli("onnx", DEMO, "-o", out, "--dtype", dtype, "--layout", "transformers.js")
    assert (out / "onnx" / file).is_file()
    assert not (out / "model.onnx").exists()
    assert json.loads((out / "config.json").read_text())["transformers.js_config"] == {"dtype": name}
    open_artifact(out).check()
    answers = [cli("predict", folder, "--text", "It works").stdout.split()[0] for folder in (out, demo_artifact)]
    assert answers[0] == answers[1]
    refused = cli("onnx", DEMO, "-o", tmp_path / "bf16", "--dtype", "bf16", "--layout", "transformers.js", code=2)
    assert "transformers.js has no bf16" in refused.stderr


def test_onnx_json(cli, tmp_path):
    result = cli("onnx", DEMO, "-o", tmp_path / "out", "--json")
    content = json.loads(result.stdout)
    assert content["written"] is True
    assert content["parity"]["passed"] is True


def test_failed_parity_is_exit_code_1(cli, tmp_path):
    result = cli("onnx", DEMO, "-o", tmp_path / "out", "--atol", "0", code=1)
    assert "FAILED" in result.stdout
    assert "was not written" in result.stdout
    assert not (tmp_path / "out").exists()


def test_no_validate(cli, tmp_path):
    assert "not validated" in cli("onnx", DEMO, "-o", tmp_path / "out", "--no-validate").stdout
    assert not (tmp_path / "out/parity.json").exists()
    assert "validation  left out" in cli("inspect", tmp_path / "out").stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["onnx", "nowhere", "-o", "out"], "error: nowhere: no such folder, and the hub cannot be reached"),
        (["onnx", "/nowhere/at/all", "-o", "out"], "error: /nowhere/at/all: no such file or folder"),
        (
            ["onnx", DEMO, "-o", "out", "--dtype", "fp7"],
            "Error: Invalid value for '--dtype': 'fp7' is not one of 'fp32', 'fp16'",
        ),
        (["onnx", DEMO, "-o", "out", "--opset", "9"], "error: opset 9 is not supported"),
        (["inspect", "nowhere"], "error: nowhere"),
        (["validate", "nowhere", "--against", DEMO], "error: nowhere: no such folder"),
        (["predict", DEMO, "--text", "x"], "not an artifact (adakron_export.json is missing)"),
        (["convert", DEMO, "--backbone", DEMO / "backbone", "-o", "out"], "is a PEFT checkpoint already"),
        (["predict", "nowhere", "--text", "x"], "error: nowhere: no such folder"),
        (["onnx", DEMO], "Missing option '-o'"),
    ],
)
def test_bad_input_is_one_message_and_exit_code_2(cli, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    result = cli(*arguments, code=2)
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["onnx", "./nowhere", "-o", "out"],
        ["onnx", DEMO, "--backbone", "/nowhere/at/all", "-o", "out"],
        ["validate", "./nowhere", "--against", DEMO],
        ["train", "--backbone", "/nowhere/at/all", "--data", DEMO / "train.tsv", "-o", "out"],
        ["train", "--backbone", DEMO / "backbone", "--data", "nowhere.csv", "-o", "out"],
    ],
)
def test_what_is_not_there_is_said_before_torch_is_imported(arguments):
    code = "import sys; sys.modules['torch'] = None; from adakron_export.cli.main import main; main()"
    done = subprocess.run([sys.executable, "-c", code, *arguments], check=False, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.endswith("no such file or folder\n")


def test_debug_shows_the_traceback(cli):
    assert "Traceback" in cli("--debug", "inspect", "/nowhere/at/all", code=2).stderr


def test_convert_then_onnx(cli, glue_case, tmp_path):
    result = cli("convert", glue_case.file, "--backbone", glue_case.backbone, "-o", tmp_path / "peft")
    assert f"next: adakron-export onnx {tmp_path / 'peft'}" in result.stdout
    cli("onnx", tmp_path / "peft", "-o", tmp_path / "out")
    cli("validate", tmp_path / "out", "--against", tmp_path / "peft")


def test_convert_replaces_checkpoints_only(cli, glue_case, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes").write_text("mine")
    result = cli("convert", glue_case.file, "--backbone", glue_case.backbone, "-o", tmp_path / "mine", code=2)
    assert "would be replaced" in result.stderr


def test_inspect_checkpoint_reference_file_and_artifact(cli, glue_case, demo_artifact):
    text = cli("inspect", DEMO).stdout
    assert "trained     10,401 of " in text
    assert "10,110 in adapters, 291 saved whole" in " ".join(text.split())
    assert "bert.encoder.layer.2.output.dense" in text
    assert "a1.weight 6x96  a2.weight 4x96  up.weight 96x24" in text

    content = json.loads(cli("inspect", glue_case.file, "--backbone", glue_case.backbone, "--json").stdout)
    assert content["kind"] == "adakron-reference"
    expected = {"r": 48, "k": 4, "kron_order": "a2_a1", "activation": "gelu", "num_experts": 1}
    assert expected.items() <= content["settings"].items()

    assert "3 adakron::KronAdapter" in " ".join(cli("inspect", demo_artifact).stdout.split())
    content = json.loads(cli("inspect", demo_artifact, "--json").stdout)
    assert content["ops"]["adakron::KronAdapter"] == 3
    assert content["opsets"] == {"": 20, "adakron": 1}
    assert content["adapters"][0]["shapes"]["U"] == [24, 96]
    assert content["parity"]["passed"] is True


def test_predict_prints_labels(cli, demo_artifact, tmp_path):
    result = cli("predict", demo_artifact, "--text", "Where can I find the manual?")
    assert result.stdout.splitlines()[1].split()[0] == "question"
    (tmp_path / "texts.txt").write_text("I really love the camera\nThe printer is broken again\n")
    cli("predict", demo_artifact, "--input", tmp_path / "texts.txt", "-o", tmp_path / "found.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "found.jsonl").read_text().splitlines()]
    assert [row["result"]["label"] for row in rows] == ["praise", "problem"]


def test_predict_truncates_long_texts_and_asks_for_some(cli, demo_artifact):
    cli("predict", demo_artifact, "--text", "the camera " * 500)
    assert "there is no text to run on" in cli("predict", demo_artifact, code=2).stderr


def test_predict_needs_a_tokenizer(cli, tmp_path):
    cli("onnx", save_checkpoint(tmp_path, "bert"), "-o", tmp_path / "out")
    assert "has no tokenizer" in cli("predict", tmp_path / "out", "--text", "x", code=2).stderr


def test_a_closed_pipe_is_no_error():
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "adakron_export.cli", "inspect", str(DEMO)]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert done.returncode == 1
    assert "error" not in done.stderr

"""Repositories for Triton: what their configurations say, and what it cannot serve. `make triton` asks a server."""

import json
import re

import pytest

from adakron_export import (
    BankSettings,
    ExportSettings,
    Subject,
    TritonSettings,
    create_bank,
    export_onnx,
    triton,
)
from adakron_export.errors import ArtifactError, RunnerError
from conftest import DEMO
from tiny import save_checkpoint


def config(repository, name):
    return (repository / name / "config.pbtxt").read_text()


def tensors(text, kind):
    """Name, type and dims of inputs or outputs."""
    found = re.findall(rf'^{kind} {{\n  name: "(\w+)"\n  data_type: (\w+)\n((?:  dims: -?\d+\n)*)', text, re.M)
    return {name: (dtype, [int(each) for each in re.findall(r"-?\d+", dims)]) for name, dtype, dims in found}


def test_tensors_tokens_and_the_ensemble_of_both(demo_artifact, tmp_path):
    assert triton(demo_artifact, tmp_path / "r", name="demo") == ["demo", "demo_tokens", "demo_from_text"]
    graph, tokens, both = (config(tmp_path / "r", name) for name in ("demo", "demo_tokens", "demo_from_text"))
    names = ("input_ids", "attention_mask", "token_type_ids")
    assert tensors(graph, "input") == {name: ("TYPE_INT64", [-1]) for name in names}
    assert tensors(graph, "output") == {"logits": ("TYPE_FP32", [3])} == tensors(both, "output")
    assert tensors(tokens, "output") == tensors(graph, "input")
    assert tensors(tokens, "input") == tensors(both, "input") == {"text": ("TYPE_STRING", [1])}
    assert 'string_value: "{\\"0\\": \\"praise\\", \\"1\\": \\"problem\\", \\"2\\": \\"question\\"}"' in graph
    assert (tmp_path / "r/demo/1/model.onnx").read_bytes() == (demo_artifact / "model.onnx").read_bytes()
    assert not (tmp_path / "r/demo_tokens/1/artifact/model.onnx").exists()
    assert (tmp_path / "r/demo_from_text/1").is_dir()


def test_how_it_runs(demo_artifact, tmp_path):
    settings = TritonSettings(threads=3, instances=2, gpu=True, response_cache=True)
    triton(demo_artifact, tmp_path / "r", name="demo", settings=settings)
    graph, tokens = config(tmp_path / "r", "demo"), config(tmp_path / "r", "demo_tokens")
    assert 'key: "intra_op_thread_count"\n  value {\n    string_value: "3"' in graph
    assert "count: 2\n  kind: KIND_GPU" in graph
    assert "count: 2\n  kind: KIND_CPU" in tokens  # a tokenizer has no use for a GPU
    assert "response_cache {\n  enable: true" in graph
    triton(demo_artifact, tmp_path / "p", name="demo", backend="python", settings=settings)
    assert 'key: "threads"\n  value {\n    string_value: "3"' in config(tmp_path / "p", "demo")


def test_a_repository_of_several_models(cli, demo_artifact, tmp_path):
    for name in ("one", "two"):
        said = cli("triton", demo_artifact, "-o", tmp_path / "r", "--name", name, "--backend", "python").output
        assert f"wrote {name} to" in said
    assert sorted(path.name for path in (tmp_path / "r").iterdir()) == ["one", "two"]
    assert tensors(config(tmp_path / "r", "one"), "output") == {"prediction": ("TYPE_STRING", [1])}
    with pytest.raises(RunnerError, match="is there already"):
        triton(demo_artifact, tmp_path / "r", name="two", backend="python")
    triton(demo_artifact, tmp_path / "r", name="two", backend="python", overwrite=True)
    (tmp_path / "r/two/mine.txt").touch()
    with pytest.raises(RunnerError, match=r"mine\.txt"):
        triton(demo_artifact, tmp_path / "r", name="two", backend="python", overwrite=True)
    with pytest.raises(RunnerError, match="lies within"):
        triton(demo_artifact, demo_artifact / "r")


def test_banks(tmp_path):
    subjects = {"topic": Subject(DEMO, DEMO / "backbone"), "reply": Subject(DEMO / "reply", DEMO / "backbone")}
    for name, settings in (("open", BankSettings(validate=False)), ("sealed", BankSettings(validate=False, sealed=4))):
        create_bank(subjects, tmp_path / name, settings=settings)
    with pytest.raises(RunnerError, match="--sealed N"):
        triton(tmp_path / "open", tmp_path / "r")
    triton(tmp_path / "open", tmp_path / "r", backend="python")
    assert "adapter" in tensors(config(tmp_path / "r", "open"), "input")
    triton(tmp_path / "sealed", tmp_path / "r")
    graph = config(tmp_path / "r", "sealed")
    assert tensors(graph, "input")["adapter_ids"] == ("TYPE_INT64", [1])
    assert "reshape {\n  }" in graph.replace("    ", "  ")  # the graph takes a number for each text
    assert {path.name for path in (tmp_path / "r/sealed/1").iterdir()} == {"model.onnx", "model.onnx_adapters"}
    said = json.loads(json.loads(re.search(r'key: "labels.reply"\n  value {\n    string_value: (".*")', graph)[1]))
    assert said == json.loads((DEMO / "reply/config.json").read_text())["id2label"]


def test_preferred_sizes_are_those_that_were_measured(demo_artifact, tmp_path):
    report, rates = tmp_path / "bench.json", {1: 40, 4: 90, 8: 97, 16: 100, 64: 200}
    rows = [{"side": "a", "shape": [size, 32], "texts_per_second": rate} for size, rate in rates.items()]
    slow = [{"side": "eager", "shape": [size, 32], "texts_per_second": size} for size in rates]  # PyTorch's best is 64
    others = [{"side": "a", "shape": shape, "texts_per_second": 1000} for shape in ([32, 128], [4, 32, 16])]
    report.write_text(json.dumps({"reference": "eager", "latencies": [*slow, *rows, *others]}))
    triton(demo_artifact, tmp_path / "r", name="demo", settings=TritonSettings(bench=str(report)))
    found = re.findall(r"preferred_batch_size: (\d+)", config(tmp_path / "r", "demo"))
    assert found == ["8", "16"]
    both = [*rows, *({**row, "side": "b"} for row in rows)]
    report.write_text(json.dumps({"reference": "eager", "latencies": [*slow, *both]}))
    with pytest.raises(RunnerError, match="times a, b"):
        triton(demo_artifact, tmp_path / "q", name="demo", settings=TritonSettings(bench=str(report)))
    report.write_text(json.dumps({"reference": "a", "latencies": rows[:2]}))
    with pytest.raises(RunnerError, match="fewer than two"):
        triton(demo_artifact, tmp_path / "q", name="demo", settings=TritonSettings(bench=str(report)))
    report.write_text("{}")
    with pytest.raises(RunnerError, match="bench --json"):
        triton(demo_artifact, tmp_path / "q", name="demo", settings=TritonSettings(bench=str(report)))
    assert not (tmp_path / "q").exists() or not any((tmp_path / "q").iterdir())


def test_what_triton_cannot_run_so(demo_artifact, tmp_path):
    checkpoint = save_checkpoint(tmp_path / "gpt2", "gpt2")
    export_onnx(checkpoint, tmp_path / "writes", settings=ExportSettings(validate=False))
    with pytest.raises(RunnerError, match="--backend python"):
        triton(tmp_path / "writes", tmp_path / "r")
    with pytest.raises(RunnerError, match="build one"):
        triton(demo_artifact, tmp_path / "r", backend="tensorrt")
    with pytest.raises(RunnerError, match="choose one of"):
        triton(demo_artifact, tmp_path / "r", backend="pytorch")
    with pytest.raises(RunnerError, match="name of a model"):
        triton(demo_artifact, tmp_path / "r", name="../demo")
    with pytest.raises(ArtifactError):
        triton(tmp_path, tmp_path / "r")

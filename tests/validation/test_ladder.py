"""Falling back from int8 as far as labelled text asks for."""

import json
from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from adakron_export import Limits, export_onnx, validate
from adakron_export.artifacts.artifact import open_artifact
from adakron_export.errors import DataError, ExportError
from adakron_export.graph.passes import quantize
from adakron_export.graph.passes.rewriting import initializer
from adakron_export.graph.targets import GraphSpec
from adakron_export.validation.ladder import rungs_of
from conftest import DEMO

TEXT = str(DEMO / "train.tsv")
LADDER = {"target": "ort-cpu", "dtype": "int8", "data": TEXT, "limits": Limits(max_drop=0.5)}


@pytest.fixture
def damaged(monkeypatch):
    """Round weights of these shapes so coarsely that nothing is left of them."""
    shapes, symmetric = [], quantize._symmetric

    def coarse(array, *, axis):
        levels, scales = symmetric(array, axis=axis)
        return (np.zeros_like(levels) if array.shape in shapes else levels), scales

    monkeypatch.setattr(quantize, "_symmetric", coarse)
    return shapes


def kinds(folder):
    nodes = onnx.load(folder / "model.onnx").graph.node
    return [node.op_type for node in nodes].count("MatMulInteger")


def test_the_fastest_that_holds_is_kept(tmp_path):
    result = export_onnx(DEMO, tmp_path / "out", **LADDER)
    assert result.written
    assert [(row.label, row.held) for row in result.attempts] == [("int8", True)]
    assert result.attempts[0].examples == 600
    assert kinds(tmp_path / "out") == 3 * 6 + 1
    assert json.loads((tmp_path / "out/accuracy.json").read_text())["max_accuracy_drop"] == 0.5
    assert "| int8 | accuracy" in (tmp_path / "out/README.md").read_text()


@pytest.fixture
def coarse_without_tokens(monkeypatch):
    """Get every scale wrong that is one for all tokens."""
    exact = quantize._round

    def wrong(graph, value, added, *, per_token):
        rounded = exact(graph, value, added, per_token=per_token)
        if per_token:
            return rounded
        added.append(ir.node("Mul", [rounded.scale, initializer(graph, "off", np.array(-1, dtype=np.float32))]))
        return replace(rounded, scale=added[-1].outputs[0])

    monkeypatch.setattr(quantize, "_round", wrong)


def test_scales_per_token_where_one_for_all_loses_too_much(tmp_path, coarse_without_tokens):
    result = export_onnx(DEMO, tmp_path / "out", **LADDER)
    assert result.written
    assert [(row.label, row.held) for row in result.attempts] == [("int8", False), ("int8, scales per token", True)]
    assert kinds(tmp_path / "out") == 3 * 6 + 1
    assert result.attempts[0].flips > result.attempts[1].flips
    manifest = open_artifact(tmp_path / "out").manifest
    assert (manifest.spec.dtype, manifest.spec.per_token) == ("int8", True)
    assert "not good enough" in (tmp_path / "out/README.md").read_text()


def test_fp32_is_the_last_resort_and_held_to_its_own_limits(tmp_path, damaged):
    damaged += [(96, 384), (96, 96)]
    result = export_onnx(DEMO, tmp_path / "out", **LADDER)
    assert [row.held for row in result.attempts] == [False, False, True]
    assert result.attempts[-1].label == open_artifact(tmp_path / "out").manifest.spec.dtype == "fp32"
    assert kinds(tmp_path / "out") == 0
    assert result.parity.tolerance.absolute == 1e-4
    assert validate(tmp_path / "out", against=DEMO).passed


def test_calibrated_int8_falls_back_too(tmp_path):
    result = export_onnx(DEMO, tmp_path / "out", **{**LADDER, "target": "tensorrt"})
    assert [row.label for row in result.attempts] == ["int8"]
    assert open_artifact(tmp_path / "out").manifest.calibrated_on == "train.tsv"


def test_4_bits_fall_back_to_8(tmp_path):
    rungs = rungs_of(GraphSpec("ort-cpu", "int4").complete(), 0.5, has_text=True)
    assert [rung.label for rung in rungs] == ["int4", "int8", "int8, scales per token", "fp32"]


def test_what_makes_no_ladder_is_refused(tmp_path):
    with pytest.raises(ExportError, match="is for int8, fp8, int4, which fall back to fp32 or fp16; not fp32"):
        export_onnx(DEMO, tmp_path / "out", data=TEXT, limits=Limits(max_drop=0.5))
    with pytest.raises(ExportError, match="needs labelled text"):
        export_onnx(DEMO, tmp_path / "out", dtype="int8", limits=Limits(max_drop=0.5))
    for impossible in (-0.1, float("nan"), 101):
        with pytest.raises(ExportError, match="max_drop is .*; it must be"):
            Limits(max_drop=impossible)
    unlabelled = tmp_path / "texts.jsonl"
    unlabelled.write_text('{"text": "The printer stopped."}\n')
    with pytest.raises(DataError, match="has no labels"):
        export_onnx(DEMO, tmp_path / "out", **{**LADDER, "data": str(unlabelled)})
    assert not (tmp_path / "out").exists()

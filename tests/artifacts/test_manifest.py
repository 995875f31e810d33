"""Manifests of earlier releases, and what a file's hash is read from."""

import itertools
import json
import shutil
from dataclasses import replace
from threading import Thread

import pytest

from adakron_export import open_artifact, open_runner, validate
from adakron_export.artifacts import listing
from adakron_export.artifacts.artifact import opened_with, update_manifest, write_manifest
from adakron_export.artifacts.manifest import manifest_of
from conftest import DEMO

# As release 0.1.0 wrote it before the records were sorted.
EARLIER = {
    "task": "text-classification",
    "target": "ort-cpu",
    "dtype": "int8",
    "opset": 23,
    "per_token": True,
    "inputs": [{"name": "input_ids", "dtype": "int64", "shape": ["batch_size", "sequence_length"]}],
    "outputs": [{"name": "logits", "dtype": "float32", "shape": ["batch_size", 3]}],
    "adapter": {"r": 16, "k": 4, "num_experts": 1},
    "adapter_source": {"name": "adapter_model.safetensors", "sha256": "ab"},
    "backbone_source": [{"name": "config.json", "sha256": "cd"}],
    "backbone": "backbone",
    "max_length": 64,
    "disabled_optimizers": ["SkipLayerNormFusion"],
    "float_dtype": "fp32",
    "calibrated_on": None,
    "tuning": {"processor": "a", "cores": 2, "threads": None, "spinning": True, "attention": "plain",
               "disabled_optimizers": [], "speedup": 1.1, "shapes": ["1x16"]},
    "plain_tokenizer": True,
    "versions": {"python": "3.11.7"},
    "files": {"model.onnx": "ef"},
}  # fmt: skip


def test_a_manifest_of_an_earlier_release_is_read_and_written_alike():
    manifest = manifest_of(EARLIER)
    assert (manifest.spec.target, manifest.spec.dtype, manifest.spec.opset) == ("ort-cpu", "int8", 23)
    assert manifest.spec.label == "int8, scales per token"
    assert json.loads(json.dumps(manifest.to_json())) == EARLIER


def test_an_artifact_of_an_earlier_release_opens(demo_artifact, tmp_path):
    folder = shutil.copytree(demo_artifact, tmp_path / "artifact")
    content = json.loads((folder / "adakron_export.json").read_text())
    keys = ["format_version", *EARLIER]  # in the order of then
    (folder / "adakron_export.json").write_text(json.dumps({key: content[key] for key in keys if key in content}))
    assert content.keys() == set(keys)
    assert open_artifact(folder).manifest == open_artifact(demo_artifact).manifest
    assert open_runner(folder)


@pytest.mark.parametrize("lacking", ["target", "dtype", "opset"])
def test_what_a_graph_is_must_be_said(lacking):
    with pytest.raises(ValueError, match="target, dtype or opset lacks"):
        manifest_of({key: value for key, value in EARLIER.items() if key != lacking})


def test_a_settled_file_is_read_once_and_a_changed_one_again(demo_artifact, tmp_path, monkeypatch):
    folder = shutil.copytree(demo_artifact, tmp_path / "artifact")
    read = []
    digest_of = listing._digest_of
    monkeypatch.setattr(listing, "_digest_of", lambda path: (read.append(path.name), digest_of(path))[1])
    monkeypatch.setattr(listing, "_UNSETTLED_NS", -(10**15))  # as if all had been written long ago
    assert validate(folder, against=DEMO).passed
    assert validate(folder, against=DEMO).passed
    assert read.count("model.onnx") == 1
    manifest, card = open_artifact(folder).manifest, folder / "README.md"
    card.write_text(card.read_text() + "\nMine.\n")
    write_manifest(folder, manifest)
    assert open_artifact(folder)
    assert read.count("README.md") == 2
    assert read.count("model.onnx") == 1


def test_a_file_that_may_still_change_within_a_tick_is_read_again(tmp_path):
    file = tmp_path / "file"
    file.write_text("one")
    before = listing.sha256_of(file)
    file.write_text("two")  # the same size, and perhaps the same time
    assert listing.sha256_of(file) != before


def test_a_writer_that_leaves_no_gap_waits_for_a_reader(demo_artifact, tmp_path):
    folder, writers, runs = shutil.copytree(demo_artifact, tmp_path / "out"), [], itertools.count()

    def make(artifact):
        def write():
            update_manifest(artifact, lambda manifest: replace(manifest, versions={"run": str(next(runs))}))

        writers.append(Thread(target=write))
        writers[-1].start()
        writers[-1].join(timeout=0.5)  # a writer that waits outlasts it
        return artifact.manifest.versions

    assert opened_with(folder, make) == {"run": str(len(writers) - 2)}
    writers[-1].join()
    assert open_artifact(folder).manifest.versions == {"run": str(len(writers) - 1)}

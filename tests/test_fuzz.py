"""Damaged artifacts and checkpoints: 2,100 mutations, each a clear error or a model that runs, never a traceback.

A failure names its seed; `mutate(content, random.Random(seed))` makes the same damage again.
"""

import json
import random
import shutil
from collections import Counter

import numpy as np
import pytest

from adakron_export import open_artifact, open_runner
from adakron_export.artifact import write_manifest
from adakron_export.errors import AdaKronError, ArtifactError
from conftest import DEMO

VALUES = [None, 0, -1, 1.5, "x", "", [], {}, True, "../../etc/passwd", 1000, ["a"], {"a": 1}, "fp16", "int64"]
CHECKPOINT_FILES = (
    "adapter_config.json",
    "adapter_model.safetensors",
    "config.json",
    "backbone/config.json",
    "backbone/model.safetensors",
)
IDS = np.array([[2, 9, 3]])
BATCH = {"input_ids": IDS, "attention_mask": IDS * 0 + 1, "token_type_ids": IDS * 0}


def places(value, place=()):
    yield place
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in parts:
        yield from places(part, (*place, key))


def mutate(content: bytes, rng: random.Random) -> bytes:
    """Another value or none at a place of a JSON file; or bytes changed or cut off."""
    try:
        document = json.loads(content) if rng.random() < 0.75 else None
    except ValueError:
        document = None
    if document is not None:
        *parents, last = rng.choice([place for place in places(document) if place])
        holder = document
        for key in parents:
            holder = holder[key]
        if rng.random() < 0.3:
            del holder[last]
        else:
            holder[last] = rng.choice(VALUES)
        return json.dumps(document).encode()
    damaged = bytearray(content)
    reach = rng.choice([len(damaged), min(len(damaged), 2000)])  # the head of a file holds its structure
    for _ in range(rng.randint(1, 5)):
        damaged[rng.randrange(reach)] = rng.randrange(256)
    return bytes(damaged[: rng.randrange(len(damaged))] if rng.random() < 0.3 else damaged)


def outcome(folder, seed, what):
    try:
        open_runner(folder).run(BATCH)
    except AdaKronError as error:
        return type(error).__name__ if str(error) else "an error without a word"
    except Exception as error:
        raise AssertionError(f"seed {seed}, {what}: {type(error).__name__}: {error}") from error
    return "ran"


def test_mutated_manifests(demo_artifact, tmp_path):
    folder = shutil.copytree(demo_artifact, tmp_path / "artifact")
    manifest = folder / "adakron_export.json"
    right = manifest.read_bytes()
    counts = Counter()
    for seed in range(1500):
        manifest.write_bytes(mutate(right, random.Random(seed)))
        counts[outcome(folder, seed, manifest.name)] += 1
    assert counts["ArtifactError"] > 700  # and what stays harmless runs
    assert counts["ran"] > 100


def test_mutated_graphs_that_are_signed_again(demo_artifact, tmp_path, capfd):
    folder = shutil.copytree(demo_artifact, tmp_path / "artifact")
    manifest, right = open_artifact(folder).manifest, (folder / "model.onnx").read_bytes()
    counts = Counter()
    for seed in range(100):
        (folder / "model.onnx").write_bytes(mutate(right, random.Random(seed)))
        write_manifest(folder, manifest)
        counts[outcome(folder, seed, "model.onnx")] += 1
    assert counts["RunnerError"] + counts["ArtifactError"] > 20
    assert capfd.readouterr().out == ""  # stdout is for results


def test_mutated_checkpoints(tmp_path):
    folder = shutil.copytree(DEMO, tmp_path / "checkpoint")
    right = {name: (folder / name).read_bytes() for name in CHECKPOINT_FILES}
    counts = Counter()
    for seed in range(500):
        rng = random.Random(seed)
        name = rng.choice(CHECKPOINT_FILES)
        (folder / name).write_bytes(mutate(right[name], rng))
        counts[outcome(folder, seed, name)] += 1
        (folder / name).write_bytes(right[name])
    assert not counts["an error without a word"]
    assert counts["CheckpointError"] > 50
    assert counts["BackboneError"] > 50
    assert outcome(folder, None, "as it was") == "ran"


def empty(path):
    path.write_bytes(b"")


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def make_folder(path):
    path.unlink()
    path.mkdir()


def link_elsewhere(path):
    path.unlink()
    path.symlink_to("/etc/hostname")


def remove(path):
    path.unlink()


@pytest.mark.parametrize("damage", [empty, truncate, flip_a_bit, make_folder, link_elsewhere, remove])
def test_every_file_of_an_artifact_is_guarded(damage, demo_artifact, tmp_path):
    for file in demo_artifact.iterdir():
        if file.name == "adakron_export.json":
            continue
        folder = shutil.copytree(demo_artifact, tmp_path / file.name)
        damage(folder / file.name)
        with pytest.raises(ArtifactError, match=f"changed since it was written: {file.name}"):
            open_artifact(folder)

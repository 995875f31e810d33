"""Damaged files of every kind: each ends in an answer or in one of our errors, through Python and the command line.

1,000 cases run in CI, always the same ones; `make fuzz` runs 50,000 others. What fails is shown shrunk, and
`FUZZ_CASES` and `FUZZ_SEED` repeat a run. No case may take 20 s, or 1 GB of memory.
"""

import contextlib
import functools
import json
import os
import resource
import shutil
import signal
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

import fuzzing
from adakron_export import (
    BankSettings,
    Subject,
    convert,
    create_bank,
    load_model,
    open_artifact,
    open_bank,
    open_runner,
    predict,
)
from adakron_export.artifacts.artifact import write_manifest
from adakron_export.artifacts.engine import open_engine
from adakron_export.cli.main import main  # noqa: TID251 - it is what is tested
from adakron_export.data.reading import read_files
from adakron_export.errors import AdaKronError, ArtifactError
from adakron_export.reporting.report import read_report, report_content, write_report
from adakron_export.timing.baseline import read_baseline, save_baseline
from adakron_export.training.recipe import make_recipe, read_settings
from conftest import ADAPTERHUB, DEMO, reference_case

CASES, SEED = int(os.environ.get("FUZZ_CASES", "1000")), int(os.environ.get("FUZZ_SEED", "0"))
SECONDS, BYTES = 20, 2**30
MACHINE = {"processor": "one", "cores": 2}
IDS = np.array([[2, 9, 3]])
BATCH = {"input_ids": IDS, "attention_mask": IDS * 0 + 1, "token_type_ids": IDS * 0}


@dataclass(frozen=True)
class Kind:
    """A kind of input.

    Attributes:
        file: Which file is damaged, within the folder that `make` makes.
        make: Makes what is read.
        change: Damages bytes.
        read: What reads it from Python.
        command: The words of the command line that read it, given the folder.
        signed: Whether a manifest that fits is written over it.
    """

    file: str
    make: Callable[[Path, Path], None]
    change: Callable[[Any, bytes], bytes]
    read: Callable[[Path], Any]
    command: Callable[[Path], list[str]]
    signed: bool = False


def artifact(folder, made):
    shutil.copytree(made, folder, dirs_exist_ok=True)


@functools.cache
def made_bank():
    folder = Path(tempfile.mkdtemp()) / "bank"
    reply = Subject(DEMO / "reply", backbone=DEMO / "backbone")
    create_bank({"topic": DEMO, "reply": reply}, folder, settings=BankSettings(validate=False))
    return folder


def bank(folder, _):
    shutil.copytree(made_bank(), folder, dirs_exist_ok=True)


def checkpoint(folder, _):
    shutil.copytree(DEMO, folder, dirs_exist_ok=True)


def plain_checkpoint(folder, made):
    checkpoint(folder, made)
    (folder / "config.json").unlink()  # the backbone's counts then


def reference(folder, _):
    case = reference_case("bert-glue-r48")
    shutil.copy(case.file, folder / "model.bin")


def engine(folder, made):
    shutil.copy(made / "config.json", folder / "config.json")
    (folder / "model.engine").write_bytes(b"plan")
    tensor = {"name": "input_ids", "dtype": "int64", "shape": ["batch", "tokens"]}
    content = {"flavor": "rtx", "version": "1", "dtype": "fp32", "task": "text-classification", "inputs": [tensor],
               "outputs": [{**tensor, "name": "logits", "dtype": "float32"}], "max_length": 64,
               "profiles": [["1x1", "1x8", "4x64"]], "compute_capability": [], "options": {}, "source": {},
               "layers": 3, "build_seconds": 1.0, "command": "x"}  # fmt: skip
    from adakron_export.artifacts.listing import sha256_of

    files = {name: sha256_of(folder / name) for name in ("config.json", "model.engine")}
    (folder / "adakron_engine.json").write_text(json.dumps({"format_version": 1, **content, "files": files}))


def baseline(folder, _):
    save_baseline(folder / "baseline.json", {("a", "1x1"): [0.4] * 9}, machine=MACHINE, versions={})


def report(folder, made):
    parity = json.loads((made / "parity.json").read_text())
    parity = {key: value for key, value in parity.items() if key != "format_version"}
    write_report(
        folder, report_content(machine=MACHINE, versions={}, repeat="x", subject={"name": "x"}, parity=parity)
    )


def recipe(folder, _):
    (folder / "recipe.yaml").write_text("backbone: x\ndata: y\nr: 48\nlayers: 0-3\nlearning_rate: 3e-4\nepochs: 3\n")


def data(name, text):
    def make(folder, _):
        (folder / name).write_bytes(text)

    return make


def parquet(folder, _):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"text": ["a", "b"], "label": ["x", "y"]}), folder / "data.parquet")


def run(folder):
    return open_runner(folder).run(BATCH)


def answer(folder):
    return predict(folder, ["It works"])


def ask(folder):
    return ["predict", str(folder), "--text", "It works", "--json"]


def run_bank(folder):
    return open_bank(folder).run(BATCH, "reply")


def answer_of_bank(folder):
    return predict(folder, ["It works"], adapter="reply")


def ask_bank(folder):
    return [*ask(folder), "--adapter", "reply"]


def list_adapters(folder):
    return ["bank", "list", str(folder)]


def inspect(folder):
    return ["inspect", str(folder)]


def load(folder):
    return load_model(folder)


def read_parity(folder):
    return open_artifact(folder).parity()


def bench_against(folder):
    return ["bench", "nowhere", "--against", str(DEMO), "--baseline", str(folder / "baseline.json")]


def read_data(folder):
    return read_files([file for file in folder.iterdir() if file.is_file()])


def read_recipe(folder):
    return make_recipe(read_settings(folder / "recipe.yaml"), source="recipe.yaml")


def train(folder):
    return ["train", "--config", str(folder / "recipe.yaml"), "-o", str(folder / "out")]


def lora(folder, _):
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(DEMO / "backbone", num_labels=2)
    settings = LoraConfig(r=2, target_modules=["query"], task_type="SEQ_CLS", init_lora_weights=False)
    get_peft_model(model, settings).save_pretrained(folder)
    shutil.copytree(DEMO / "backbone", folder / "backbone", dirs_exist_ok=True)
    content = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**content, "base_model_name_or_path": "backbone"}))


def adapterhub(folder, _):
    shutil.copytree(ADAPTERHUB / "own-norms", folder, dirs_exist_ok=True)


def setup(folder, _):
    shutil.copytree(ADAPTERHUB / "fuse-dynamic", folder, dirs_exist_ok=True)


def bottleneck(folder, _):
    convert(ADAPTERHUB / "own-norms", folder, backbone=ADAPTERHUB / "backbone-bert", overwrite=True)


def load_adapterhub(folder):
    return load_model(folder, backbone=ADAPTERHUB / "backbone-bert")


def inspect_adapterhub(folder):
    return ["inspect", str(folder), "--backbone", str(ADAPTERHUB / "backbone-bert")]


def load_reference(folder):
    return load_model(folder / "model.bin", backbone=reference_case("bert-glue-r48").backbone)


def inspect_reference(folder):
    return ["inspect", str(folder / "model.bin"), "--backbone", str(reference_case("bert-glue-r48").backbone)]


def read_texts(name):
    return lambda folder: ["predict", str(folder / "artifact"), "--input", str(folder / name)]


CSV = b"text,label\nIt works,praise\nIt fails,problem\n"
TSV = CSV.replace(b",", b"\t")
JSONL = b'{"text": "It works", "label": "praise"}\n{"text": "It fails", "label": "problem"}\n'
SQUAD = json.dumps({"data": [{"paragraphs": [{"context": "It works.", "qas": [
    {"id": "1", "question": "What?", "answers": [{"text": "It", "answer_start": 0}]}]}]}]}).encode()  # fmt: skip
CONLL = b"EU B-ORG\nsays O\n\nPeter B-PER\n"
KINDS = {
    "manifest": Kind("adakron_export.json", artifact, fuzzing.changed_json, run, inspect),
    "graph": Kind("model.onnx", artifact, fuzzing.changed_graph, run, ask, signed=True),
    "configuration": Kind("config.json", artifact, fuzzing.changed_json, answer, ask, signed=True),
    "tokenizer": Kind("tokenizer.json", artifact, fuzzing.changed_json, answer, ask, signed=True),
    "tokenizer settings": Kind("tokenizer_config.json", artifact, fuzzing.changed_json, answer, ask, signed=True),
    "parity": Kind("parity.json", artifact, fuzzing.changed_json, read_parity, inspect, signed=True),
    "bank": Kind("adakron_export.json", bank, fuzzing.changed_json, run_bank, ask_bank),
    "adapter of a bank": Kind("adapters/reply/adapter.json", bank, fuzzing.changed_json,
                              answer_of_bank, list_adapters, signed=True),
    "rows of a bank": Kind("adapters/reply/adapter.safetensors", bank, fuzzing.changed_safetensors, run_bank,
                           ask_bank, signed=True),
    "adapter settings": Kind("adapter_config.json", checkpoint, fuzzing.changed_json, load, inspect),
    "adapter weights": Kind("adapter_model.safetensors", checkpoint, fuzzing.changed_safetensors, load, inspect),
    "labels": Kind("config.json", checkpoint, fuzzing.changed_json, load, inspect),
    "backbone settings": Kind("backbone/config.json", plain_checkpoint, fuzzing.changed_json, load, inspect),
    "backbone weights": Kind("backbone/model.safetensors", checkpoint, fuzzing.changed_safetensors, load, inspect),
    "LoRA's configuration": Kind("adapter_config.json", lora, fuzzing.changed_json, load, inspect),
    "a bottleneck's configuration": Kind(
        "adapter_config.json", bottleneck, fuzzing.changed_json, load_adapterhub, inspect_adapterhub
    ),
    "AdapterHub's setup": Kind(
        "adapter_setup.json", setup, fuzzing.changed_json, load_adapterhub, inspect_adapterhub
    ),
    "AdapterHub's fusion": Kind(
        "one,two/adapter_fusion_config.json", setup, fuzzing.changed_json, load_adapterhub, inspect_adapterhub
    ),
    "AdapterHub's configuration": Kind(
        "adapter_config.json", adapterhub, fuzzing.changed_json, load_adapterhub, inspect_adapterhub
    ),
    "AdapterHub's head": Kind(
        "head_config.json", adapterhub, fuzzing.changed_json, load_adapterhub, inspect_adapterhub
    ),
    "AdapterHub's weights": Kind(
        "pytorch_adapter.bin", adapterhub, fuzzing.changed_state, load_adapterhub, inspect_adapterhub
    ),
    "reference": Kind("model.bin", reference, fuzzing.changed_state, load_reference, inspect_reference),
    "engine": Kind("adakron_engine.json", engine, fuzzing.changed_json, open_engine,
                   lambda folder: ["bench", str(folder), "--against", str(DEMO)]),
    "baseline": Kind("baseline.json", baseline, fuzzing.changed_json,
                     lambda folder: read_baseline(folder / "baseline.json", machine=MACHINE),
                     bench_against),
    "report": Kind("report.json", report, fuzzing.changed_json, read_report,
                   lambda folder: ["compare", str(folder), str(folder)]),
    "recipe": Kind("recipe.yaml", recipe, fuzzing.changed_text, read_recipe, train),
    "csv": Kind("data.csv", data("data.csv", CSV), fuzzing.changed_text, read_data, read_texts("data.csv")),
    "tsv": Kind("data.tsv", data("data.tsv", TSV), fuzzing.changed_text, read_data, read_texts("data.tsv")),
    "jsonl": Kind("data.jsonl", data("data.jsonl", JSONL), fuzzing.changed_text, read_data, read_texts("data.jsonl")),
    "squad": Kind("data.json", data("data.json", SQUAD), fuzzing.changed_json, read_data, read_texts("data.json")),
    "conll": Kind("data.txt", data("data.txt", CONLL), fuzzing.changed_text, read_data, read_texts("data.txt")),
    "parquet": Kind("data.parquet", parquet, fuzzing.changed_bytes, read_data, read_texts("data.parquet")),
}  # fmt: skip


class HungError(Exception):
    """A case took too long."""


@contextlib.contextmanager
def limits():
    """Raise where the block hangs, or takes more memory than a damaged file may."""

    def stop(*_):
        raise HungError(f"more than {SECONDS} s")

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
    taken = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    assert taken < BYTES, f"{taken / 1e6:.0f} MB"


@pytest.mark.filterwarnings("ignore")  # of torch, about tensors that nobody should save
@pytest.mark.parametrize("name", KINDS)
def test_damaged_files_end_in_an_answer_or_an_error_of_ours(name, demo_artifact, tmp_path):
    kind = KINDS[name]
    folder = tmp_path / "it"
    folder.mkdir()
    kind.make(folder, demo_artifact)
    file = folder / kind.file
    right = file.read_bytes()
    manifest = open_artifact(folder).manifest if kind.signed else None
    outcomes = {"answers": 0, "errors": 0, "without a word": 0}

    @seed(SEED)
    @settings(max_examples=max(1, CASES // len(KINDS)), deadline=None, database=None, print_blob=False,
              suppress_health_check=list(HealthCheck), report_multiple_bugs=False)  # fmt: skip
    @given(st.data())
    def attempt(drawn):
        file.write_bytes(kind.change(drawn.draw, right))
        if manifest is not None:
            write_manifest(folder, manifest)
        with limits():
            if drawn.draw(st.integers(0, 3)) == 0:
                words = [
                    str(demo_artifact) if word == str(folder / "artifact") else word for word in kind.command(folder)
                ]
                result = CliRunner().invoke(main, words)
                assert result.exit_code in (0, 1, 2), result.stderr[-3000:]
                assert not isinstance(result.exception, Exception), result.exception
                outcomes["answers" if result.exit_code == 0 else "errors"] += 1
                return
            try:
                kind.read(folder)
            except AdaKronError as error:
                outcomes["errors" if str(error) else "without a word"] += 1
            else:
                outcomes["answers"] += 1

    attempt()
    file.write_bytes(right)
    if manifest is not None:
        write_manifest(folder, manifest)
    assert outcomes["errors"]
    assert not outcomes["without a word"]
    if name != "backbone settings":  # which has no labels without the file beside it
        kind.read(folder)


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


def make_pipe(path):
    path.unlink()
    os.mkfifo(path)


def remove(path):
    path.unlink()


@pytest.mark.parametrize("damage", [empty, truncate, flip_a_bit, make_folder, link_elsewhere, make_pipe, remove])
def test_every_file_of_an_artifact_is_guarded(damage, demo_artifact, tmp_path):
    for file in demo_artifact.iterdir():
        if file.name == "adakron_export.json":
            continue
        folder = shutil.copytree(demo_artifact, tmp_path / file.name)
        damage(folder / file.name)
        with limits(), pytest.raises(ArtifactError, match=file.name):
            open_artifact(folder)

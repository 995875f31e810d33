"""Banks: what they answer, how they change, and what they refuse."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from peft import PeftModel
from safetensors.numpy import load_file, save_file

from adakron_export import (
    BankSettings,
    EngineShapes,
    ExportSettings,
    MakingSettings,
    OnnxModel,
    Subject,
    add_to_bank,
    create_bank,
    export_adapter,
    export_engine,
    export_onnx,
    list_bank,
    load_model,
    open_bank,
    open_runner,
    predict,
    remove_from_bank,
    validate,
    validate_bank,
)
from adakron_export.artifacts.artifact import open_artifact, write_manifest
from adakron_export.artifacts.listing import sha256_of
from adakron_export.artifacts.onnx_file import write_model
from adakron_export.errors import AdaKronError, ArtifactError, CheckpointError, EngineError, ExportError, RunnerError
from adakron_export.files.records import read_object, write_json
from adakron_export.tasks import Task, auto_class
from conftest import DEMO
from tiny import adapted, backbone_of, first, save_backbone

UNPROVEN = BankSettings(validate=False)
VARIANTS = {
    "spam": {"r": 8, "k": 4, "labels": 3},
    "tone": {"r": 12, "k": 2, "activation": "relu", "kron_order": "a1_a2", "labels": 5},
    "topic": {"r": 4, "k": 4, "num_experts": 3, "labels": 2, "layers_to_transform": [1]},
}
LATE = {"r": 6, "k": 3, "activation": "relu", "labels": 4}


def save_member(folder: Path, backbone: Path, *, labels: int = 2, task=Task.TEXT_CLASSIFICATION, **settings) -> Path:
    """A checkpoint of a tuned copy of the backbone, as PEFT saves it."""
    torch.manual_seed(len(folder.name))
    names = {index: f"{folder.name}-{index}" for index in range(labels)}
    extra = {"num_labels": labels, "id2label": names, "label2id": {name: index for index, name in names.items()}}
    classifies = task in (Task.TEXT_CLASSIFICATION, Task.TOKEN_CLASSIFICATION, Task.IMAGE_CLASSIFICATION)
    model = auto_class(task).from_pretrained(backbone, **(extra if classifies else {}))
    model.name_or_path = str(backbone)
    adapted(model, task, **settings).save_pretrained(folder)
    model.config.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    return save_backbone(tmp_path_factory.mktemp("backbone") / "tiny", task=Task.FEATURE_EXTRACTION)


@pytest.fixture(scope="module")
def checkpoints(backbone, tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    return {name: save_member(folder / name, backbone, **settings) for name, settings in VARIANTS.items()}


@pytest.fixture(scope="module")
def late(backbone, tmp_path_factory):
    return save_member(tmp_path_factory.mktemp("late") / "late", backbone, **LATE)


@pytest.fixture(scope="module")
def made(checkpoints, tmp_path_factory):
    result = create_bank(checkpoints, tmp_path_factory.mktemp("banks") / "bank")
    assert result.passed
    return result


@pytest.fixture
def bank(made, tmp_path):
    """One that may be changed."""
    return Path(shutil.copytree(made.folder, tmp_path / "bank"))


@pytest.fixture(scope="module")
def batch():
    ids = np.array([[2, 20, 30, 40, 3], [2, 50, 3, 1, 1], [2, 7, 9, 8, 3], [2, 61, 62, 3, 1]])
    return {"input_ids": ids, "attention_mask": (ids != 1).astype(np.int64), "token_type_ids": np.zeros_like(ids)}


def alone(checkpoint, folder, batch):
    """What the artifact of one adapter answers."""
    export_onnx(checkpoint, folder, settings=ExportSettings(validate=False))
    return open_runner(folder).run(batch)["logits"]


def test_single_rows_are_not_held_to_the_limits_of_batches(tmp_path):
    """The two demos hold in 4 bits, each alone."""
    reply = Subject(DEMO / "reply", backbone=DEMO / "backbone")
    assert create_bank({"topic": DEMO, "reply": reply}, tmp_path / "bank", dtype="int4").passed


def test_each_row_is_answered_by_its_own_adapter(made, checkpoints, batch, tmp_path):
    expected = {name: alone(path, tmp_path / name, batch) for name, path in checkpoints.items()}
    runner = open_runner(made.folder)
    assert runner.names == ("spam", "tone", "topic")
    for name, logits in expected.items():
        np.testing.assert_allclose(runner.run(batch, name)["logits"], logits, rtol=0, atol=1e-5)
    names = ["tone", "spam", "topic", "tone"]
    rows = runner.run(batch, adapters=names)["logits"]
    assert [row.shape for row in rows] == [(5,), (3,), (2,), (5,)]
    for index, name in enumerate(names):
        np.testing.assert_allclose(rows[index], expected[name][index], rtol=0, atol=1e-5)


def test_rows_are_those_of_pefts_mixed_batches(checkpoints, backbone, batch, tmp_path):
    members = {name: save_member(tmp_path / name, backbone, r=8, k=4) for name in ("first", "second")}
    create_bank(members, tmp_path / "bank", settings=UNPROVEN)
    model = load_model(members["first"])
    model.load_adapter(str(members["second"]), "second")
    names = ["first", "second", "second", "first"]
    tensors = {name: torch.from_numpy(array) for name, array in batch.items()}
    with torch.no_grad():
        logits = model(**tensors, adapter_names=["default" if name == "first" else name for name in names]).logits
    rows = open_runner(tmp_path / "bank").run(batch, names)["logits"]
    np.testing.assert_allclose(rows, logits.numpy(), rtol=0, atol=1e-5)
    assert isinstance(model, PeftModel)


def test_programs_that_know_nothing_of_banks_get_the_first_adapter(made, batch):
    session = ort.InferenceSession(made.folder / "model.onnx", quietly())
    assert [value.name for value in session.get_inputs()] == [*batch]
    logits = session.run(None, batch)[0]
    np.testing.assert_array_equal(logits[:, :3], open_runner(made.folder).run(batch, "spam")["logits"])
    assert (logits[:, 3:] == -10_000).all()
    assert read_object(made.folder / "config.json")["id2label"]["0"] == "spam-0"


def quietly():
    options = ort.SessionOptions()
    options.log_severity_level = 4
    return options


def test_a_change_leaves_graph_and_other_outputs_as_they_are(bank, late, batch):
    before = {name: open_runner(bank).run(batch, name)["logits"] for name in VARIANTS}
    graph = sha256_of(bank / "model.onnx")
    added = add_to_bank(bank, {"late": late})
    assert added.passed
    assert any(row.batch.startswith("mixed-") for row in added.parity["late"].rows)
    answered = open_runner(bank).run(batch, "late")["logits"]
    remove_from_bank(bank, "late")
    assert [row.name for row in list_bank(bank)] == [*VARIANTS]
    remove_from_bank(bank, "tone")
    add_to_bank(bank, {"late": late}, settings=MakingSettings(validate=False))
    assert sha256_of(bank / "model.onnx") == graph
    runner = open_runner(bank)
    assert runner.names == ("spam", "topic", "late")
    for name in ("spam", "topic"):
        np.testing.assert_array_equal(runner.run(batch, name)["logits"], before[name])
    np.testing.assert_array_equal(runner.run(batch, "late")["logits"], answered)
    assert not (bank / "adapters/tone").exists()
    assert open_artifact(bank).manifest.bank.adapters == {"spam": 0, "topic": 1, "late": 2}


def test_a_change_keeps_what_is_the_users_and_drops_the_signature(bank, caplog):
    (bank / ".git/refs").mkdir(parents=True)
    (bank / ".git/config").write_text("mine")
    (bank / "model.sig").write_text("{}")
    remove_from_bank(bank, "tone")
    assert (bank / ".git/config").read_text() == "mine"
    assert (bank / ".git/refs").is_dir()
    assert not (bank / "model.sig").exists()
    assert "sign it again" in caplog.text
    (bank / "notes.txt").write_text("mine")
    with pytest.raises(ArtifactError, match=r"does not list: notes.txt"):
        remove_from_bank(bank, "topic")
    assert (bank / "notes.txt").read_text() == "mine"


def test_a_bank_does_not_choose_how_strictly_an_adapter_is_judged(bank, late):
    manifest = bank / "adakron_export.json"
    content = read_object(manifest)
    content["dtype"] = "int4"
    manifest.unlink()
    write_json(manifest, content)
    result = add_to_bank(bank, {"late": late})
    assert not result.written
    assert result.parity["late"].tolerance.absolute == 1e-4
    assert "dtype: the manifest says int4, the graph holds fp32" in result.parity["late"].mismatches[-1]


def test_a_timed_run_keeps_its_adapters(bank, batch):
    runner = open_bank(bank)
    asked = []
    feed = runner._inner.prepare_feed
    runner._inner.prepare_feed = lambda *given: asked.append(given) or feed(*given)
    timed = runner.prepare(batch, "tone")
    before = {name: value.numpy().copy() for name, value in asked[0][1].items()}
    runner.remove("tone")
    runner.add("other", bank / "adapters/topic")
    assert timed() > 0
    assert all((value.numpy() == before[name]).all() for name, value in asked[0][1].items())


def test_an_adapter_is_replaced_only_where_that_is_asked_for(bank, late, batch):
    with pytest.raises(ArtifactError, match=r"has an adapter 'tone' already; --overwrite"):
        add_to_bank(bank, {"tone": late})
    add_to_bank(bank, {"tone": late}, overwrite=True)
    assert open_runner(bank).run(batch, "tone")["logits"].shape == (4, 4)
    assert [row.name for row in list_bank(bank)] == [*VARIANTS]


def test_a_running_bank_takes_and_forgets_adapters(bank, late, batch):
    runner = open_bank(bank)
    before = runner.run(batch, "spam")["logits"]
    add_to_bank(bank, {"late": late}, settings=MakingSettings(validate=False))
    runner.add("late", bank / "adapters/late")
    expected = open_runner(bank).run(batch, "late")["logits"]
    np.testing.assert_array_equal(runner.run(batch, "late")["logits"], expected)
    runner.remove("tone")
    assert runner.names == ("spam", "topic", "late")
    runner.add("again", bank / "adapters/late")  # into the place that is free
    np.testing.assert_array_equal(runner.run(batch, "again")["logits"], expected)
    np.testing.assert_array_equal(runner.run(batch, "spam")["logits"], before)
    for number in range(30):  # more than there is room for
        runner.add(f"more-{number}", bank / "adapters/late")
    np.testing.assert_array_equal(runner.run(batch, "more-29")["logits"], expected)
    np.testing.assert_array_equal(runner.run(batch, "spam")["logits"], before)


def test_a_call_sees_the_old_adapters_or_the_new_ones(bank, batch):
    runner, wrong, stop = open_bank(bank), [], threading.Event()
    expected = {name: runner.run(batch, name)["logits"] for name in VARIANTS}

    def ask():
        while not stop.is_set():
            try:
                found = runner.run(batch, "moving")["logits"]
            except RunnerError:
                continue
            if not any(found.shape == each.shape and (found == each).all() for each in expected.values()):
                wrong.append(found)

    askers = [threading.Thread(target=ask) for _ in range(2)]
    for asker in askers:
        asker.start()
    for number in range(150):
        runner.add("moving", bank / "adapters" / ["tone", "topic"][number % 2])
        runner.run(batch, "spam")
        runner.remove("moving")
    stop.set()
    for asker in askers:
        asker.join()
    assert not wrong


@pytest.mark.parametrize(
    ("adapters", "message"),
    [
        (None, r"a bank of 3 adapters; say which answers: spam, tone, topic"),
        ("topik", r"no adapter 'topik'; there are topic, "),
        (["spam", "tone"], r"2 adapters for a batch of 4; name one for all texts, or one for each"),
        (["spam", "tone", "spam", "nope"], r"no adapter 'nope'"),
    ],
)
def test_a_call_must_say_who_answers(made, batch, adapters, message):
    with pytest.raises(RunnerError, match=message):
        open_runner(made.folder).run(batch, adapters)


def test_what_does_not_belong_in_a_bank_is_refused(bank, late, backbone, tmp_path, checkpoints):
    other = save_backbone(tmp_path / "other", task=Task.FEATURE_EXTRACTION)
    torch.manual_seed(5)
    with pytest.raises(ArtifactError, match=r"belongs to another backbone than the bank"):
        add_to_bank(bank, {"other": save_member(tmp_path / "a", other)})
    with pytest.raises(CheckpointError, match=r"belongs to the backbone .* share one backbone"):
        create_bank({"one": late, "other": tmp_path / "a"}, tmp_path / "out")
    wide = save_member(tmp_path / "wide", backbone, r=32, k=4)
    with pytest.raises(ArtifactError, match=r"is 8 x 4 wide, the bank's graph takes 6 x 4"):
        add_to_bank(bank, {"wide": wide})
    many = save_member(tmp_path / "many", backbone, labels=9)
    with pytest.raises(ArtifactError, match=r"its classifier is \[9, 32\], the bank's graph takes \[5, 32\]"):
        add_to_bank(bank, {"many": many})
    bent = save_member(tmp_path / "bent", backbone, activation="tanh")
    with pytest.raises(ArtifactError, match=r"its activation is tanh, and the bank's graph computes gelu, relu"):
        add_to_bank(bank, {"bent": bent})
    tags = save_member(tmp_path / "tags", backbone, task=Task.TOKEN_CLASSIFICATION)
    with pytest.raises(CheckpointError, match=r"is for token-classification, the first adapter for text"):
        create_bank({"one": late, "tags": Subject(tags, task="token-classification")}, tmp_path / "out")
    for name in ("../up", "", "a/b", ".hidden", "__base__", "x" * 65):
        with pytest.raises(ArtifactError, match=r"cannot be the name of an adapter"):
            add_to_bank(bank, {name: late})
    with pytest.raises(ArtifactError, match=r"two adapters are called 'late'"):
        create_bank([late, late], tmp_path / "out")
    with pytest.raises(ArtifactError, match=r"spam is what programs get that know nothing of banks"):
        remove_from_bank(bank, "spam")
    with pytest.raises(ArtifactError, match=r"has no adapter 'nope'; there are spam, tone, topic"):
        remove_from_bank(bank, "nope")
    assert [row.name for row in list_bank(bank)] == [*VARIANTS]
    assert not (tmp_path / "out").exists()


def test_one_that_fails_its_proof_is_not_added(bank, late, monkeypatch):
    from adakron_export.validation import comparison

    monkeypatch.setattr(comparison, "bank_parameters_of", lambda *_: {"classifier.weight": np.ones((1, 32, 4), "f4")})
    result = add_to_bank(bank, {"late": late})
    assert not result.passed
    assert not result.written
    assert [row.name for row in list_bank(bank)] == [*VARIANTS]
    assert add_to_bank(bank, {"late": late}, settings=MakingSettings(force=True)).written


def damage(bank, name):
    file = bank / "adapters" / name / "adapter.safetensors"
    content = bytearray(file.read_bytes())
    content[-3] ^= 255
    file.unlink()
    file.write_bytes(content)


def test_a_damaged_adapter_is_named_and_can_be_left_out(bank, batch, caplog, cli):
    damage(bank, "tone")
    with pytest.raises(ArtifactError, match=r"adapters/tone/adapter.safetensors.*skip.damaged"):
        open_runner(bank)
    runner = open_runner(bank, skip_damaged=True)
    assert runner.names == ("spam", "topic")
    assert "adapter tone is left out" in caplog.text
    assert predict(bank, ["a film"], adapter="spam", skip_damaged=True)
    assert "label" in cli("predict", bank, "--text", "a film", "--adapter", "spam", "--skip-damaged", "--json").stdout
    assert "a film" in cli("predict", bank, "--text", "a film", "--adapter", "spam", "--skip-damaged").stdout
    cli("predict", bank, "--text", "a film", "--adapter", "tone", "--skip-damaged", code=2)
    assert runner.run(batch, "topic")["logits"].shape == (4, 2)
    with pytest.raises(ArtifactError, match=r"missing, or changed since it was written"):
        runner.add("tone", bank / "adapters/tone")
    with pytest.raises(ArtifactError, match=r"holds no adapter.json"):
        runner.add("tone", bank)


def rehash(bank):
    """As somebody who may write to the folder would."""
    for record in bank.glob("adapters/*/adapter.json"):
        content = read_object(record)
        content["weights_sha256"] = sha256_of(record.with_name("adapter.safetensors"))
        record.unlink()
        write_json(record, content)
    (bank / "adakron_export.json").rename(bank / "before.json")
    manifest = open_manifest(bank / "before.json")
    (bank / "before.json").unlink()
    write_manifest(bank, manifest)


def open_manifest(file):
    from adakron_export.artifacts.manifest import read_manifest

    return read_manifest(file, file.read_bytes())


def test_a_divergence_names_adapter_layer_and_node(bank, checkpoints, cli):
    file = bank / "adapters/tone/adapter.safetensors"
    tensors = load_file(file)
    name = next(name for name in tensors if name.endswith("layer.1.output.dense.up"))
    tensors[name] = tensors[name] * 1.5
    file.unlink()
    save_file(tensors, file)
    rehash(bank)
    reports = validate_bank(bank, against=checkpoints)
    assert {name: report.passed for name, report in reports.items()} == {"spam": True, "tone": False, "topic": True}
    found = reports["tone"].divergence
    assert (found.layer, found.part) == ("bert.encoder.layer.1.output.dense", "adapter")
    assert "(Gather) of bert.encoder.layer.1.output.dense" in found.node
    assert "its weight bert.encoder.layer.1.output.dense.up is not the reference's" in found.cause
    assert f"--against tone={checkpoints['tone']}" in reports["tone"].repeat
    assert "output.dense.up: 1 of 1 rows" in reports["tone"].weights.changed[0]
    against = [f"--against={name}={path}" for name, path in checkpoints.items()]
    shown = cli("validate", bank, *against, code=1).stdout
    assert shown.count("parity passed") == 2
    assert "adapter tone:" in shown
    with pytest.raises(RunnerError, match=r"is a bank; name one of its adapters"):
        validate(bank, against=checkpoints["tone"])


def tamper(bank, change):
    """Change the graph, or what lies beside it, as somebody who may write to the folder would."""
    model = ir.load(bank / "model.onnx")
    change(model)
    (bank / "model.onnx").unlink()
    write_model(model, bank)
    rehash(bank)


def test_what_plain_programs_run_is_held_against_the_first_adapter(bank, checkpoints):
    def change(model):
        value = model.graph.initializers["classifier.bias"]
        value.const_value = ir.tensor(value.const_value.numpy() + 1, name=value.name)

    tamper(bank, change)
    report = validate(Subject(bank, adapter="spam"), against=checkpoints["spam"])
    assert not report.passed
    assert "the graph's own classifier.bias is not that of the bank's first adapter" in report.mismatches[0]


def test_the_stacks_of_a_sealed_bank_are_what_is_compared(checkpoints, tmp_path):
    folder = tmp_path / "sealed"
    create_bank(checkpoints, folder, settings=BankSettings(sealed=4, validate=False))
    assert validate(Subject(folder, adapter="tone"), against=checkpoints["tone"]).passed
    file, place = folder / "model.onnx_adapters", open_artifact(folder).manifest.bank.adapters["tone"]
    tensor = ir.load(folder / "model.onnx").graph.initializers["classifier.bias"].const_value
    content = bytearray(file.read_bytes())
    start = tensor.offset + place * tensor.nbytes // 4
    content[start : start + 4] = np.float32(0.5).tobytes()
    file.write_bytes(content)
    rehash(folder)
    report = validate(Subject(folder, adapter="tone"), against=checkpoints["tone"])
    assert not report.passed
    assert report.weights.changed[0].startswith("classifier.bias")


def test_labels_are_held_against_the_adapters_own(bank, checkpoints):
    record = bank / "adapters/topic/adapter.json"
    content = read_object(record)
    content["labels"]["id2label"]["0"] = "other"
    record.unlink()
    write_json(record, content)
    rehash(bank)
    report = validate(Subject(bank, adapter="topic"), against=checkpoints["topic"])
    assert not report.passed
    assert "labels: 0 is 'other', in the reference 'topic-0'" in report.mismatches[0]


def test_writers_at_once_lose_nothing(bank, late):
    code = (
        "import sys; from adakron_export import MakingSettings, add_to_bank; "
        "add_to_bank(sys.argv[1], {sys.argv[2]: sys.argv[3]}, settings=MakingSettings(validate=False))"
    )
    writers = [subprocess.Popen([sys.executable, "-c", code, bank, name, late]) for name in ("one", "two", "three")]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    names = [row.name for row in list_bank(bank)]
    assert names[:3] == [*VARIANTS]
    assert sorted(names[3:]) == ["one", "three", "two"]


def test_a_change_that_others_overtake_again_and_again_makes_them_wait(bank, late, monkeypatch):
    link, writers = os.link, {}

    def overtake(name):
        add_to_bank(bank, {name: late}, settings=MakingSettings(validate=False))

    def linked(source, place, **options):
        if threading.current_thread() is threading.main_thread() and Path(source).name == "README.md":
            name = f"other-{len(writers)}"
            writers[name] = threading.Thread(target=overtake, args=[name])
            writers[name].start()
            writers[name].join(timeout=2)  # it waits where the bank is locked
        link(source, place, **options)

    monkeypatch.setattr(os, "link", linked)
    monkeypatch.setattr("adakron_export.artifacts.artifact._TRIES", 2)
    monkeypatch.setattr("adakron_export.verbs.bank_folder._TRIES", 1)
    remove_from_bank(bank, "tone")
    for writer in writers.values():
        writer.join()
    assert {row.name for row in list_bank(bank)} == {"spam", "topic", *writers}
    assert len(writers) > 2


KILLED = """
import os, signal, sys
from adakron_export import remove_from_bank
folder, left = sys.argv[1], int(sys.argv[2])
name, count = os.path.basename(folder), 0
def watch(event, arguments):
    global count
    if event in ("os.link", "os.rename", "os.remove", "os.rmdir", "open") and name in str(arguments):
        count += 1
        if count == left:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(watch)
remove_from_bank(folder, "tone")
print(count)
"""


def test_a_killed_change_leaves_the_old_bank_or_the_new_one(bank):
    def run(folder, left):
        return subprocess.run([sys.executable, "-c", KILLED, folder, str(left)], capture_output=True, text=True)

    whole = run(shutil.copytree(bank, bank.with_name("bank-whole")), 0)
    events, seen = int(whole.stdout), []
    for left in sorted({1 + index * (events - 1) // 7 for index in range(8)}):
        folder = shutil.copytree(bank, bank.with_name(f"bank-{left}"))
        assert run(folder, left).returncode == -signal.SIGKILL
        seen.append(tuple(row.name for row in list_bank(folder)))
    assert {*seen} == {("spam", "tone", "topic"), ("spam", "topic")}


def test_a_sealed_bank_needs_no_inputs(checkpoints, late, batch, tmp_path, made):
    folder = tmp_path / "sealed"
    assert create_bank(checkpoints, folder, settings=BankSettings(sealed=4)).passed
    usual = open_runner(made.folder)
    session = ort.InferenceSession(folder / "model.onnx", quietly())
    rows = session.run(None, {**batch, "adapter_ids": np.array([1, 0, 2, 1])})[0]
    expected = usual.run(batch, ["tone", "spam", "topic", "tone"])["logits"]
    for row, wanted in zip(rows, expected, strict=True):
        np.testing.assert_allclose(row[: len(wanted)], wanted, rtol=0, atol=1e-6)
    graph = sha256_of(folder / "model.onnx")
    before = open_runner(folder)
    assert add_to_bank(folder, {"late": late}).passed
    assert sha256_of(folder / "model.onnx") == graph
    with pytest.raises(RunnerError, match=r"no adapter 'late'"):
        before.run(batch, "late")  # it holds the file that it opened
    with pytest.raises(RunnerError, match=r"the bank is sealed"):
        before.add("late", folder / "adapters/late")
    after = open_runner(folder)
    for name in VARIANTS:
        np.testing.assert_array_equal(after.run(batch, name)["logits"], before.run(batch, name)["logits"])
    assert after.run(batch, "late")["logits"].shape == (4, 4)
    with pytest.raises(ArtifactError, match=r"has 4 places, and 5 adapters would be in it"):
        add_to_bank(folder, {"more": late})
    remove_from_bank(folder, "tone")
    add_to_bank(folder, {"more": late}, settings=MakingSettings(validate=False))
    assert open_artifact(folder).manifest.bank.adapters == {"spam": 0, "topic": 2, "late": 3, "more": 1}
    with pytest.raises(ArtifactError, match=r"is sealed"):
        export_adapter(folder, "spam", tmp_path / "spam.onnx_adapter")


def test_one_adapter_goes_to_onnx_runtimes_own_interface(made, batch, tmp_path, cli):
    file = tmp_path / "tone.onnx_adapter"
    cli("bank", "export", made.folder, "tone", "-o", file)
    session, adapter, options = ort.InferenceSession(made.folder / "model.onnx", quietly()), ort.LoraAdapter(), None
    adapter.Load(str(file))
    options = ort.RunOptions()
    options.add_active_adapter(adapter)
    expected = open_runner(made.folder).run(batch, "tone")["logits"]
    np.testing.assert_array_equal(session.run(None, batch, options)[0], expected)
    with pytest.raises(ArtifactError, match=r"is there already"):
        export_adapter(made.folder, "tone", file)
    secret = tmp_path / "secret"
    secret.write_text("secret")
    (tmp_path / ".other.onnx_adapter.partial").symlink_to(secret)
    export_adapter(made.folder, "tone", tmp_path / "other.onnx_adapter")
    assert secret.read_text() == "secret"


def test_plain_onnxruntime_feeds_a_bank(made, batch):
    """What the page on banks shows."""
    adapters = [load_file(made.folder / "adapters" / name / "adapter.safetensors") for name in VARIANTS]
    stacks = {name: np.stack([adapter[name] for adapter in adapters]) for name in adapters[0]}
    session = ort.InferenceSession(made.folder / "model.onnx", quietly())
    found = session.run(None, {**batch, **stacks, "adapter_ids": np.array([2, 1, 0, 0])})[0]
    expected = open_runner(made.folder).run(batch, ["topic", "tone", "spam", "spam"])["logits"]
    for row, each in zip(found, expected, strict=True):
        np.testing.assert_array_equal(row[: len(each)], each)


@pytest.mark.parametrize(
    ("target", "dtype", "limit"),
    first(
        2,
        [("portable", "fp16", 0.1), ("ort-cpu", "fp32", 1e-5), ("portable", "int8", 0.5), ("openvino", "fp32", 1e-5)],
    ),
)
def test_banks_of_targets_and_dtypes(target, dtype, limit, checkpoints, batch, tmp_path, made):
    assert create_bank(checkpoints, tmp_path / "bank", target=target, dtype=dtype).passed
    subject = Subject(tmp_path / "bank", device="openvino" if target == "openvino" else "cpu")
    assert all(report.passed for report in validate_bank(subject, against=checkpoints).values())
    runner = open_runner(tmp_path / "bank", device="openvino" if target == "openvino" else "cpu")
    names = ["tone", "spam", "topic", "tone"]
    found, expected = (each.run(batch, names)["logits"] for each in (runner, open_runner(made.folder)))
    for row, wanted in zip(found, expected, strict=True):
        np.testing.assert_allclose(row, wanted, rtol=0, atol=limit)


@pytest.mark.parametrize(
    ("model_type", "task", "saved"),
    first(
        3,
        [
            ("roberta", Task.TEXT_CLASSIFICATION, None),  # a head of two layers
            ("gpt2", Task.TEXT_CLASSIFICATION, None),  # a head without a bias, projections that are Conv1D
            ("bert", Task.FILL_MASK, ["transform"]),  # with a LayerNorm
            ("distilbert", Task.TOKEN_CLASSIFICATION, None),
            ("vit", Task.IMAGE_CLASSIFICATION, ["classifier"]),
            ("bert", Task.QUESTION_ANSWERING, None),
        ],
    ),
)
def test_heads_go_with_their_adapters(model_type, task, saved, tmp_path):
    backbone = tmp_path / "backbone"
    backbone_of(model_type, task).save_pretrained(backbone)
    members = {
        name: save_member(tmp_path / name, backbone, task=task, modules_to_save=saved, r=8, k=4)
        for name in ("one", "three")
    }
    subjects = {name: Subject(path, task=task.value) for name, path in members.items()}
    result = create_bank(subjects, tmp_path / "bank")
    assert result.passed
    assert open_artifact(tmp_path / "bank").manifest.bank.layout.heads
    assert open_runner(tmp_path / "bank").names == ("one", "three")


@pytest.mark.parametrize(("model_type", "task"), [("bert", Task.FEATURE_EXTRACTION), ("gpt2", Task.TEXT_GENERATION)])
def test_without_heads_the_bare_backbone_answers_too(model_type, task, tmp_path):
    backbone = tmp_path / "backbone"
    backbone_of(model_type, task).save_pretrained(backbone)
    members = {name: save_member(tmp_path / name, backbone, task=task) for name in ("one", "three")}
    result = create_bank({name: Subject(path, task=task.value) for name, path in members.items()}, tmp_path / "bank")
    assert result.passed
    assert result.parity["__base__"].passed
    bank = open_artifact(tmp_path / "bank").manifest.bank
    assert (bank.adapters, bank.first) == ({"__base__": 0, "one": 1, "three": 2}, "one")
    with pytest.raises(ArtifactError, match=r"__base__ is what programs get"):
        remove_from_bank(tmp_path / "bank", "__base__")


def test_an_adapter_with_tokens_of_its_own_is_refused(late, backbone, tmp_path):
    folder = save_member(tmp_path / "tokens", backbone)
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    tensors["base_model.model.bert.embeddings.word_embeddings.weight"] = load_file(backbone / "model.safetensors")[
        "embeddings.word_embeddings.weight"
    ]
    save_file(tensors, file)
    with pytest.raises(ExportError, match=r"brings its own bert.embeddings.word_embeddings.weight"):
        create_bank({"one": late, "tokens": folder}, tmp_path / "out")


def test_a_bank_predicts_with_the_labels_of_each_adapter(made, cli, tmp_path):
    texts = ["the film was good", "a bad plot", "who lives in Paris"]
    found = predict(made.folder, texts, adapter=["tone", "spam", "topic"])
    assert [row["label"].partition("-")[0] for row in found] == ["tone", "spam", "topic"]
    table = tmp_path / "texts.csv"
    table.write_text(
        "team,body\n"
        + "".join(f"{name},{text}\n" for name, text in zip(["tone", "spam", "topic"], texts, strict=True))
    )
    rows = json.loads(cli("predict", made.folder, "--input", table, "--adapter-column", "team", "--json").stdout)
    assert [row["result"] for row in rows] == found
    assert [row["text"] for row in rows] == texts
    shown = cli("predict", made.folder, "--text", "a bad plot", "--adapter", "spam").stdout
    assert found[1]["label"] in shown
    with pytest.raises(RunnerError, match=r"is a bank; say which adapter answers, with --adapter"):
        predict(made.folder, texts)
    cli("predict", made.folder, "--text", "x", "--adapter", "spam", "--adapter-column", "team", code=2)
    model = OnnxModel.from_pretrained(made.folder, adapter="topic")
    assert model.config.id2label == {0: "topic-0", 1: "topic-1"}


def test_the_command_line_makes_and_lists_a_bank(checkpoints, late, tmp_path, cli):
    folder = tmp_path / "bank"
    shown = cli("bank", "create", f"first={late}", checkpoints["spam"], "-o", folder).stdout
    assert "first: largest absolute error" in shown
    assert f"wrote {folder}: 2 adapters" in shown
    shown = cli("bank", "list", folder).stdout
    assert [line.split()[:2] for line in shown.splitlines()] == [["0", "first"], ["1", "spam"]]
    cli("bank", "add", folder, checkpoints["topic"], "--no-validate")
    cli("bank", "remove", folder, "spam")
    rows = json.loads(cli("bank", "list", folder, "--json").stdout)
    assert [(row["name"], row["id"], row["max_abs_error"] is None) for row in rows] == [
        ("first", 0, False),
        ("topic", 1, True),
    ]
    assert "bank  " in cli("inspect", folder).stdout
    assert "a bank of 2 AdaKron adapters (`first`, `topic`)" in (folder / "README.md").read_text()
    shown = cli("bank", "create", f"a={late}", f"a={checkpoints['tone']}", "-o", tmp_path / "out", code=2).output
    assert "two adapters are called 'a'" in shown
    cli("bank", "add", checkpoints["tone"], late, code=2)


def test_a_plain_artifact_has_no_adapters_to_choose_from(checkpoints, tmp_path, batch):
    folder = tmp_path / "artifact"
    export_onnx(checkpoints["spam"], folder, settings=ExportSettings(validate=False))
    for ask in (
        lambda: open_runner(folder, adapter="spam"),
        lambda: predict(folder, ["a text"], adapter="spam"),
        lambda: open_bank(folder),
        lambda: open_runner(folder, skip_damaged=True),
        lambda: add_to_bank(folder, checkpoints),
        lambda: list_bank(folder),
    ):
        with pytest.raises(AdaKronError, match=r"no bank|of one adapter"):
            ask()


def test_an_engine_takes_a_bank_with_room_for_more(checkpoints, made, tmp_path):
    pytest.importorskip("tensorrt_rtx", reason="needs the extra tensorrt-rtx")
    shapes = EngineShapes(min_shape=(1, 1), opt_shape=(2, 16), max_shape=(4, 32), max_adapters=64)
    create_bank(checkpoints, tmp_path / "bank", target="tensorrt", dtype="fp16", settings=UNPROVEN)
    manifest = export_engine(tmp_path / "bank", tmp_path / "engine", flavor="rtx", shapes=shapes).folder.manifest
    assert (manifest.max_adapters, [*manifest.bank.adapters]) == (64, [*VARIANTS])
    assert "adapter_ids:1," in manifest.command
    assert (tmp_path / "engine/adapters/tone/adapter.safetensors").is_file()
    with pytest.raises(EngineError, match=r"make the bank with --target tensorrt"):
        export_engine(made.folder, tmp_path / "other", flavor="rtx", shapes=shapes)

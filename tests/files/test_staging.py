"""Folders appear whole or not at all."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from adakron_export import ExportSettings, export_onnx, open_artifact
from adakron_export.errors import AdaKronError, ArtifactError, CheckpointError
from adakron_export.files import staging
from adakron_export.files.staging import put_in_place, staged_folder, write_text
from conftest import DEMO, stages
from tiny import first


def test_only_our_own_folders_are_replaced(tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/final.tex").write_text("years of work")
    with pytest.raises(ArtifactError, match="thesis is a folder with other things in it"):
        export_onnx(DEMO, tmp_path / "thesis")
    assert (tmp_path / "thesis/final.tex").exists()
    (tmp_path / "link").symlink_to(tmp_path / "thesis")
    with pytest.raises(ArtifactError, match="symbolic link"):
        export_onnx(DEMO, tmp_path / "link")


KILLED_EXPORT = """
import logging, os, signal, sys
from adakron_export import Limits, export_onnx
from adakron_export.files import staging
from adakron_export.verbs import onnx
checkpoint, output, moment = sys.argv[1:]
def die(stage):
    if stage.startswith(moment):
        os.kill(os.getpid(), signal.SIGKILL)
def dying(stage, function):
    return lambda *arguments, **options: (die(stage), function(*arguments, **options))[1]
onnx.put_in_place = dying("put in place", onnx.put_in_place)
staging.shutil.rmtree = dying("clean up", staging.shutil.rmtree)
class Dying(logging.Handler):
    def emit(self, record):
        die(record.getMessage())
logging.getLogger("adakron_export").addHandler(Dying())
logging.getLogger("adakron_export").setLevel(logging.INFO)
export_onnx(checkpoint, output, overwrite=True, limits=Limits(atol=1e-3))
"""


@pytest.mark.parametrize("moment", first(2, ["put in place", "clean up", "write the model", "batch 6"]))
def test_killed_export_leaves_the_old_artifact_or_the_new_one(demo_artifact, tmp_path, moment):
    out = tmp_path / "out"
    shutil.copytree(demo_artifact, out)
    killed = subprocess.run([sys.executable, "-c", KILLED_EXPORT, DEMO, out, moment], check=False)
    assert killed.returncode == -signal.SIGKILL
    # Opening checks the sha256 of every file; the tolerance tells which of the two it is.
    tolerance = open_artifact(out).parity()["tolerance"]["absolute"]
    assert tolerance == (1e-3 if moment == "clean up" else 1e-4)
    with staged_folder(out):
        assert len(list(tmp_path.iterdir())) == 2  # what the killed run left is gone; this is out and its own
    assert list(tmp_path.iterdir()) == [out]


HOLD = """
import sys, time
from pathlib import Path
from adakron_export.files.staging import staged_folder
with staged_folder(Path(sys.argv[1])) as staged:
    print(staged.name, flush=True)
    time.sleep(60)
"""


def test_leftovers_of_a_killed_run_are_removed_and_of_a_live_one_kept(tmp_path):
    runs = [subprocess.Popen([sys.executable, "-c", HOLD, tmp_path / "out"], stdout=subprocess.PIPE, text=True)
            for _ in range(2)]  # fmt: skip
    killed, live = (run.stdout.readline().strip() for run in runs)
    runs[0].kill()
    runs[0].wait()
    (tmp_path / "out").mkdir()
    (tmp_path / "out/old").write_text("old")
    assert {killed, live} < {path.name for path in tmp_path.iterdir()}
    with staged_folder(tmp_path / "out") as staged:
        (staged / "new").write_text("new")
        put_in_place(staged, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == [live, "out"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["new"]
    runs[1].kill()
    runs[1].communicate()
    runs[0].communicate()


def test_a_folder_that_another_run_sweeps_before_it_is_locked_is_made_anew(tmp_path, monkeypatch):
    made = []

    def swept(**place):
        made.append(tempfile.mkdtemp(**place))
        if len(made) == 1:
            Path(made[0]).rmdir()
        return made[-1]

    monkeypatch.setattr(staging, "tempfile", SimpleNamespace(mkdtemp=swept))
    with staged_folder(tmp_path / "out") as staged:
        assert str(staged) == made[1]
        assert staged.is_dir()


def test_nothing_of_the_users_is_deleted(demo_artifact, tmp_path):
    out = shutil.copytree(demo_artifact, tmp_path / "out")
    (out / "MY_NOTES.txt").write_text("years of work")
    with pytest.raises(ArtifactError, match="files that this did not write: MY_NOTES.txt"):
        export_onnx(DEMO, out, overwrite=True)
    assert (out / "MY_NOTES.txt").read_text() == "years of work"


def test_what_comes_into_the_place_while_an_export_runs_is_kept(demo_artifact, tmp_path):
    out = shutil.copytree(demo_artifact, tmp_path / "out")

    def note(stage):
        if stage.startswith("write the model"):
            (out / "MY_NOTES.txt").write_text("just now")

    with pytest.raises(AdaKronError, match=r"MY_NOTES.txt"), stages(note):
        export_onnx(DEMO, out, overwrite=True, settings=ExportSettings(validate=False))
    assert (out / "MY_NOTES.txt").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_convert_over_a_checkpoint_keeps_what_is_not_its_own(tmp_path):
    from adakron_export import convert
    from conftest import reference_case

    case = reference_case("bert-glue-r48")
    folder = convert(case.file, tmp_path / "out", backbone=case.backbone)
    (folder / "train.tsv").write_text("text")
    with pytest.raises(CheckpointError, match=r"train\.tsv"):
        convert(case.file, folder, backbone=case.backbone, overwrite=True)
    assert (folder / "train.tsv").exists()
    (folder / "train.tsv").unlink()
    assert convert(case.file, folder, backbone=case.backbone, overwrite=True) == folder


def test_a_link_that_waits_under_a_temporary_name_is_not_written_through(tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("secret")
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in (".report.json.partial", "report.json.partial", "report.json"):
        (folder / name).symlink_to(secret)
    write_text(folder / "report.json", "{}")
    assert secret.read_text() == "secret"
    assert not (folder / "report.json").is_symlink()


def test_a_full_disk_leaves_the_old_file_and_names_it(tmp_path, monkeypatch):
    file = tmp_path / "results.jsonl"
    write_text(file, "old")
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device")))
    with pytest.raises(OSError, match=r"results.jsonl"):
        write_text(file, "new")
    assert file.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["results.jsonl"]


def test_streams_are_written_to_as_they_are(tmp_path, demo_artifact):
    os.mkfifo(tmp_path / "pipe")
    reader = subprocess.Popen(["cat", tmp_path / "pipe"], stdout=subprocess.PIPE, text=True)
    write_text(tmp_path / "pipe", "through the pipe")
    assert reader.communicate()[0] == "through the pipe"
    words = ["predict", str(demo_artifact), "--text", "x", "-o", "/dev/stdout"]
    code = "import sys; from adakron_export.cli.main import main; main(sys.argv[1:])"
    shown = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True)
    assert shown.stdout.startswith('{"text": "x"')
    assert os.path.islink("/dev/stdout")  # noqa: PTH114 - it leads to a pipe


def test_links_out_of_a_checkpoint_are_not_followed(tmp_path):
    secret = tmp_path / "secret.json"
    secret.write_text('{"password": "x"}')
    checkpoint = shutil.copytree(DEMO, tmp_path / "checkpoint")
    (checkpoint / "generation_config.json").symlink_to(secret)
    with pytest.raises(CheckpointError, match=r"generation_config.json is a link out of its folder"):
        export_onnx(checkpoint, tmp_path / "out", settings=ExportSettings(validate=False))
    assert not (tmp_path / "out").exists()


def test_the_links_of_the_hubs_cache_are_followed(tmp_path):
    from adakron_export.tokenization.companions import copy_companions

    blobs, snapshot = tmp_path / "models--a--b/blobs", tmp_path / "models--a--b/snapshots/abc"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    (blobs / "123").write_text("{}")
    (snapshot / "generation_config.json").symlink_to("../../blobs/123")
    (tmp_path / "out").mkdir()
    copy_companions((snapshot,), tmp_path / "out")
    assert (tmp_path / "out/generation_config.json").read_text() == "{}"


WRITE = """
import sys
from dataclasses import replace
from adakron_export import ExportSettings, export_onnx, open_artifact
from adakron_export.artifacts.artifact import update_manifest
what, folder, checkpoint = sys.argv[1:]
for number in range(40):
    if what == "tune":
        update_manifest(open_artifact(folder), lambda manifest: replace(manifest, versions={"run": str(number)}))
    else:
        export_onnx(checkpoint, folder, overwrite=True, settings=ExportSettings(validate=False))
        if number == 2:
            break
"""
READ = """
import sys
from adakron_export import open_runner
from pathlib import Path
import numpy as np
folder, stop = Path(sys.argv[1]), Path(sys.argv[2])
ids, reads = np.array([[2, 9, 3]]), 0
while not stop.exists():
    open_runner(folder).run({"input_ids": ids, "attention_mask": ids * 0 + 1, "token_type_ids": ids * 0})
    reads += 1
print(reads)
"""


@pytest.mark.parametrize(("what", "writers"), first(1, [("tune", 3), ("export", 1)]))
def test_readers_see_the_old_artifact_or_the_new_one(what, writers, demo_artifact, tmp_path):
    folder, stop = shutil.copytree(demo_artifact, tmp_path / "out"), tmp_path / "stop"
    reader = subprocess.Popen(
        [sys.executable, "-c", READ, folder, stop], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    running = [subprocess.Popen([sys.executable, "-c", WRITE, what, folder, DEMO]) for _ in range(writers)]
    ended = [writer.wait() for writer in running]
    stop.touch()
    out, err = reader.communicate()
    assert ended == [0] * writers
    assert reader.returncode == 0, err.decode()[-2000:]
    assert int(out) > 3
    assert open_artifact(folder)


def test_interrupted_block_leaves_the_old_folder(tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(KeyboardInterrupt), staged_folder(tmp_path / "out") as staged:
        (staged / "new").write_text("new")
        raise KeyboardInterrupt
    assert [path.name for path in tmp_path.iterdir()] == ["out"]

"""Folders appear whole or not at all."""

import os
import shutil
import signal
import subprocess
import sys

import pytest

from adakron_export import export_onnx, open_artifact
from adakron_export.errors import ArtifactError
from conftest import DEMO


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
import os, signal, sys
from adakron_export import export, export_onnx, staging
checkpoint, output, moment = sys.argv[1:]
def die(stage):
    if stage.startswith(moment):
        os.kill(os.getpid(), signal.SIGKILL)
def dying(stage, function):
    return lambda *arguments, **options: (die(stage), function(*arguments, **options))[1]
export.put_in_place = dying("put in place", export.put_in_place)
staging.shutil.rmtree = dying("clean up", staging.shutil.rmtree)
export_onnx(checkpoint, output, atol=1e-3, overwrite=True, progress=die)
"""


@pytest.mark.parametrize("moment", ["write the model", "batch 6", "put in place", "clean up"])
def test_killed_export_leaves_the_old_artifact_or_the_new_one(demo_artifact, tmp_path, moment):
    from adakron_export.staging import staged_folder

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


def test_leftovers_of_a_killed_run_are_removed_and_of_a_live_one_kept(tmp_path):
    from adakron_export.staging import put_in_place, staged_folder

    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    killed = tmp_path / f".out.{dead.pid}.abc.partial"
    live = tmp_path / f".out.{os.getppid()}.abc.partial"
    killed.mkdir()
    live.mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out/old").write_text("old")
    with staged_folder(tmp_path / "out") as staged:
        (staged / "new").write_text("new")
        put_in_place(staged, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == [live.name, "out"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["new"]


def test_interrupted_block_leaves_the_old_folder(tmp_path):
    from adakron_export.staging import staged_folder

    (tmp_path / "out").mkdir()
    with pytest.raises(KeyboardInterrupt), staged_folder(tmp_path / "out") as staged:
        (staged / "new").write_text("new")
        raise KeyboardInterrupt
    assert [path.name for path in tmp_path.iterdir()] == ["out"]

"""What goes to the hub; the hub itself is stood in for."""

from types import SimpleNamespace

import pytest
import yaml

from adakron_export import Limits, export_onnx, push_to_hub
from adakron_export.artifacts.card_metadata import front_matter
from adakron_export.errors import AdaKronError
from conftest import DEMO
from tiny import save_checkpoint


@pytest.fixture
def hub(monkeypatch):
    asked = []

    class Api:
        def __init__(self, token=None):
            self.token = token

        def create_repo(self, name, *, private, exist_ok):
            if name == "nobody/refused":
                raise OSError("401: log in first")
            asked.append(("create", name, private, exist_ok))
            return SimpleNamespace(repo_id=name)

        def upload_folder(self, *, repo_id, folder_path, commit_message):
            asked.append(("upload", repo_id, sorted(file.name for file in folder_path.iterdir()), commit_message))
            return f"https://hub.example/{repo_id}"

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    return asked


def test_a_checkpoint_and_an_artifact_are_uploaded_whole(hub, demo_artifact):
    assert push_to_hub(DEMO, "somebody/demo") == "https://hub.example/somebody/demo"
    push_to_hub(demo_artifact, "somebody/artifact", private=True)
    assert [row[:2] for row in hub] == [("create", "somebody/demo"), ("upload", "somebody/demo"),
                                        ("create", "somebody/artifact"), ("upload", "somebody/artifact")]  # fmt: skip
    assert hub[2][2:] == (True, True)
    assert {"model.onnx", "README.md", "adakron_export.json"} <= {*hub[3][2]}


def test_what_is_neither_and_what_the_hub_refuses(hub, tmp_path):
    with pytest.raises(AdaKronError, match="neither a checkpoint"):
        push_to_hub(tmp_path, "somebody/nothing")
    with pytest.raises(AdaKronError, match="cannot be pushed to nobody/refused: 401: log in first"):
        push_to_hub(DEMO, "nobody/refused")
    assert hub == []


def test_from_the_command_line(hub, cli, tmp_path):
    checkpoint = save_checkpoint(tmp_path, "bert")
    result = cli("onnx", checkpoint, "-o", tmp_path / "out", "--push-to-hub", "somebody/tiny", "--private")
    assert "pushed to https://hub.example/somebody/tiny" in result.stderr
    assert hub[0] == ("create", "somebody/tiny", True, True)
    cli("onnx", checkpoint, "-o", tmp_path / "again", "--private", code=2)


def test_cards_name_backbone_and_metrics_for_the_hub(tmp_path):
    card = export_onnx(DEMO, tmp_path / "out", dtype="int8", data=DEMO / "train.tsv", limits=Limits(max_drop=5))
    assert card.written
    head = yaml.safe_load((tmp_path / "out/README.md").read_text().split("---")[1])
    (result,) = head["model-index"][0]["results"]
    assert result["dataset"]["name"] == "train.tsv"
    assert result["metrics"][0] == {"type": "accuracy", "value": pytest.approx(card.attempts[-1].candidate, abs=1e-5)}
    assert "base_model" not in head  # a folder is no model of the hub
    text = front_matter(library="peft", task="fill-mask", backbone="a/b: c", tags=("x",), name="n", data=None)
    assert yaml.safe_load(text.strip("-"))["base_model"] == "a/b: c"

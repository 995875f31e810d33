"""A training run from the command and from Python: what it learns, what it writes, how it goes on."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from adakron_export import Recipe, export_onnx, open_runner, predict, train
from adakron_export.errors import CheckpointError, TrainingError
from adakron_export.tasks import Task
from adakron_export.training.augmentation import drop_tokens
from adakron_export.training.averaging import WeightAverage
from conftest import stages
from tiny import first, save_backbone

GOOD, BAD = ("good", "great", "fine", "nice"), ("bad", "awful", "poor", "sad")


def sentiment_rows(count: int = 128) -> list[tuple[str, str]]:
    draw = random.Random(0)
    rows = []
    for index in range(count):
        label, words = ("good news", GOOD) if index % 2 else ("bad news", BAD)
        tail = draw.choice(("", " and very nice" if label == "good news" else " and very sad"))
        rows.append((f"the {draw.choice(('film', 'plot', 'actor'))} was {draw.choice(words)}{tail}", label))
    return rows


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    torch.manual_seed(0)
    return save_backbone(tmp_path_factory.mktemp("training") / "backbone")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    file = tmp_path_factory.mktemp("data") / "reviews.csv"
    file.write_text("review,verdict\n" + "".join(f"{text},{label}\n" for text, label in sentiment_rows()))
    return file


def recipe_of(backbone, data, **changes):
    settings = {"r": 8, "epochs": 4.0, "batch_size": 8, "learning_rate": 1e-2, "seed": 3, **changes}
    return Recipe(backbone=str(backbone), data=str(data), **settings)


@pytest.fixture(scope="module")
def trained(backbone, data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "out"
    with stages() as notes:
        return train(recipe_of(backbone, data), folder), notes


def test_it_learns_and_says_what_it_guessed(trained):
    result, notes = trained
    assert result.metrics["accuracy"] >= 0.9
    text = "\n".join(notes)
    assert "text from 'review', labels from 'verdict'" in text
    assert "2 labels: bad news, good news" in text
    assert "13 of 128 rows are held out" in text
    assert f"{result.parameters.trainable:,}" in next(note for note in notes if "frozen" in note)


def test_only_adapters_and_head_are_trained(trained, backbone):
    result, _ = trained
    tensors = load_file(result.folder / "adapter_model.safetensors")
    assert sum(tensor.numel() for tensor in tensors.values()) == result.parameters.trainable
    assert result.parameters.head == sum(t.numel() for name, t in tensors.items() if "adakron_" not in name)
    fresh = load_file(backbone / "model.safetensors")
    model = PeftModel.from_pretrained(
        AutoModelForSequenceClassification.from_pretrained(backbone, num_labels=2), result.folder
    )
    state = model.get_base_model().bert.embeddings.word_embeddings.weight
    torch.testing.assert_close(state, fresh["bert.embeddings.word_embeddings.weight"], rtol=0, atol=0)


def test_the_folder_is_complete_and_explains_itself(trained, data):
    folder = trained[0].folder
    names = {path.name for path in folder.iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "config.json", "README.md", "training.json",
            "curves.png", "tensorboard", "tokenizer.json"} <= names  # fmt: skip
    assert "training" not in names
    config = json.loads((folder / "config.json").read_text())
    assert config["id2label"] == {"0": "bad news", "1": "good news"}
    record = json.loads((folder / "training.json").read_text())
    losses = [row["loss"] for row in record["history"] if "loss" in row]
    assert losses[-1] < losses[0]
    card = (folder / "README.md").read_text()
    assert record["data"]["train"] in card
    assert "learning_rate: 0.01" in card
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_tensorboard_has_the_curves(trained):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(trained[0].folder / "tensorboard"))
    events.Reload()
    assert {"train/loss", "eval/accuracy"} <= set(events.Tags()["scalars"])
    assert len(events.Scalars("eval/accuracy")) == 4


def test_the_artifact_predicts_what_the_trained_model_does(trained, tmp_path):
    folder = trained[0].folder
    assert export_onnx(folder, tmp_path / "artifact").written
    found = predict(tmp_path / "artifact", ["the film was great", "the plot was awful"])
    assert [row["label"] for row in found] == ["good news", "bad news"]
    config = json.loads((folder / "adapter_config.json").read_text())
    model = AutoModelForSequenceClassification.from_pretrained(config["base_model_name_or_path"], num_labels=2)
    model = PeftModel.from_pretrained(model, folder).eval()
    inputs = AutoTokenizer.from_pretrained(folder)(["the film was great"], return_tensors="pt")
    runner = open_runner(tmp_path / "artifact")
    got = runner.run({name: inputs[name].numpy() for name in runner.input_names})["logits"]
    with torch.no_grad():
        np.testing.assert_allclose(got, model(**inputs).logits.numpy(), rtol=0, atol=1e-5)


KILLED_TRAINING = """
import os, signal, sys, json
from pathlib import Path
from adakron_export import Recipe, train
from adakron_export.training import trainer
from adakron_export.verbs import train as run
settings, output, moment, step, resume = sys.argv[1:]
def die(*arguments, **options):
    os.kill(os.getpid(), signal.SIGKILL)
class Dying(trainer.AdaKronTrainer):
    def training_step(self, *arguments, **options):
        if moment == "step" and self.state.global_step >= int(step):
            die()
        return super().training_step(*arguments, **options)
    def _save_rng_state(self, folder):  # after the weights, before the state
        if moment == "save" and self.state.global_step >= int(step):
            (Path(folder) / "adapter_model.safetensors").write_bytes(b"half")
            die()
        super()._save_rng_state(folder)
trainer.AdaKronTrainer = Dying
if moment == "finish":
    import adakron_export.files.staging
    adakron_export.files.staging.put_in_place = die
train(None if resume == "yes" else Recipe(**json.loads(settings)), output, resume=resume == "yes")
"""


def run_until(settings, output, moment, step=0, *, resume):
    arguments = [json.dumps(settings), str(output), moment, str(step), "yes" if resume else "no"]
    return subprocess.run(
        [sys.executable, "-c", KILLED_TRAINING, *arguments], check=False, capture_output=True, text=True
    )


@pytest.mark.parametrize(
    "moments",
    first(1, [
        [("step", 8), ("save", 15), ("finish", 0)],
        [("save", 12), ("save", 15), ("step", 20), ("save", 30), ("finish", 0)],
    ]),
)  # fmt: skip
def test_a_run_killed_anywhere_ends_in_the_same_weights(moments, backbone, data, tmp_path):
    """A mixture, dropout, accumulation, an average: everything that draws random numbers or counts batches."""
    changes = {"num_experts": 3, "gradient_accumulation": 2, "save_steps": 3, "batch_size": 4, "epochs": 2.0,
               "token_dropout": 0.2, "average": 0.9}  # fmt: skip
    recipe = recipe_of(backbone, data, **changes)
    whole = train(recipe, tmp_path / "whole")
    assert whole.steps == 30
    out = tmp_path / "killed"
    for index, (moment, step) in enumerate(moments):
        done = run_until(recipe.to_json(), out, moment, step, resume=index > 0)
        assert done.returncode == -signal.SIGKILL, done.stderr
        assert not (out / "adapter_config.json").exists()
        with pytest.raises(CheckpointError, match="training has not finished.*--resume"):
            export_onnx(out, tmp_path / "artifact")
    with stages() as notes:
        resumed = train(None, out, resume=True)
    assert "resume from checkpoint-30" in "\n".join(notes)
    assert resumed.metrics == whole.metrics
    for name in ("adapter_model.safetensors", "adapter_config.json", "config.json"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    histories = [json.loads((folder / "training.json").read_text())["history"] for folder in (out, whole.folder)]
    curves = [[(row["step"], row.get("loss"), row.get("eval_loss")) for row in rows] for rows in histories]
    assert curves[0] == curves[1]


@pytest.fixture
def unfinished(backbone, data, tmp_path):
    out = tmp_path / "out"
    recipe = recipe_of(backbone, data, epochs=1.0, save_steps=2)
    assert run_until(recipe.to_json(), out, "step", 5, resume=False).returncode == -signal.SIGKILL
    return out, recipe


def test_an_unfinished_run_is_neither_overwritten_nor_changed_unawares(unfinished, backbone, data, tmp_path):
    out, recipe = unfinished
    with pytest.raises(TrainingError, match="has not finished; --resume goes on with it, --overwrite begins anew"):
        train(recipe, out)
    with pytest.raises(TrainingError, match=r"changed: learning_rate 0.01 -> 0.5"):
        train(recipe_of(backbone, data, epochs=1.0, save_steps=2, learning_rate=0.5), out, resume=True)
    other = tmp_path / "other.csv"
    other.write_text(data.read_text().replace("very", "not", 1))
    with pytest.raises(TrainingError, match="the data has changed"):
        train(recipe_of(backbone, other, epochs=1.0, save_steps=2), out, resume=True)
    assert train(recipe, out, overwrite=True).metrics


def test_a_run_moves_with_its_data_and_backbone(unfinished, backbone, data, tmp_path):
    out, _ = unfinished
    shutil.copytree(backbone, tmp_path / "new place")
    shutil.copy(data, tmp_path / "moved.csv")
    out.rename(tmp_path / "new out")
    recipe = recipe_of(tmp_path / "new place", tmp_path / "moved.csv", epochs=1.0, save_steps=2)
    result = train(recipe, tmp_path / "new out", resume=True)
    config = json.loads((result.folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(tmp_path / "new place")


def test_a_finished_checkpoint_needs_overwrite_and_stays_until_the_new_one_is_there(trained, backbone, data, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(trained[0].folder, out)
    before = (out / "adapter_model.safetensors").read_bytes()
    with pytest.raises(TrainingError, match="holds a checkpoint; --overwrite"):
        train(recipe_of(backbone, data), out)
    with pytest.raises(TrainingError, match="nothing to resume, its training has finished"):
        train(None, out, resume=True)
    with pytest.raises(TrainingError, match="the loss is"):
        train(recipe_of(backbone, data, learning_rate=1e30, max_grad_norm=0.0), out, overwrite=True)
    assert (out / "adapter_model.safetensors").read_bytes() == before
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/final.tex").write_text("years of work")
    with pytest.raises(TrainingError, match="other things in it"):
        train(recipe_of(backbone, data), tmp_path / "thesis", overwrite=True)


def test_early_stopping_keeps_the_best(backbone, data, tmp_path):
    recipe = recipe_of(backbone, data, epochs=30.0, early_stopping=2)
    result = train(recipe, tmp_path / "out")
    record = json.loads((tmp_path / "out/training.json").read_text())
    values = [row["eval_accuracy"] for row in record["history"] if "eval_accuracy" in row]
    assert len(values) < 30
    losses = [row["eval_loss"] for row in record["history"] if "eval_accuracy" in row]
    best = min(range(len(values)), key=lambda index: (-values[index], losses[index]))
    assert best == len(values) - 3
    assert result.metrics["accuracy"] == max(values)


def test_speed_options_change_nothing_but_speed(backbone, data, tmp_path):
    plain = train(recipe_of(backbone, data, epochs=1.0, dropout=0.0), tmp_path / "plain")
    saving = recipe_of(backbone, data, epochs=1.0, dropout=0.0, gradient_checkpointing=True, num_workers=1)
    checkpointed = train(saving, tmp_path / "checkpointed")
    assert checkpointed.metrics["loss"] == pytest.approx(plain.metrics["loss"], rel=1e-5)
    half = train(recipe_of(backbone, data, epochs=1.0, dropout=0.0, dtype="bf16"), tmp_path / "half")
    assert half.metrics["loss"] == pytest.approx(plain.metrics["loss"], rel=0.05)
    assert half.metrics["loss"] != plain.metrics["loss"]


def test_the_average_of_the_weights_is_evaluated_and_kept(backbone, data, tmp_path, monkeypatch):
    weights, averaging = [], WeightAverage.on_step_end

    def noted(self, args, state, control, **kwargs):
        averaging(self, args, state, control, **kwargs)
        weights.append({name: tensor.detach().clone() for name, tensor in self._trained.items()})

    monkeypatch.setattr(WeightAverage, "on_step_end", noted)
    result = train(recipe_of(backbone, data, epochs=1.0, average=0.5), tmp_path / "out")
    saved = load_file(result.folder / "adapter_model.safetensors")
    name = next(name for name in weights[0] if "adakron_up" in name)
    expected = torch.zeros_like(weights[0][name])  # where the up-projection starts
    for step, tensors in enumerate(weights, 1):
        decay = min(0.5, (1 + step) / (2 + step))
        expected = decay * expected + (1 - decay) * tensors[name]
    torch.testing.assert_close(saved[name.replace(".default", "")], expected, rtol=1e-5, atol=1e-7)
    assert not torch.allclose(expected, weights[-1][name], atol=1e-4)
    plain = train(recipe_of(backbone, data, epochs=1.0), tmp_path / "plain")
    assert plain.metrics["loss"] != result.metrics["loss"]


def test_dropped_tokens_leave_shorter_texts_whose_ends_stay():
    torch.manual_seed(0)
    ids = torch.tensor([[1, *range(10, 18), 2], [1, 20, 21, 2, *[0] * 6]])
    batch = {"input_ids": ids, "attention_mask": (ids != 0).long(), "token_type_ids": (ids > 13).long(),
             "labels": torch.tensor([0, 1])}  # fmt: skip
    lengths = set()
    for _ in range(20):
        found = drop_tokens(batch, 0.5, kept_ids=torch.tensor([0, 1, 2]))
        first = found["input_ids"][0][found["attention_mask"][0].bool()].tolist()
        assert (first[0], first[-1]) == (1, 2)
        assert first == [*sorted(first[:-1]), 2]
        assert torch.equal(found["token_type_ids"][0][: len(first) - 1], (torch.tensor(first[:-1]) > 13).long())
        assert found["input_ids"][1][:4].tolist() == [1, 20, 21, 2]  # too short to lose any
        assert found["input_ids"].shape[1] == max(len(first), 4)
        assert found["labels"] is batch["labels"]
        lengths.add(len(first))
    assert len(lengths) > 3


@pytest.mark.parametrize("name", ["token_dropout", "average"])
def test_shares_of_one_are_refused(name, backbone, data):
    with pytest.raises(TrainingError, match=f"{name} is 1.0; it must be below 1"):
        recipe_of(backbone, data, **{name: 1.0})


def test_accumulated_batches_are_one_large_batch(backbone, data, tmp_path):
    one = train(recipe_of(backbone, data, epochs=1.0, dropout=0.0, batch_size=16), tmp_path / "one")
    two = recipe_of(backbone, data, epochs=1.0, dropout=0.0, batch_size=4, gradient_accumulation=4)
    assert train(two, tmp_path / "two").metrics["loss"] == pytest.approx(one.metrics["loss"], rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", "accelerate launch"])
def test_two_processes_learn_as_one_with_doubled_accumulation(backbone, data, tmp_path, launcher):
    common = {"eval_share": 0.125, "epochs": 2.0, "dropout": 0.0, "batch_size": 8}
    train(recipe_of(backbone, data, gradient_accumulation=2, **common), tmp_path / "one")
    options = (
        f"--backbone {backbone} --data {data} --adapter-size 8 --learning-rate 1e-2 --epochs 2 --dropout 0 "
        f"--batch-size 8 --eval-share 0.125 --seed 3 -o {tmp_path / 'two'}"
    ).split()
    start = {
        "torchrun": "torch.distributed.run --nproc_per_node 2",
        "accelerate launch": "accelerate.commands.launch --multi_gpu --num_processes 2 --num_machines 1 "
        "--mixed_precision no --dynamo_backend no",
    }[launcher].split()
    command = [sys.executable, "-m", *start, "-m", "adakron_export.cli", "train", *options]
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("wrote ") == 1
    records = [json.loads((tmp_path / name / "training.json").read_text()) for name in ("one", "two")]
    assert [record["processes"] for record in records] == [1, 2]
    losses = [[row["loss"] for row in record["history"] if "loss" in row] for record in records]
    assert len(losses[0]) == 3  # at step 10 and where the epochs end
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)


@pytest.mark.slow
def test_torch_compile_trains_the_same(backbone, data, tmp_path):
    plain = train(recipe_of(backbone, data, max_steps=2, dropout=0.0), tmp_path / "plain")
    compiled = train(recipe_of(backbone, data, max_steps=2, dropout=0.0, compile=True), tmp_path / "compiled")
    assert compiled.metrics["loss"] == pytest.approx(plain.metrics["loss"], rel=1e-4)


def test_head_and_norms_learn_at_their_own_rates(backbone, data, tmp_path):
    from adakron_export.data.labels import Labels
    from adakron_export.training.model import BackboneSource, load_tokenizer, load_trainable
    from adakron_export.training.trainer import AdaKronTrainer, training_arguments

    recipe = recipe_of(backbone, data, head_learning_rate=1e-3, norm_learning_rate=1e-4)
    source = BackboneSource(str(backbone), backbone, None)
    labels = Labels("single_label_classification", ("a", "b"))
    model = load_trainable(source, recipe, Task.TEXT_CLASSIFICATION, labels, load_tokenizer(source))
    arguments = training_arguments(recipe, tmp_path, task=Task.TEXT_CLASSIFICATION, metric="accuracy")
    trainer = AdaKronTrainer(model, recipe, task=Task.TEXT_CLASSIFICATION, problem_type=labels.problem_type,
                             pad_token_id=1, args=arguments, eval_dataset=[])  # fmt: skip
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for group in trainer.create_optimizer().param_groups:
        for parameter in group["params"]:
            name = names[id(parameter)]
            norm = "LayerNorm" in name
            assert group["lr"] == (1e-2 if "adakron_" in name else 1e-4 if norm else 1e-3)
            assert (group["weight_decay"] == 0) == (norm or name.endswith("bias"))


def test_norms_beside_adapters_are_trained_saved_and_exported(backbone, data, tmp_path):
    result = train(recipe_of(backbone, data, norm_learning_rate=1e-3, layers="1", epochs=1.0), tmp_path / "out")
    tensors = load_file(result.folder / "adapter_model.safetensors")
    norms = {name: tensor for name, tensor in tensors.items() if "LayerNorm" in name}
    assert {name.removeprefix("base_model.model.bert.encoder.") for name in norms} == {
        f"layer.1.{place}.LayerNorm.{kind}" for place in ("attention.output", "output") for kind in ("weight", "bias")
    }
    assert result.parameters.norms == sum(tensor.numel() for tensor in norms.values())
    assert all((tensor != (1.0 if name.endswith("weight") else 0.0)).any() for name, tensor in norms.items())
    assert export_onnx(result.folder, tmp_path / "artifact").parity.passed


def test_scaled_pooler_is_saved_and_exported_and_not_trained(data, tmp_path):
    encoder = save_backbone(tmp_path / "encoder", task=Task.FEATURE_EXTRACTION)
    result = train(recipe_of(encoder, data, pooler_scale=10.0, epochs=1.0), tmp_path / "out")
    before = load_file(encoder / "model.safetensors")["pooler.dense.weight"]
    after = load_file(result.folder / "adapter_model.safetensors")["base_model.model.bert.pooler.dense.weight"]
    np.testing.assert_array_equal(after, before * 10)
    plain = train(recipe_of(encoder, data, epochs=1.0), tmp_path / "plain")
    assert result.parameters.trainable == plain.parameters.trainable
    assert export_onnx(result.folder, tmp_path / "artifact").parity.passed


def test_scaled_pooler_needs_one_that_was_never_trained(backbone, data, tmp_path):
    with pytest.raises(TrainingError, match="that the backbone brings; this one is new"):
        train(recipe_of(backbone, data, pooler_scale=10.0), tmp_path / "out")
    distilled = save_backbone(tmp_path / "distilbert", "distilbert")
    with pytest.raises(TrainingError, match="DistilBertForSequenceClassification has none"):
        train(recipe_of(distilled, data, pooler_scale=10.0), tmp_path / "out")
    encoder = save_backbone(tmp_path / "encoder", task=Task.FEATURE_EXTRACTION)
    tensors = load_file(encoder / "model.safetensors")
    save_file({**tensors, "pooler.dense.bias": tensors["pooler.dense.bias"] + 1}, encoder / "model.safetensors")
    with pytest.raises(TrainingError, match="this one has biases"):
        train(recipe_of(encoder, data, pooler_scale=10.0), tmp_path / "out")


def test_ctrl_c_saves_and_the_resumed_run_is_the_same(backbone, data, tmp_path, monkeypatch):
    from adakron_export.training.callbacks import ProgressBar

    recipe = recipe_of(backbone, data, epochs=2.0)
    train(recipe, tmp_path / "whole")
    before = signal.getsignal(signal.SIGINT)

    def press(self, args, state, control, **_):
        if state.global_step == 3:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patched:
        patched.setattr(ProgressBar, "on_step_end", press)
        with pytest.raises(KeyboardInterrupt):
            train(recipe, tmp_path / "stopped")
    saved = [path.name for path in (tmp_path / "stopped/training").glob("checkpoint-*")]
    assert saved == ["checkpoint-3"]
    assert signal.getsignal(signal.SIGINT) is before
    train(None, tmp_path / "stopped", resume=True)
    whole, resumed = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("whole", "stopped"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    history = [json.loads((tmp_path / name / "training.json").read_text())["history"] for name in ("whole", "stopped")]
    evaluations = [[row["eval_loss"] for row in rows if "eval_loss" in row] for rows in history]
    assert evaluations[0] == evaluations[1]


def test_a_run_that_fails_gives_ctrl_c_back(backbone, data, tmp_path, monkeypatch):
    from adakron_export.training.callbacks import ProgressBar

    def fail(self, args, state, control, **_):
        raise RuntimeError("in the middle")

    monkeypatch.setattr(ProgressBar, "on_step_end", fail)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(RuntimeError, match="in the middle"):
        train(recipe_of(backbone, data), tmp_path / "out")
    assert signal.getsignal(signal.SIGINT) is before


def test_trackers_are_those_of_the_trainer(backbone, data, tmp_path, monkeypatch):
    from transformers import TrainerCallback
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    logged = []

    class Tracker(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **_):
            logged.append(logs)

    monkeypatch.setitem(INTEGRATION_TO_CALLBACK, "mine", Tracker)
    train(recipe_of(backbone, data, report_to="mine, tensorboard", epochs=1.0, logging_steps=1), tmp_path / "out")
    assert any("loss" in row for row in logged)
    assert any("eval_accuracy" in row for row in logged)
    for name in ("nonsense", "wandb"):
        with pytest.raises(TrainingError, match=name):
            train(recipe_of(backbone, data, report_to=name), tmp_path / name)
        assert not (tmp_path / name).exists()


def test_of_equal_metrics_the_smaller_loss_is_the_best():
    from adakron_export.training.callbacks import best_evaluation

    history = [{"step": step, "eval_accuracy": accuracy, "eval_loss": loss}
               for step, accuracy, loss in ((1, 0.9, 0.5), (2, 0.9, 0.3), (3, 0.8, 0.1), (4, 0.9, 0.4))]  # fmt: skip
    assert best_evaluation(history, "accuracy")["step"] == 2
    assert best_evaluation(history, "loss")["step"] == 3

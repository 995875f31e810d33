"""Each task: what the model reads, what is measured, and that it learns."""

import json
import math
import random

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from adakron_export import Recipe, export_onnx, train
from adakron_export.checkpoints import hub
from adakron_export.data.answers import AnswerSearch, answer_metrics
from adakron_export.data.columns import Columns
from adakron_export.data.data import load_data
from adakron_export.data.features import Tokenisation
from adakron_export.data.labels import Labels
from adakron_export.data.metrics import IGNORED, sequence_metrics, token_metrics
from adakron_export.data.reading import Rows
from adakron_export.errors import DataError
from adakron_export.tasks import Task
from adakron_export.training.batches import Collator, LengthGroupedSampler
from adakron_export.training.losses import count_terms, summed_loss, symmetric_divergence
from adakron_export.training.model import BackboneSource, count_parameters, load_tokenizer, load_trainable
from adakron_export.training.trainer import AdaKronTrainer, training_arguments
from conftest import stages
from tiny import save_backbone


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    torch.manual_seed(0)
    return save_backbone(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    torch.manual_seed(0)
    return save_backbone(tmp_path_factory.mktemp("gpt2"), "gpt2", Task.TEXT_GENERATION)


def write_lines(file, rows):
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def train_on(backbone, rows, folder, **settings):
    data = str(write_lines(folder / "train.jsonl", rows))
    defaults = {"r": 32, "epochs": 8.0, "batch_size": 8, "learning_rate": 1e-2, "eval_data": data}
    return train(Recipe(backbone=str(backbone), data=data, **{**defaults, **settings}), folder / "out")


def features_of(backbone, columns, labels, rows, **settings):
    recipe = Recipe(backbone="b", data="d", **settings)
    tokenisation = Tokenisation(
        AutoTokenizer.from_pretrained(backbone), recipe.max_length or 40, columns, labels, recipe
    )
    places = [f"f:{n}" for n in range(len(rows[columns.text]))]
    with stages() as notes:
        return tokenisation.dataset(Rows(rows, places)), notes


def test_pairs_learn_from_the_second_text(bert, tmp_path):
    words = ["good", "bad", "red", "blue"]
    rows = [{"sentence1": a, "sentence2": b, "label": int(b in ("good", "red"))} for a in words for b in words] * 4
    assert train_on(bert, rows, tmp_path).metrics["accuracy"] == 1.0
    assert export_onnx(tmp_path / "out", tmp_path / "artifact").written


def test_regression_learns_a_number(bert, tmp_path):
    rows = [{"text": f"the film was {word}", "label": value} for word, value in
            (("good", 2.5), ("fine", 1.5), ("poor", 0.5), ("bad", -0.5)) for _ in range(8)]  # fmt: skip
    result = train_on(bert, rows, tmp_path, epochs=10.0)
    assert result.metrics["pearson"] > 0.9
    assert json.loads((tmp_path / "out/config.json").read_text())["problem_type"] == "regression"


def test_several_labels_per_text(bert, tmp_path):
    chosen = {"good": ["red", "blue"], "bad": ["red"], "fine": ["green"], "poor": ["blue"]}
    rows = [{"text": f"the film was {word}", "label": names} for word, names in chosen.items()] * 8
    result = train_on(bert, rows, tmp_path, epochs=10.0)
    assert result.metrics["f1"] > 0.8 > 8 / 13  # what always answering red and blue would reach
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert (config["problem_type"], len(config["id2label"])) == ("multi_label_classification", 3)
    assert export_onnx(tmp_path / "out", tmp_path / "artifact").written


def test_words_keep_their_tags_when_they_are_split(bert):
    columns = Columns(Task.TOKEN_CLASSIFICATION, "tokens", None, "tags")
    labels = Labels(None, ("B-PER", "O"))
    rows = {"tokens": [["Anna", "zzz", "works"]], "tags": [["B-PER", "B-PER", "O"]]}
    features, _ = features_of(bert, columns, labels, rows)
    assert features[0]["labels"] == [IGNORED, 0, 0, IGNORED, IGNORED, 1, IGNORED]
    with pytest.raises(DataError, match=r"one tag per word: f:0 \(3 words, 2 tags\)"):
        features_of(bert, columns, labels, {**rows, "tags": [["O", "O"]]})


def test_words_learn_tags(bert, tmp_path):
    people, places = ("Anna", "Tom"), ("Paris", "Oslo")
    rows = [{"tokens": [who, "lives", "in", where, "."], "ner_tags": ["B-PER", "O", "O", "B-LOC", "O"]}
            for who in people for where in places for _ in range(8)]  # fmt: skip
    result = train_on(bert, rows, tmp_path)
    assert result.metrics["f1"] == 1.0
    assert export_onnx(tmp_path / "out", tmp_path / "artifact").written


def test_token_metrics_count_whole_spans():
    names = ("B-PER", "I-PER", "O")
    references = np.array([[IGNORED, 0, 1, 2, 2, IGNORED]])
    found = np.array([[2, 0, 2, 0, 2, 0]])  # one span too short, one that is none
    metrics = token_metrics(np.eye(3)[found], references, Labels(None, names))
    assert (metrics["precision"], metrics["recall"], metrics["f1"]) == (0.0, 0.0, 0.0)
    assert metrics["accuracy"] == 0.5
    right = token_metrics(np.eye(3)[np.array([[2, 0, 1, 2, 2, 0]])], references, Labels(None, names))
    assert right == {"f1": 1.0, "precision": 1.0, "recall": 1.0, "accuracy": 1.0}


def test_sequence_metrics():
    labels = Labels("single_label_classification", ("no", "yes"))
    metrics = sequence_metrics(np.eye(2)[[1, 1, 0, 0]], np.array([1, 0, 0, 1]), labels)
    assert metrics == {"accuracy": 0.5, "f1": 0.5, "matthews_correlation": 0.0}
    constant = sequence_metrics(np.ones((3, 1)), np.array([1.0, 2.0, 3.0]), Labels("regression"))
    assert math.isnan(constant["pearson"])


CONTEXT = "Anna lives in Paris and works at the film . Tom lives in Oslo and works at the plot ."


def test_questions_find_their_answer(bert, tmp_path):
    rows = [{"question": "where lives " + who, "context": f"{a} lives in {x} and {b} lives in {y} .",
             "answers": {"text": [x if who == a else y], "answer_start": []}}
            for a, b in (("Anna", "Tom"), ("Tom", "Anna")) for x, y in (("Paris", "Oslo"), ("Oslo", "Paris"))
            for who in (a, b) for _ in range(4)]  # fmt: skip
    for row in rows:
        row["answers"]["answer_start"] = [row["context"].index(row["answers"]["text"][0])]
    result = train_on(bert, rows, tmp_path, epochs=10.0)
    assert result.metrics["f1"] >= 0.5  # one of the two places, and nothing but a place
    assert result.metrics["exact_match"] >= 0.5
    assert export_onnx(tmp_path / "out", tmp_path / "artifact").written


def test_a_long_context_is_read_in_windows_that_overlap(bert):
    columns = Columns(Task.QUESTION_ANSWERING, "question", "context", "answers")
    start = CONTEXT.index("Oslo")
    rows = {
        "question": ["where lives Tom"],
        "context": [CONTEXT],
        "answers": [{"text": ["Oslo"], "answer_start": [start]}],
    }
    features, _ = features_of(bert, columns, Labels(None), rows, max_length=16, doc_stride=4)
    assert len(features) > 2
    found = []
    for window in features:
        first, last = window["start_positions"], window["end_positions"]
        if (first, last) != (0, 0):
            found.append(CONTEXT[window["offsets"][first][0] : window["offsets"][last][1]])
    assert found
    assert set(found) == {"Oslo"}
    with pytest.raises(DataError, match="f:0: the answer 'Oslo' does not stand in the context where it should"):
        features_of(bert, columns, Labels(None), {**rows, "answers": [{"text": ["Oslo"], "answer_start": [0]}]})


def test_the_best_answer_is_a_possible_one():
    offsets = [(-1, -1), (0, 4), (5, 8), (9, 11), (-1, -1)]
    starts, ends = np.array([0.0, 1, 5, 0, 9]), np.array([0.0, 6, 1, 4, 9])
    search = AnswerSearch(n_best=5, max_tokens=2, may_be_none=False)
    # The highest sums end before they begin, or stand outside of the context.
    assert search.best([(starts, ends, offsets)], "Anna saw it") == "saw it"
    longest = AnswerSearch(n_best=5, max_tokens=1, may_be_none=False)
    assert longest.best([(starts, ends, offsets)], "Anna saw it") == "Anna"
    none = AnswerSearch(n_best=5, max_tokens=2, may_be_none=True)
    sure = np.array([20.0, 0, 0, 0, 0])
    assert none.best([(sure, sure, offsets)], "Anna saw it") == ""


def test_answers_are_compared_as_squad_does():
    metrics = answer_metrics(["The Paris!", "in Oslo", ""], [["paris"], ["Oslo", "Rome"], []])
    assert metrics["exact_match"] == pytest.approx(2 / 3)
    assert metrics["f1"] == pytest.approx((1 + 2 / 3 + 1) / 3)


def test_a_completion_is_learned_and_its_prompt_is_not(gpt2):
    columns = Columns(Task.TEXT_GENERATION, "prompt", None, "completion")
    rows = {"prompt": ["red film"], "completion": ["good"]}
    features, _ = features_of(gpt2, columns, Labels(None), rows)
    ids = features[0]["input_ids"]
    assert features[0]["labels"] == [IGNORED, IGNORED, *ids[2:]]
    whole, _ = features_of(gpt2, Columns(Task.TEXT_GENERATION, "prompt", None, None), Labels(None), rows)
    assert whole[0]["labels"] == whole[0]["input_ids"]


@pytest.mark.slow
def test_a_mixture_learns_to_write(gpt2, tmp_path):
    rows = [{"prompt": "good", "completion": "red"}, {"prompt": "bad", "completion": "blue"}] * 16
    result = train_on(gpt2, rows, tmp_path, task="text-generation", num_experts=2, kron_order="a1_a2",
                      consistency=0.1, epochs=40.0, learning_rate=3e-2, dropout=0.0)  # fmt: skip
    assert result.metrics["perplexity"] < 1.35 < 2**0.5  # what knowing the words and not the prompt would reach
    assert result.metrics["perplexity"] == pytest.approx(math.exp(result.metrics["loss"]))
    assert export_onnx(tmp_path / "out", tmp_path / "artifact").written


def test_a_decoder_that_classifies_gets_a_padding_token(gpt2, tmp_path):
    rows = [{"text": "the film was " + word * 2, "label": word} for word in ("good ", "bad ") for _ in range(16)]
    result = train_on(gpt2, rows, tmp_path)
    assert result.metrics["accuracy"] == 1.0
    assert json.loads((tmp_path / "out/config.json").read_text())["pad_token_id"] is not None
    assert AutoTokenizer.from_pretrained(tmp_path / "out").pad_token == "[SEP]"
    assert export_onnx(tmp_path / "out", tmp_path / "artifact").written


def test_what_the_backbone_lacks_is_trained_and_saved(tmp_path):
    """DeBERTa's files have no pooler; frozen as it was drawn it would be noise."""
    backbone = save_backbone(tmp_path / "backbone", "deberta-v2")
    rows = [{"text": "the film was " + word, "label": word} for word in ("good", "bad") for _ in range(8)]
    result = train_on(backbone, rows, tmp_path, epochs=1.0)
    config = json.loads((tmp_path / "out/adapter_config.json").read_text())
    assert {"classifier", "pooler"} <= set(config["modules_to_save"])
    assert result.parameters.head == 32 * 32 + 32 + 32 * 2 + 2
    assert export_onnx(tmp_path / "out", tmp_path / "artifact").written


def test_only_the_named_layers_get_adapters_and_gradients(bert, tmp_path):
    rows = [{"text": "the film was " + word, "label": word} for word in ("good", "bad") for _ in range(8)]
    result = train_on(bert, rows, tmp_path, epochs=1.0, layers="1", r=8)
    assert result.parameters.adapters == 2 * 33 + 4 * 33 + 32 * 9
    assert json.loads((tmp_path / "out/adapter_config.json").read_text())["layers_to_transform"] == [1]
    assert export_onnx(tmp_path / "out", tmp_path / "artifact").written


def test_parameters_are_counted_once(bert):
    from peft import get_peft_model

    from adakron_export import AdaKronConfig
    from tiny import backbone_of

    model = get_peft_model(backbone_of("bert"), AdaKronConfig(r=8, k=4, task_type="SEQ_CLS"))
    counts = count_parameters(model)
    assert counts.total == backbone_of("bert").num_parameters() + counts.adapters
    assert counts.trainable == model.get_nb_trainable_parameters()[0]


@pytest.mark.parametrize("rows", [64, 61])
def test_batches_hold_equally_long_texts_and_every_text_once(rows):
    lengths = [random.Random(n).randint(1, 99) for n in range(rows)]
    sampler = LengthGroupedSampler(lengths, step_size=8, seed=1, grouped=True)
    orders = []
    for epoch in (0, 1):
        sampler.epoch = epoch
        orders.append(list(sampler))
        assert sorted(orders[-1]) == list(range(rows))
    assert orders[0] != orders[1]
    sampler.epoch = 0
    torch.manual_seed(5)
    assert list(sampler) == orders[0]
    plain = LengthGroupedSampler(lengths, step_size=8, seed=1, grouped=False)
    waste = {}
    for name, order in (("grouped", orders[0]), ("plain", list(plain))):
        steps = [[lengths[index] for index in order[start : start + 8]] for start in range(0, rows, 8)]
        waste[name] = sum(max(step) * len(step) - sum(step) for step in steps)
    assert waste["grouped"] < waste["plain"] / 3


def test_padding():
    batch = Collator(pad_token_id=7)(
        [{"input_ids": [1, 2, 3], "labels": [0, 1, IGNORED]}, {"input_ids": [4], "labels": [1]}]
    )
    assert batch["input_ids"].tolist() == [[1, 2, 3], [4, 7, 7]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [[0, 1, IGNORED], [1, IGNORED, IGNORED]]


class Outputs:
    def __init__(self, logits):
        self.logits = logits


@pytest.mark.parametrize("task", [Task.TEXT_CLASSIFICATION, Task.TOKEN_CLASSIFICATION, Task.TEXT_GENERATION])
def test_losses_are_those_of_transformers(task):
    from transformers.loss.loss_utils import ForCausalLMLoss

    torch.manual_seed(0)
    shape = (4, 5) if task is Task.TEXT_CLASSIFICATION else (4, 6, 5)
    logits = torch.randn(shape)
    labels = torch.randint(5, shape[:-1])
    if task is not Task.TEXT_CLASSIFICATION:
        labels[0, 2:] = IGNORED
    batch = {"input_ids": torch.zeros(4, 6), "labels": labels}
    mean = summed_loss(Outputs(logits), batch, task, "single_label_classification") / count_terms(batch, task)
    if task is Task.TEXT_GENERATION:
        expected = ForCausalLMLoss(logits, labels, vocab_size=5)
    else:
        expected = torch.nn.functional.cross_entropy(logits.flatten(0, -2), labels.flatten())
    torch.testing.assert_close(mean, expected)


def test_consistency_is_the_symmetric_divergence():
    torch.manual_seed(0)
    left, right = torch.randn(3, 4), torch.randn(3, 4)
    batch = {"labels": torch.zeros(3, dtype=torch.long)}
    found = symmetric_divergence(Outputs(left), Outputs(right), batch, Task.TEXT_CLASSIFICATION, None)
    p, q = left.softmax(-1), right.softmax(-1)
    expected = ((p * (p / q).log()).sum() + (q * (q / p).log()).sum()) / 2
    torch.testing.assert_close(found, expected)
    same = symmetric_divergence(Outputs(left), Outputs(left), batch, Task.TEXT_CLASSIFICATION, None)
    assert same == 0


def test_the_consistency_loss_is_added_with_its_weight(bert, tmp_path):
    source = BackboneSource(str(bert), bert, None)
    labels = Labels("single_label_classification", ("bad", "good"))
    batch = {"input_ids": torch.tensor([[2, 5, 9, 3]]), "attention_mask": torch.ones(1, 4, dtype=torch.long),
             "labels": torch.tensor([1])}  # fmt: skip
    losses = []
    for weight in (0.0, 1.0, 3.0):
        recipe = Recipe(backbone=str(bert), data="d", r=8, num_experts=4, consistency=weight, dropout=0.0)
        torch.manual_seed(0)
        model = load_trainable(source, recipe, Task.TEXT_CLASSIFICATION, labels, load_tokenizer(source)).train()
        for name, parameter in model.named_parameters():
            if "adakron_" in name:
                torch.nn.init.normal_(parameter, std=0.5)
        arguments = training_arguments(recipe, tmp_path, task=Task.TEXT_CLASSIFICATION, metric="accuracy")
        trainer = AdaKronTrainer(model, recipe, task=Task.TEXT_CLASSIFICATION, problem_type=labels.problem_type,
                                 pad_token_id=1, args=arguments, eval_dataset=[])  # fmt: skip
        torch.manual_seed(1)  # which draws the experts of both passes
        losses.append(trainer.compute_loss(model, batch).item())
    apart = losses[1] - losses[0]
    assert apart > 1e-3
    assert losses[2] - losses[0] == pytest.approx(3 * apart, rel=1e-3)


def test_hub_rows_have_names_instead_of_numbers(monkeypatch):
    import datasets

    tags = datasets.List(datasets.ClassLabel(names=["O", "B-PER"]))
    features = datasets.Features({"tokens": datasets.List(datasets.Value("string")), "ner_tags": tags})
    table = datasets.Dataset.from_dict(
        {"tokens": [["Anna", "works"]] * 8, "ner_tags": [[1, 0]] * 8}, features=features
    )
    monkeypatch.setattr(hub, "check_dataset", lambda *_, **__: None)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_: datasets.DatasetDict({"train": table}))
    data = load_data(Recipe(backbone="b", data="somebody/tagged"))
    assert data.columns.task is Task.TOKEN_CLASSIFICATION
    assert data.labels.names == ("B-PER", "O")

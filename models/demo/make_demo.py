"""Makes the demo model that this folder holds: run it as `python models/demo/make_demo.py`.

A tiny BERT learns the words of `train.tsv` by masked language modelling; then its weights are frozen, and AdaKron
adapters and a head learn to tell questions, problems and praise apart. Smaller ones, in `reply/`, learn what needs an
answer.
"""

from __future__ import annotations

import csv
import json
import random
import shutil
from pathlib import Path

import torch
from peft import get_peft_model
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from torch.nn import functional
from transformers import AutoTokenizer, BertConfig, BertForPreTraining, BertForSequenceClassification

from adakron_export import AdaKronConfig

HERE = Path(__file__).parent
BACKBONE = HERE / "backbone"
REPLY = HERE / "reply"
LABELS = ["praise", "problem", "question"]
REPLY_LABELS = ["no reply needed", "reply needed"]  # of praise, and of the others
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


CARD = """---
base_model: backbone
library_name: peft
pipeline_tag: text-classification
---

# Demo: questions, problems and praise

A tiny BERT (`backbone/`, 3 layers, 96 wide) with AdaKron adapters (r=24, k=4) that tells apart what people write to
a help desk. The sentences of `train.tsv` were written for this demo; `make_demo.py` made everything else from them.
"""

REPLY_CARD = """---
base_model: ../backbone
library_name: peft
pipeline_tag: text-classification
---

# Demo: what needs a reply

Smaller AdaKron adapters (r=12, k=4) on the same backbone as the demo beside them, for a bank of two.
"""


def read_rows() -> list[tuple[str, int]]:
    """The texts and labels of `train.tsv`."""
    with (HERE / "train.tsv").open(encoding="utf-8", newline="") as stream:
        return [(row["text"], LABELS.index(row["label"])) for row in csv.DictReader(stream, delimiter="\t")]


def make_tokenizer(texts: list[str]) -> None:
    """Train a WordPiece vocabulary and write the tokenizer's files beside the adapter."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))  # noqa: S106, RUF100 - a token of text
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.train_from_iterator(texts, trainers.WordPieceTrainer(vocab_size=700, special_tokens=SPECIAL))
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.save(str(HERE / "tokenizer.json"))
    settings = {
        "tokenizer_class": "BertTokenizer",
        "do_lower_case": True,
        "model_max_length": 64,
        **{f"{name[1:-1].lower()}_token": name for name in SPECIAL},
    }
    (HERE / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    words = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    (HERE / "vocab.txt").write_text("".join(f"{word}\n" for word, _ in words), encoding="utf-8")


def batches(rows: list[tuple[str, int]], size: int = 32) -> list[list[tuple[str, int]]]:
    """The rows shuffled, in batches."""
    shuffled = random.sample(rows, len(rows))
    return [shuffled[start : start + size] for start in range(0, len(shuffled), size)]


def pretrain(rows: list[tuple[str, int]], epochs: int = 80) -> None:
    """Train the backbone to fill in masked words, and save it."""
    tokenizer = AutoTokenizer.from_pretrained(HERE)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=384,
        max_position_embeddings=64,
        pad_token_id=0,
    )
    model = BertForPreTraining(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(epochs):
        for batch in batches(rows):
            inputs = tokenizer([text for text, _ in batch], padding=True, return_tensors="pt")
            hidden = (torch.rand(inputs.input_ids.shape) < 0.2) & (inputs.input_ids >= len(SPECIAL))
            labels = inputs.input_ids.masked_fill(~hidden, -100)
            inputs["input_ids"] = inputs.input_ids.masked_fill(hidden, SPECIAL.index("[MASK]"))
            scores = model(**inputs).prediction_logits
            functional.cross_entropy(scores.flatten(0, 1), labels.flatten()).backward()
            optimizer.step()
            optimizer.zero_grad()
    shutil.rmtree(BACKBONE, ignore_errors=True)
    model.bert.save_pretrained(BACKBONE)  # with its pooler, which stays as it was drawn


def tune(rows: list[tuple[str, int]], labels: list[str], r: int, folder: Path, epochs: int = 60) -> float:
    """Train adapters and head on a frozen backbone and save them; returns the accuracy on held-out rows."""
    tokenizer = AutoTokenizer.from_pretrained(HERE)
    held_out, rows = rows[::8], [row for index, row in enumerate(rows) if index % 8]
    names = dict(enumerate(labels))
    backbone = BertForSequenceClassification.from_pretrained(
        BACKBONE, num_labels=len(labels), id2label=names, label2id={name: index for index, name in names.items()}
    )
    model = get_peft_model(backbone, AdaKronConfig(r=r, k=4, task_type="SEQ_CLS"))
    model.print_trainable_parameters()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=4e-3, weight_decay=0.1)
    for _ in range(epochs):
        model.train()
        for batch in batches(rows):
            inputs = tokenizer([text for text, _ in batch], padding=True, return_tensors="pt")
            model(**inputs, labels=torch.tensor([label for _, label in batch])).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    model.eval()
    inputs = tokenizer([text for text, _ in held_out], padding=True, return_tensors="pt")
    with torch.no_grad():
        found = model(**inputs).logits.argmax(-1)
    model.peft_config["default"].base_model_name_or_path = BACKBONE.name
    model.save_pretrained(folder)
    backbone.config.save_pretrained(folder)
    return float((found == torch.tensor([label for _, label in held_out])).float().mean())


def main() -> None:
    """Make everything but the texts."""
    random.seed(1)
    torch.manual_seed(1)
    rows = read_rows()
    make_tokenizer([text for text, _ in rows])
    pretrain(rows)
    print(f"accuracy on held-out sentences: {tune(rows, LABELS, 24, HERE):.3f}")
    (HERE / "README.md").write_text(CARD, encoding="utf-8")
    make_reply(rows)


def make_reply(rows: list[tuple[str, int]]) -> None:
    """Make the second checkpoint."""
    urgent = [(text, int(LABELS[label] != "praise")) for text, label in rows]
    print(f"accuracy on held-out sentences, of replies: {tune(urgent, REPLY_LABELS, 12, REPLY):.3f}")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(HERE / name, REPLY / name)
    (REPLY / "README.md").write_text(REPLY_CARD, encoding="utf-8")


if __name__ == "__main__":
    main()

"""Texts from meaning representations, as the reference has them: train, export, write with beams, score.

Run as `python benchmarks/e2e.py -o FILE`, after `pip install -r benchmarks/requirements-e2e.txt`, with Java.

- `--data DIR --backbone openai-community/gpt2-medium --recipe gpt2-medium-nlg-1-expert` takes the E2E challenge's
  `trainset.csv`, `devset.csv` and `testset_w_refs.csv`, with the columns `mr` and `ref`.
- Without them, restaurants are made up, and the backbone is a small GPT-2 that learned to write of others. Its scores
  say nothing but whether eager PyTorch and the artifacts write as well as each other.

BLEU is sacrebleu's and NIST nltk's, of lower-cased tokens as mteval 13a counts. METEOR, ROUGE-L and CIDEr are
pycocoevalcap's.
Beams: 10 of them, `length_penalty` 0.9, `no_repeat_ngram_size` 4.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from machine import describe

from adakron_export import ExportSettings, Recipe, export_onnx, load_model, predict, train
from adakron_export.training.recipe import make_recipe, read_settings

BEAMS = {"num_beams": 10, "length_penalty": 0.9, "no_repeat_ngram_size": 4, "max_new_tokens": 64}
FILES = ("trainset.csv", "devset.csv", "testset_w_refs.csv")
DTYPES = ("fp32", "int8", "int4")
Pairs = dict[str, list[str]]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of the E2E challenge's data")
    parser.add_argument("--backbone", help="what adapters are trained on")
    parser.add_argument("--recipe", help="settings of the training")
    parser.add_argument("--epochs", type=float)
    parser.add_argument("--texts", type=int, help="how many of the test set are written")
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    if (options.data is None) != (options.backbone is None):
        parser.error("--data and --backbone belong together")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        found = {**describe(), **measured(folder, options)}
    print(json.dumps(found, indent=2))
    if options.output:
        options.output.write_text(json.dumps(found, indent=2) + "\n")


def measured(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """The scores of each side, and how much of what they write is the same."""
    made_up = options.data is None
    parts = made_up_data() if made_up else [read(options.data / name) for name in FILES]
    backbone = pretrained(folder / "backbone", parts[0]) if made_up else options.backbone
    for name, pairs in zip(("train", "dev"), parts[:2], strict=True):
        write(folder / f"{name}.csv", pairs)
    settings = read_settings(options.recipe) if options.recipe else {"r": 48, "epochs": 6, "max_length": 128}
    tables = {"data": str(folder / "train.csv"), "eval_data": str(folder / "dev.csv")}
    more = {} if options.epochs is None else {"epochs": options.epochs}
    recipe: Recipe = make_recipe({**settings, **tables, **more, "backbone": str(backbone), "task": "text-generation"})
    train(recipe, folder / "checkpoint")
    (folder / "checkpoint/generation_config.json").write_text(json.dumps(BEAMS | ends(folder / "checkpoint")))
    test = dict([*parts[2].items()][: options.texts])
    prompts, references = [linearised(mr) for mr in test], [*test.values()]
    sides: dict[str, Callable[[], list[str]]] = {
        "eager PyTorch": lambda: written_eagerly(folder / "checkpoint", prompts)
    }
    for dtype in DTYPES:
        artifact = folder / dtype
        export_onnx(
            folder / "checkpoint", artifact, target="ort-cpu", dtype=dtype, settings=ExportSettings(force=True)
        )
        sides[dtype] = lambda artifact=artifact: [  # type: ignore[misc]
            row["generated_text"]
            for row in predict(artifact, prompts, batch_size=8, num_beams=int(BEAMS["num_beams"]))
        ]
    rows, first = dict[str, Any](), list[str]()
    for side, write_all in sides.items():
        start = time.perf_counter()
        texts = [text[len(prompt) :].strip() for text, prompt in zip(write_all(), prompts, strict=True)]
        seconds, first = time.perf_counter() - start, first or texts
        same = sum(one == other for one, other in zip(texts, first, strict=True)) / len(texts)
        rows[side] = {**scores(texts, references), "same_as_eager": same, "seconds": seconds}
        print(side, rows[side])
    return {"made_up": made_up, "texts": len(prompts), "beams": BEAMS, "example": first[0], "sides": rows}


def ends(checkpoint: Path) -> dict[str, Any]:
    """The token that ends a text."""
    from transformers import AutoTokenizer

    token = AutoTokenizer.from_pretrained(checkpoint).eos_token_id
    return {"eos_token_id": token, "pad_token_id": token}


def written_eagerly(checkpoint: Path, prompts: Sequence[str]) -> list[str]:
    """What transformers writes with the tuned model."""
    import torch
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint, padding_side="left")
    tokenizer.pad_token = tokenizer.eos_token
    model, found = load_model(checkpoint).eval(), list[str]()
    for start in range(0, len(prompts), 8):
        batch = tokenizer(list(prompts[start : start + 8]), return_tensors="pt", padding=True)
        with torch.no_grad():
            tokens = model.generate(
                input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], do_sample=False,
                **BEAMS, **ends(checkpoint),
            )  # fmt: skip
        found += tokenizer.batch_decode(tokens, skip_special_tokens=True)
    return found


def scores(texts: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """BLEU, NIST, METEOR, ROUGE-L and CIDEr."""
    import sacrebleu
    from nltk.translate.nist_score import corpus_nist
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.meteor.meteor import Meteor
    from pycocoevalcap.rouge.rouge import Rouge
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer
    from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

    most = max(map(len, references))
    aligned = [[row[number] if number < len(row) else None for row in references] for number in range(most)]
    bleu = sacrebleu.corpus_bleu(texts, aligned, lowercase=True).score / 100  # type: ignore[arg-type]
    split = Tokenizer13a()

    def words(text: str) -> list[str]:
        return str(split(text.lower())).split()

    nist = corpus_nist([[words(each) for each in row] for row in references], [words(text) for text in texts])
    tokenizer = PTBTokenizer()
    said = tokenizer.tokenize({row: [{"caption": text}] for row, text in enumerate(texts)})
    wanted = tokenizer.tokenize({row: [{"caption": each} for each in found] for row, found in enumerate(references)})
    found = {name: float(scorer.compute_score(wanted, said)[0])
             for name, scorer in (("meteor", Meteor()), ("rouge_l", Rouge()), ("cider", Cider()))}  # fmt: skip
    return {"bleu": bleu, "nist": float(nist), **found}


def read(file: Path) -> Pairs:
    """The references of each meaning representation."""
    pairs: Pairs = {}
    with file.open(newline="", encoding="utf-8") as lines:
        for row in csv.DictReader(lines):
            pairs.setdefault(row["mr"], []).append(row["ref"])
    return pairs


def write(file: Path, pairs: Pairs) -> None:
    """A table of prompts and completions."""
    with file.open("w", newline="", encoding="utf-8") as lines:
        table = csv.writer(lines)
        table.writerow(["prompt", "completion"])
        table.writerows((linearised(mr), f" {text}") for mr, texts in pairs.items() for text in texts)


def linearised(mr: str) -> str:
    """``name[Alimentum], area[riverside]`` as ``name : Alimentum | area : riverside ||``."""
    slots = (slot.rstrip("]").split("[", 1) for slot in mr.split("], "))
    return " | ".join(f"{name.strip()} : {value}" for name, value in slots) + " ||"


NAMES = (
    "Alimentum",
    "The Punter",
    "Blue Spice",
    "The Mill",
    "Giraffe",
    "Zizzi",
    "The Eagle",
    "Strada",
    "Aromi",
    "Loch Fyne",
)
KINDS, FOODS = ("pub", "restaurant", "coffee shop"), ("Italian", "French", "Indian", "Chinese", "English", "Japanese")
PRICES, AREAS = ("cheap", "moderate", "high"), ("riverside", "city centre")
RATINGS = ("low", "average", "excellent")


def made_up_data() -> list[Pairs]:
    """Restaurants, each with two references, of which no two parts share one."""
    chance, every = random.Random(0), dict[str, list[str]]()
    while len(every) < 1500:
        name, kind, food, price, area, rating = (
            chance.choice(each) for each in (NAMES, KINDS, FOODS, PRICES, AREAS, RATINGS)
        )
        slots = {"name": name, "eatType": kind, "food": food, "priceRange": price, "rating": rating, "area": area}
        every[", ".join(f"{slot}[{value}]" for slot, value in slots.items())] = [
            f"{name} is a {kind} in the {area} that serves {food} food. Its prices are {price}, its rating {rating}.",
            f"In the {area} there is a {kind} called {name}. It has {food} food, {price} prices and {rating} ratings.",
        ]
    rows = [*every.items()]
    return [dict(rows[:1200]), dict(rows[1200:1300]), dict(rows[1300:])]


def pretrained(folder: Path, pairs: Pairs) -> Path:
    """A small GPT-2 that has learned to list what a meaning representation says, in words of its own."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    texts = [f"{linearised(mr)} {mr.replace('[', ' is ').replace(']', '')}." for mr in pairs]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=1000, special_tokens=["<|endoftext|>"],
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())  # fmt: skip
    tokenizer.train_from_iterator([*texts, *(text for each in pairs.values() for text in each)], trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>", pad_token="<|endoftext|>")
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(fast), n_positions=192, n_embd=128, n_layer=4, n_head=4, bos_token_id=0, eos_token_id=0
    )
    model = GPT2LMHeadModel(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    ids = fast([f"{text}<|endoftext|>" for text in texts], padding=True, return_tensors="pt")
    for step in range(400):
        rows = torch.randint(len(texts), (16,))
        batch, mask = ids["input_ids"][rows], ids["attention_mask"][rows]
        loss = model(input_ids=batch, attention_mask=mask, labels=batch.masked_fill(mask == 0, -100)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 100 == 99:
            print("backbone", step + 1, float(loss))
    model.eval().save_pretrained(folder)
    return folder


if __name__ == "__main__":
    main()

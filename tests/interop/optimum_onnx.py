"""Opens artifacts in optimum-onnx, in a virtual environment of its own: it needs transformers 4."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

import numpy as np

from adakron_export import Subject, create_bank, export_onnx, open_runner

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "models" / "demo"
TEXTS = ["The printer stopped working.", "Where can I find the manual? I need it today."]
PACKAGES = ROOT / "benchmarks" / "requirements-optimum.txt"
READ = """
import json, sys
from transformers import AutoTokenizer
from optimum.onnxruntime import ORTModelForSequenceClassification
folder, texts = sys.argv[1], json.loads(sys.argv[2])
model = ORTModelForSequenceClassification.from_pretrained(folder)
inputs = AutoTokenizer.from_pretrained(folder)(texts, padding=True, return_tensors="pt")
print(json.dumps({"logits": model(**inputs).logits.tolist(), "labels": model.config.id2label,
                  "ids": inputs["input_ids"].tolist()}))
"""

WRITE = """
import json, sys, torch
from optimum.onnxruntime import ORTModelForCausalLM
folder, ids = sys.argv[1], torch.tensor(json.loads(sys.argv[2]))
model = ORTModelForCausalLM.from_pretrained(folder)
ways = ({}, {"num_beams": 3})
mask = (ids != 1).long()
print(json.dumps([model.generate(ids, attention_mask=mask, max_new_tokens=12, pad_token_id=1, **way).tolist()
                  for way in ways]))
"""


def main() -> None:
    from transformers import AutoTokenizer

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        reply = Subject(DEMO / "reply", backbone=DEMO / "backbone")
        written = [
            export_onnx(DEMO, folder / "artifact"),
            create_bank({"topic": DEMO, "reply": reply}, folder / "bank"),
        ]
        if not all(result.written for result in written):
            sys.exit("the demo failed its validation")
        venv.create(folder / "venv", with_pip=True)
        python = folder / "venv/bin/python"
        subprocess.run([python, "-m", "pip", "install", "--quiet", "-r", PACKAGES], check=True)
        inputs = AutoTokenizer.from_pretrained(folder / "artifact")(TEXTS, padding=True, return_tensors="np")
        expected = open_runner(folder / "artifact").run(dict(inputs))["logits"]
        for name in ("artifact", "bank"):  # a bank is the model of its first adapter
            command = [python, "-c", READ, folder / name, json.dumps(TEXTS)]
            output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=folder).stdout
            found = json.loads(output.splitlines()[-1])
            difference = float(np.abs(np.array(found["logits"]) - expected).max())
            same = found["ids"] == inputs["input_ids"].tolist() and found["labels"]["0"] == "praise"
            if not (same and difference < 1e-5):
                sys.exit(f"optimum-onnx answers differently: {difference}, {found}")
            print(f"optimum-onnx agrees on the {name}: largest difference {difference:.1e}")
        write(folder, python)


def write(folder: Path, python: Path) -> None:
    """A decoder with a cache and adapters writes the same tokens there."""
    import torch

    from adakron_export import OnnxModel
    from tiny import save_checkpoint

    artifact = folder / "decoder"
    export_onnx(save_checkpoint(folder / "made", "llama"), artifact)
    ids = torch.tensor([[5, 6, 7, 8], [1, 1, 9, 10]])
    model, ways = OnnxModel.from_pretrained(artifact), ({}, {"num_beams": 3})
    mask = (ids != 1).long()
    expected = [
        model.generate(ids, attention_mask=mask, max_new_tokens=12, pad_token_id=1, **way).tolist() for way in ways
    ]
    command = [python, "-c", WRITE, artifact, json.dumps(ids.tolist())]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=folder).stdout
    if json.loads(output.splitlines()[-1]) != expected:
        sys.exit(f"optimum-onnx writes other tokens: {output.splitlines()[-1]}, not {expected}")
    print("optimum-onnx writes the same tokens, greedily and with beams")


if __name__ == "__main__":
    main()

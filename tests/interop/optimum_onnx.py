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


if __name__ == "__main__":
    main()

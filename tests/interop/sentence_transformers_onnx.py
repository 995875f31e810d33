"""Opens artifacts that embed sentences in sentence-transformers, in a virtual environment of its own.

Its ONNX backend is optimum-onnx, which needs transformers 4. A chain of several kinds of modules is tried: it must
embed as `sentence_embedding` does.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from adakron_export import export_onnx, predict
from adakron_export.tasks import Task
from tiny import save_checkpoint

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "models" / "demo"
PACKAGES = ROOT / "benchmarks" / "requirements-optimum.txt"
TEXTS = ["The printer stopped working.", "Where can I find the manual? I need it today.", "Thanks"]
KINDS = "sentence_transformers.models."
READ = """
import json, sys
from sentence_transformers import SentenceTransformer
folder, texts = sys.argv[1], json.loads(sys.argv[2])
model = SentenceTransformer(folder, backend="onnx")
vectors = model.encode(texts)
print(json.dumps({"vectors": vectors.tolist(), "longest": model.max_seq_length}))
"""


def chain(backbone: Path) -> None:
    torch.manual_seed(0)
    pooling = {"word_embedding_dimension": 32, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}
    dense = {"in_features": 64, "out_features": 24, "bias": True,
             "activation_function": "torch.nn.modules.activation.Tanh"}  # fmt: skip
    weights = {"linear.weight": torch.randn(24, 64), "linear.bias": torch.randn(24)}
    modules = [("Transformer", "", {}), ("Pooling", "1_Pooling", pooling), ("Dense", "2_Dense", dense),
               ("Normalize", "3_Normalize", {})]  # fmt: skip
    for kind, path, settings in modules[1:]:
        (backbone / path).mkdir()
        if settings:
            (backbone / path / "config.json").write_text(json.dumps(settings))
        if kind == "Dense":
            save_file(weights, backbone / path / "model.safetensors")
    rows = [{"idx": index, "name": str(index), "path": path, "type": KINDS + kind}
            for index, (kind, path, _) in enumerate(modules)]  # fmt: skip
    (backbone / "modules.json").write_text(json.dumps(rows))
    (backbone / "sentence_bert_config.json").write_text('{"max_seq_length": 8, "do_lower_case": false}')


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        checkpoint = save_checkpoint(folder, "bert", Task.FEATURE_EXTRACTION, changes={"vocab_size": 720})
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (checkpoint / name).write_bytes((DEMO / name).read_bytes())
        chain(folder / "backbone")
        if not export_onnx(checkpoint, folder / "artifact").written:
            sys.exit("the model failed its validation")
        venv.create(folder / "venv", with_pip=True)
        python = folder / "venv/bin/python"
        pip = [python, "-m", "pip", "install", "--quiet", "-r", PACKAGES, "sentence-transformers"]
        subprocess.run(pip, check=True)
        command = [python, "-c", READ, folder / "artifact", json.dumps(TEXTS)]
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=folder).stdout
        found = json.loads(output.splitlines()[-1])
        difference = float(np.abs(np.array(found["vectors"]) - predict(folder / "artifact", TEXTS)).max())
        if found["longest"] != 8 or not difference < 1e-5:
            sys.exit(f"sentence-transformers answers differently: {difference}, cut at {found['longest']}")
        print(f"sentence-transformers agrees: largest difference {difference:.1e}")


if __name__ == "__main__":
    main()

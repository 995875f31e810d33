"""Opens artifacts in transformers.js, under Node.js, in a folder of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from transformers import AutoModelForCausalLM

from adakron_export import ExportSettings, Subject, export_onnx, predict
from adakron_export.tasks import Task
from tiny import adapted, save_backbone

DEMO = Path(__file__).parents[2] / "models" / "demo"
TEXTS = ["The printer stopped working.", "Thanks, this is wonderful!"]
READ = """
import { pipeline, env } from '@huggingface/transformers';
env.allowRemoteModels = false;
env.localModelPath = './models/';
const [name, texts] = [process.argv[2], JSON.parse(process.argv[3])];
const classify = await pipeline('text-classification', name);
console.log(JSON.stringify(await classify(texts)));
"""
PROMPT = "the red printer"
WRITE = """
import { pipeline, env } from '@huggingface/transformers';
env.allowRemoteModels = false;
env.localModelPath = './models/';
const [name, text] = process.argv.slice(2);
const write = await pipeline('text-generation', name);
const [written] = await write(text, { max_new_tokens: 12, do_sample: false });
console.log(JSON.stringify(written.generated_text));
"""


def main() -> None:
    npm, node = shutil.which("npm"), shutil.which("node")
    if npm is None or node is None:
        sys.exit("this needs Node.js with npm")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "read.mjs").write_text(READ)
        (folder / "package.json").write_text('{"private": true}')
        environment = {**os.environ, "ONNXRUNTIME_NODE_INSTALL_CUDA": "skip"}
        install = [npm, "install", "--silent", "--no-audit", "--no-fund", "@huggingface/transformers"]
        subprocess.run(install, check=True, cwd=folder, env=environment)
        for dtype in ("fp32", "int8"):
            artifact = folder / "models" / dtype
            if not export_onnx(DEMO, artifact, dtype=dtype, settings=ExportSettings(layout="transformers.js")).written:
                sys.exit("the demo failed its validation")
            command = [node, "read.mjs", dtype, json.dumps(TEXTS)]
            output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=folder).stdout
            found, expected = json.loads(output.splitlines()[-1]), predict(artifact, TEXTS)
            if [row["label"] for row in found] != [row["label"] for row in expected]:
                sys.exit(f"transformers.js answers {found}, not {expected}")
            difference = max(abs(row["score"] - other["score"]) for row, other in zip(found, expected, strict=True))
            if not difference < 1e-5:
                sys.exit(f"transformers.js answers differently in {dtype}: {difference}")
            print(f"transformers.js agrees in {dtype}: largest difference {difference:.1e}")
        write(folder, node)


def write(folder: Path, node: str) -> None:
    """Decoders with a cache write the same text there."""
    (folder / "write.mjs").write_text(WRITE)
    for model_type in ("gpt2", "llama", "qwen3"):
        backbone = save_backbone(folder / model_type, model_type, Task.TEXT_GENERATION, pad_token_id=1)
        if model_type != "gpt2":  # whose tokenizer puts nothing around a text
            for name in ("tokenizer.json", "tokenizer_config.json"):
                shutil.copy(folder / "gpt2" / name, backbone / name)
        model = AutoModelForCausalLM.from_pretrained(backbone)
        adapted(model, Task.TEXT_GENERATION).save_pretrained(folder / f"{model_type}-adapter")
        subject, artifact = (
            Subject(folder / f"{model_type}-adapter", backbone=backbone),
            folder / "models" / model_type,
        )
        if not export_onnx(subject, artifact, settings=ExportSettings(layout="transformers.js")).written:
            sys.exit(f"{model_type} failed its validation")
        command = [node, "write.mjs", model_type, PROMPT]
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=folder).stdout
        found, (expected,) = json.loads(output.splitlines()[-1]), predict(artifact, [PROMPT], max_new_tokens=12)
        if found != expected["generated_text"]:
            sys.exit(f"transformers.js writes {found!r} with {model_type}, not {expected}")
        print(f"transformers.js writes the same text with {model_type}")


if __name__ == "__main__":
    main()

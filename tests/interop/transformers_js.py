"""Opens artifacts in transformers.js, under Node.js, in a folder of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from adakron_export import ExportSettings, export_onnx, predict

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


if __name__ == "__main__":
    main()

"""Writes with onnxruntime-genai out of artifacts, in a virtual environment of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import venv
from pathlib import Path
from typing import Any

from adakron_export import ExportSettings, OnnxModel, export_onnx
from tiny import save_checkpoint

ROOT = Path(__file__).parents[2]
PACKAGES = ROOT / "benchmarks" / "requirements-genai.txt"
PAD, END, LENGTH = 1, 98, 24
PROMPTS, EVEN = [[5, 6, 7, 8], [9, 10]], [[5, 6, 7, 8], [9, 10, 11, 12]]
# Beams that end are ranked by a rule of its own: it counts the prompt's tokens too.
GREEDY, BEAMS = {"num_beams": 1}, {"num_beams": 3, "min_length": LENGTH}
WRITE = """
import json, sys
import numpy as np
import onnxruntime_genai as genai
folder, (prompts, length, ways) = sys.argv[1], json.loads(sys.argv[2])
model, found = genai.Model(folder), []
for way in ways:
    params = genai.GeneratorParams(model)
    params.set_search_options(max_length=length, batch_size=len(prompts), **way)
    generator = genai.Generator(model, params)
    generator.append_tokens(np.array(prompts, dtype=np.int32))
    while not generator.is_done():
        generator.generate_next_token()
    found.append([[int(token) for token in generator.get_sequence(row)] for row in range(len(prompts))])
print(json.dumps(found))
"""


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        venv.create(folder / "venv", with_pip=True)
        python = folder / "venv/bin/python"
        subprocess.run([python, "-m", "pip", "install", "--quiet", "-r", PACKAGES], check=True)
        for name, artifact in artifacts(folder):
            prompts = EVEN if "int8" in name else PROMPTS  # in int8, padding behind has another scale than in front
            padded = [prompt + [PAD] * (len(PROMPTS[0]) - len(prompt)) for prompt in prompts]
            ways = (
                [GREEDY] if "int4" in name else [GREEDY, BEAMS]
            )  # beams of random weights in 4 bits are as good as tied
            command = [python, "-c", WRITE, artifact, json.dumps([padded, LENGTH, ways])]
            output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            found, expected = without_padding(json.loads(output.splitlines()[-1])), written(artifact, prompts, ways)
            if found != expected:
                sys.exit(f"onnxruntime-genai writes other tokens with {name}: {found}, not {expected}")
            print(f"onnxruntime-genai writes the same tokens with {name}")


def artifacts(folder: Path) -> list[tuple[str, Path]]:
    """Artifacts of several kinds; weights are random, and the end of a text is never written."""
    made = []
    for model_type in ("llama", "gpt2", "qwen3"):
        checkpoint = save_checkpoint(
            folder / model_type, model_type, changes={"eos_token_id": END, "pad_token_id": PAD}
        )
        for target, dtype in (("portable", "fp32"), ("ort-cpu", "int8"), ("ort-cpu", "int4")):
            artifact = folder / f"{model_type}-{target}-{dtype}"
            settings = ExportSettings(validate=False)
            export_onnx(checkpoint, artifact, target=target, dtype=dtype, settings=settings)
            made.append((f"{model_type}, {target}, {dtype}", artifact))
    return made


def written(artifact: Path, prompts: list[list[int]], ways: list[dict[str, Any]]) -> list[list[list[int]]]:
    """What we write."""
    import torch

    model = OnnxModel.from_pretrained(artifact)
    ids = torch.tensor([[PAD] * (len(prompts[0]) - len(prompt)) + prompt for prompt in prompts])
    mask = (ids != PAD).long()
    return without_padding(
        [model.generate(ids, attention_mask=mask, max_length=LENGTH, **way).tolist() for way in ways]
    )


def without_padding(found: list[list[list[int]]]) -> list[list[list[int]]]:
    return [[[token for token in row if token != PAD] for row in rows] for rows in found]


if __name__ == "__main__":
    main()

"""The README of an artifact: what it is, where it comes from, and how to run it."""

from __future__ import annotations

import json

from adakron_export.artifacts.artifact import Artifact
from adakron_export.artifacts.card_metadata import front_matter
from adakron_export.artifacts.manifest import BASE, NO_ADAPTER, PARITY, Manifest
from adakron_export.errors import first_few
from adakron_export.tasks import Task


def model_card(artifact: Artifact, name: str) -> str:
    """The model card in Markdown.

    Args:
        artifact: The artifact as written, with its ``parity.json`` where it was validated.
        name: The artifact's name.
    """
    manifest = artifact.manifest
    parity = artifact.parity()
    error = float(parity["max_abs_error"]) if parity else 0.0
    verdict = (
        f"{'passed' if parity['passed'] else 'FAILED'}: largest absolute error {error:.3g} against "
        f"{parity['reference']} on {len({row['batch'] for row in parity['rows']})} batches ({PARITY})"
        if parity
        else "not validated"
    )
    inputs = ", ".join(f"`{info.name}` [{', '.join(map(str, info.shape))}]" for info in manifest.inputs)
    outputs = ", ".join(f"`{info.name}` [{', '.join(map(str, info.shape))}]" for info in manifest.outputs)
    measured = [row for row in artifact.attempts() if row["held"]]
    head = front_matter(
        library="adakron-export", task=Task(manifest.task).trained, backbone=manifest.backbone, tags=_tags(manifest),
        name=name,
        data=artifact.measured_on(), metrics={row["metric"]: row["candidate"] for row in measured},
    )  # fmt: skip
    return f"""{head}

# {name}

`{manifest.backbone}`{_adapters(manifest)}, for
{manifest.task}, exported to ONNX by adakron-export
{manifest.versions.get("adakron-export", "")}.

| | |
|---|---|
| target, dtype, opset | {manifest.spec.target}, {manifest.spec.dtype}, {manifest.spec.opset} |
| size | {artifact.size_bytes / 1e6:.1f} MB |
| inputs | {inputs} |
| outputs | {outputs} |
| validation | {verdict} |
{_integer_products(artifact)}{_accuracy(artifact)}
## Run it

```python
{_snippet(manifest)}
```
"""


def _tags(manifest: Manifest) -> tuple[str, ...]:
    method = manifest.adapter.get("peft_type")
    return ("onnx",) if method is None else ("onnx", str(method).lower())


def _adapters(manifest: Manifest) -> str:
    if manifest.bank is not None:
        names = [name for name in manifest.bank.adapters if name != BASE]
        kind = {"adakron": "AdaKron", "bottleneck": "bottleneck", "lora": "LoRA"}[manifest.bank.layout.kind]
        return f" with a bank of {len(names)} {kind} adapters ({first_few([f'`{name}`' for name in names], 8)})"
    adapter = manifest.adapter
    if adapter.get("kind") == NO_ADAPTER:
        return ""
    if "num_experts" in adapter:
        experts = f", {adapter['num_experts']} experts merged" if adapter["num_experts"] > 1 else ""
        return f" with AdaKron adapters (r={adapter['r']}, k={adapter['k']}{experts}) folded in"
    settings = ", ".join(
        f"{name}={value}"
        for name, value in adapter.items()
        if isinstance(value, int | float | str) and name not in ("kind", "peft_type", "target_modules")
    )
    if "setup" in adapter:
        together = "fused" if adapter["setup"] == "Fuse" else "stacked"
        return f" with the bottleneck adapters {first_few(adapter['adapters'], 8)}, {together}"
    if adapter["peft_type"] == "BOTTLENECK":
        return f" with bottleneck adapters ({settings}) folded in"
    return f" with a {adapter['peft_type']} adapter ({settings}) merged in"


def _integer_products(artifact: Artifact) -> str:
    if artifact.manifest.spec.dtype != "int8":
        return ""
    import onnx_ir as ir

    from adakron_export.graph.saturation import integer_products

    return f"| integer products | {integer_products(ir.load(artifact.model))} |\n"


def _accuracy(artifact: Artifact) -> str:
    return "".join(
        f"| {row['label']} | {row['metric']} {row['candidate']:.4g}, eager PyTorch {row['reference']:.4g}; "
        f"{row['flips']} of {row['examples']} answers changed; {'kept' if row['held'] else 'not good enough'} |\n"
        for row in artifact.attempts()
    )


def _snippet(manifest: Manifest) -> str:
    if manifest.bank is not None:
        names = [manifest.bank.first, [*manifest.bank.adapters][-1]]
        return f"""from adakron_export import predict

print(predict(".", ["A sentence.", "Another one."], adapter={json.dumps(names)}))"""
    if manifest.task == "image-classification":
        return """import numpy as np
from adakron_export import open_runner

runner = open_runner(".")
size = runner.manifest.inputs[0].shape
print(runner.run({"pixel_values": np.zeros((1, *size[1:]), dtype=np.float32)}))"""
    return """from transformers import AutoTokenizer
from adakron_export import open_runner

runner = open_runner(".")
batch = AutoTokenizer.from_pretrained(".")("A sentence.", return_tensors="np")
print(runner.run({name: batch[name] for name in runner.input_names}))"""

"""The model card of a trained checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adakron_export.artifacts.card_metadata import front_matter
from adakron_export.training.methods import described


def training_card(record: Mapping[str, Any], name: str) -> str:
    """The card in Markdown.

    Args:
        record: What `training.json` holds.
        name: The checkpoint's name.
    """
    recipe, counts = record["recipe"], record["parameters"]
    backbone = record["backbone"]["name"]
    shown = Path(backbone).name if Path(backbone).is_absolute() else backbone
    revision = record["backbone"]["revision"]
    metrics = "\n".join(f"| {metric.replace('_', ' ')} | {value:.4f} |" for metric, value in record["metrics"].items())
    settings = "\n".join(f"{key}: {_yaml(value)}" for key, value in recipe.items() if value is not None)
    data = recipe["eval_data"] or recipe["data"]
    head = front_matter(
        library="peft", task=record["task"], backbone=shown, tags=(recipe.get("method", "adakron"),), name=name,
        data=Path(data).name if Path(data).exists() else data, metrics=record["metrics"],
    )  # fmt: skip
    return f"""{head}

# {name}

`{shown}`{f" at `{revision}`" if revision else ""} with {described(recipe)} for
{record["task"]}, trained by adakron-export
{record["versions"].get("adakron-export", "")}. {counts["trainable"]:,} of {counts["total"]:,} parameters were trained
({counts["trainable"] / counts["total"]:.2%}): adapters {counts["adapters"]:,}, head {counts["head"]:,}.

## Evaluation

At step {record["best_step"]} (epoch {record["best_epoch"]:g}), the best by {record["metric"].replace("_", " ")} in
{record["evaluations"]} evaluation(s), on {record["rows"]["evaluation"]} rows on which it was also chosen:

| metric | value |
|---|---|
{metrics}

![Loss and metric over the steps](curves.png)

## Use

```
adakron-export onnx {name} -o artifact
```

PEFT loads it too, once the package is imported:

```python
import adakron_export  # makes AdaKron and bottlenecks known to PEFT
from peft import PeftModel
```

## How it was trained

On {record["rows"]["train"]} rows. Fingerprints of the data (sha256): training `{record["data"]["train"]}`, evaluation
`{record["data"]["evaluation"]}`. All settings:

```yaml
{settings}
```
"""


def _yaml(value: Any) -> str:
    import yaml

    return str(yaml.safe_dump(value)).removesuffix("...\n").strip()

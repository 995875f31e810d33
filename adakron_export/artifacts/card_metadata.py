"""The head of a model card, as the hub reads it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence


def front_matter(
    *, library: str, task: str, backbone: str, tags: Sequence[str], name: str, data: str | None = None,
    metrics: Mapping[str, float] | None = None,
) -> str:  # fmt: skip
    """YAML between dashes.

    Args:
        library: What loads the model.
        task: The hub's name of the task.
        backbone: Its hub id; a folder's name is left out, for the hub has no such model.
        tags: Words to be found by.
        name: Name of the model.
        data: What the metrics were measured on.
        metrics: Values by the metric's name.
    """
    lines = [f"library_name: {library}", f"pipeline_tag: {task}"]
    lines += [f"base_model: {_text(backbone)}"] if backbone.count("/") == 1 and not backbone.startswith("/") else []
    lines += ["tags:", *(f"- {tag}" for tag in tags)]
    if metrics and data:
        dataset = ["    dataset:", f"      name: {_text(data)}", f"      type: {_text(data)}"]
        lines += ["model-index:", f"- name: {_text(name)}", "  results:", "  - task:", f"      type: {task}"]
        lines += [*dataset, "    metrics:"]
        for metric, value in metrics.items():
            lines += [f"    - type: {metric}", f"      value: {value:.6g}"]
    return "\n".join(["---", *lines, "---"])


def _text(value: str) -> str:
    """A text that YAML reads as one: JSON's texts are YAML's too."""
    return json.dumps(value)

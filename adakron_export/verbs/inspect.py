"""What a checkpoint, a reference file or an artifact holds."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adakron_export.artifacts.artifact import Artifact, is_artifact, open_artifact, opened_with
from adakron_export.artifacts.engine import is_engine, open_engine
from adakron_export.artifacts.listing import files_of
from adakron_export.graph import bottleneck_op, kron_op
from adakron_export.graph.keys import MODULE_KEY, REWRITES_KEY

if TYPE_CHECKING:
    from adakron_export.checkpoints.checkpoint import Checkpoint
    from adakron_export.checkpoints.kinds import Loaded

_log = logging.getLogger(__name__)
_INPUTS = {
    kron_op.OP_TYPE: kron_op.INPUTS,
    kron_op.BANK_OP_TYPE: (*kron_op.BANK_INPUTS, kron_op.CODE_INPUT),
    bottleneck_op.OP_TYPE: bottleneck_op.INPUTS,
    bottleneck_op.BANK_OP_TYPE: (*bottleneck_op.BANK_INPUTS, bottleneck_op.BIAS_INPUT, kron_op.CODE_INPUT),
}
_ACTIVATIONS = ("X", "R", "IDS")  # inputs that are no weights


@dataclass(frozen=True, slots=True)
class AdapterInfo:
    """One adapter: the module it follows, and the shapes of its tensors."""

    module: str
    shapes: Mapping[str, tuple[int | str, ...]]


@dataclass(frozen=True, slots=True)
class CheckpointInfo:
    """What a checkpoint holds.

    Attributes:
        path: The folder or file.
        kind: The kind of its adapter, by its name in the table.
        task: What it is for.
        architecture: The model's class.
        backbone: Its name or folder.
        settings: The adapter's configuration.
        adapters: One per layer that has one.
        adapter_parameters: Parameters of all adapters.
        head_parameters: Trained with them, in the modules that are saved whole: the head, and norms if they were.
        total_parameters: Parameters of the whole model.
        file_bytes: Size of the file with the tensors.
    """

    path: str
    kind: str
    task: str
    architecture: str
    backbone: str
    settings: dict[str, Any]
    adapters: tuple[AdapterInfo, ...]
    adapter_parameters: int
    head_parameters: int
    total_parameters: int
    file_bytes: int

    @property
    def trainable_share(self) -> float:
        """Share of the parameters that were trained."""
        return (self.adapter_parameters + self.head_parameters) / self.total_parameters

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return {**asdict(self), "trainable_share": self.trainable_share}


@dataclass(frozen=True, slots=True)
class ArtifactInfo:
    """What an artifact holds.

    Attributes:
        path: The folder.
        manifest: What `adakron_export.json` says.
        ops: How often each operator stands in the graph, functions not counted.
        opsets: Version of each domain.
        rewrites: Our passes that the graph went through, and which of them found nothing to rewrite.
        integer_products: What becomes of them on CPUs without VNNI; empty where there are none.
        adapters: One per node of domain `adakron`.
        parameters: Numbers in the graph's weights.
        file_bytes: Size of every file.
        parity: What validation said; ``None`` where it was left out.
    """

    path: str
    manifest: dict[str, Any]
    ops: dict[str, int]
    opsets: dict[str, int]
    rewrites: str
    integer_products: str
    adapters: tuple[AdapterInfo, ...]
    parameters: int
    file_bytes: dict[str, int]
    parity: dict[str, Any] | None

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return {"kind": "artifact", **asdict(self)}


def subject_of(path: str | Path) -> dict[str, str]:
    """What a report is on: the folder's name and, where it is exported, its task, target and dtype."""
    name = {"name": Path(path).resolve().name}
    if is_engine(Path(path)):
        engine = open_engine(path).manifest
        return {**name, "task": engine.task, "target": f"TensorRT engine ({engine.flavor})", "dtype": engine.dtype}
    if Path(path).is_dir() and is_artifact(Path(path)):
        manifest = open_artifact(path).manifest
        return {**name, "task": manifest.task, "target": manifest.spec.target, "dtype": manifest.spec.dtype}
    return name


def inspect(path: str | Path, *, backbone: str | Path | None = None) -> CheckpointInfo | ArtifactInfo:
    """Look into a checkpoint, a reference file or an artifact.

    Args:
        path: A checkpoint as for `export_onnx`, or an exported folder.
        backbone: A checkpoint's backbone, where it names none.

    Raises:
        CheckpointError: The checkpoint cannot be read.
        ArtifactError: The artifact is damaged.
    """
    if is_artifact(Path(path)):
        return opened_with(path, _inspect_artifact)
    _log.info("load the checkpoint and its backbone")
    from adakron_export.checkpoints.finding import find_checkpoint

    return _inspect_checkpoint(find_checkpoint(path, backbone))


def _inspect_checkpoint(found: Checkpoint) -> CheckpointInfo:
    from adakron_export.checkpoints.loading import load_checkpoint

    loaded = load_checkpoint(found)
    adapters, own = _adapters_of(loaded)
    counts: Counter[str] = Counter()
    for key, parameter in loaded.model.named_parameters():
        kind = "adapter" if id(parameter) in own else "head" if ".modules_to_save." in key else "backbone"
        counts[kind] += 0 if ".original_module." in key else parameter.numel()
    return CheckpointInfo(
        path=str(found.path),
        kind=loaded.kind.name,
        task=loaded.task.value,
        architecture=type(loaded.base).__name__,
        backbone=found.backbone,
        settings={key: value for key, value in loaded.describe().items() if key != "kind"},
        adapters=adapters,
        adapter_parameters=counts["adapter"],
        head_parameters=counts["head"],
        total_parameters=sum(counts.values()),
        file_bytes=found.weights.stat().st_size,
    )


def _adapters_of(loaded: Loaded) -> tuple[tuple[AdapterInfo, ...], set[int]]:
    """The adapter of each layer, and the ids of all their parameters."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    if not loaded.adapts:
        return (), set()
    found, own = [], set()
    name = f".{loaded.peft_model.active_adapter}"
    for module, layer in loaded.base.named_modules():
        if not isinstance(layer, BaseTunerLayer):
            continue
        parameters = {key: each for key, each in layer.named_parameters() if not key.startswith("base_layer.")}
        own |= {id(each) for each in parameters.values()}
        found.append(
            AdapterInfo(
                module,
                {
                    key.replace(name, "").removeprefix("adakron_"): tuple(each.shape)
                    for key, each in parameters.items()
                },
            )
        )
    return tuple(found), own


def _inspect_artifact(artifact: Artifact) -> ArtifactInfo:
    import onnx_ir as ir

    from adakron_export.graph.saturation import integer_products

    model = ir.load(artifact.model)
    kron_nodes = [node for node in model.graph if node.domain == kron_op.DOMAIN]
    adapters = tuple(
        AdapterInfo(
            node.metadata_props.get(MODULE_KEY, str(node.name)),
            {
                name: tuple(dim if isinstance(dim, int) else str(dim.value) for dim in value.shape)
                for name, value in zip(_INPUTS[node.op_type], node.inputs, strict=False)
                if name not in _ACTIVATIONS and value is not None and value.shape is not None
            },
        )
        for node in kron_nodes
    )
    ops = Counter(f"{node.domain}::{node.op_type}" if node.domain else node.op_type for node in model.graph)
    return ArtifactInfo(
        path=str(artifact.folder),
        manifest=artifact.manifest.to_json(),
        ops=dict(ops.most_common()),
        opsets=dict(model.opset_imports),
        rewrites=model.metadata_props.get(REWRITES_KEY, ""),
        integer_products=integer_products(model),
        adapters=adapters,
        parameters=sum(value.const_value.size for value in model.graph.initializers.values() if value.const_value),
        file_bytes={name: (artifact.folder / name).stat().st_size for name in files_of(artifact.folder)},
        parity=artifact.parity(),
    )

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
from adakron_export.graph import kron_op
from adakron_export.graph.keys import MODULE_KEY, REWRITES_KEY

if TYPE_CHECKING:
    from adakron_export.checkpoints.checkpoint import Checkpoint

_log = logging.getLogger(__name__)
_INPUTS = {kron_op.OP_TYPE: kron_op.INPUTS[1:], kron_op.BANK_OP_TYPE: (*kron_op.BANK_INPUTS[1:], kron_op.CODE_INPUT)}


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
        kind: ``peft`` or ``reference``.
        task: What it is for.
        architecture: The model's class.
        backbone: Its name or folder.
        settings: r, k, order, activation, experts.
        adapters: One per layer.
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
        adapters: One per KronAdapter node.
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
    from adakron_export.checkpoints.checkpoint import find_checkpoint

    return _inspect_checkpoint(find_checkpoint(path, backbone))


def _inspect_checkpoint(found: Checkpoint) -> CheckpointInfo:
    from adakron_export.checkpoints.loading import adapter_layers, load_model, task_of

    model = load_model(found)
    config = model.active_peft_config
    name = model.active_adapter
    adapters = tuple(
        AdapterInfo(
            module,
            {
                f"{part}.{key}": tuple(tensor.shape)
                for part, network in zip(("a1", "a2", "up"), layer.networks(name), strict=True)
                for key, tensor in network.named_parameters()
            },
        )
        for module, layer in adapter_layers(model.get_base_model()).items()
    )
    counts: Counter[str] = Counter()
    for key, parameter in model.named_parameters():
        kind = "adapter" if ".adakron_" in key else "head" if ".modules_to_save." in key else "backbone"
        counts[kind] += 0 if ".original_module." in key else parameter.numel()
    return CheckpointInfo(
        path=str(found.path),
        kind="reference" if found.is_reference else "peft",
        task=task_of(model).value,
        architecture=type(model.get_base_model()).__name__,
        backbone=found.backbone,
        settings={key: getattr(config, key) for key in ("r", "k", "kron_order", "activation", "num_experts")},
        adapters=adapters,
        adapter_parameters=counts["adapter"],
        head_parameters=counts["head"],
        total_parameters=sum(counts.values()),
        file_bytes=found.weights.stat().st_size,
    )


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
                for name, value in zip(_INPUTS[node.op_type], node.inputs[1:], strict=False)
                if value is not None and value.shape is not None
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

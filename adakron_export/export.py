"""The main job: a checkpoint becomes a verified artifact."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adakron_export.artifact import (
    CALIBRATION,
    CARD,
    LADDER,
    PARITY,
    Artifact,
    Attempt,
    Manifest,
    SourceFile,
    TensorInfo,
    dtype_named,
    files_of,
    sha256_of,
    write_manifest,
    written_files,
)
from adakron_export.card import model_card
from adakron_export.companions import copy_companions, has_tokenizer
from adakron_export.device import Device
from adakron_export.errors import ArtifactError, BackboneError, CheckpointError, ExportError
from adakron_export.exportable import check_padding, check_positions, check_tokenizer, check_trained
from adakron_export.extras import package_versions, require
from adakron_export.graph.passes.static_quantization import Kind, Rounding
from adakron_export.graph.targets import Target, check_dtype, target_named
from adakron_export.input_space import model_space
from adakron_export.ladder import Judge, Rung, first_that_holds, rungs_of
from adakron_export.layouts import check_layout, lay_out_for_javascript
from adakron_export.onnx_file import write_model
from adakron_export.places import check_there
from adakron_export.sides import tokenizer_folder
from adakron_export.staging import check_replaceable, check_writable, put_in_place, staged_folder
from adakron_export.validation.parity import ParityReport
from adakron_export.validation.tolerance import Tolerance, tolerance_for
from adakron_export.verify import find_overflow, prove

if TYPE_CHECKING:
    import onnx_ir as ir
    from peft import PeftModel

    from adakron_export.adapter.checkpoint import Checkpoint
    from adakron_export.adapter.task_model import TaskModel
    from adakron_export.evaluation_data import EvaluationData

Progress = Callable[[str], None]
CALIBRATION_TEXTS = 256


@dataclass(frozen=True, slots=True)
class ExportResult:
    """What an export came to.

    Attributes:
        folder: Where the artifact was to stand.
        written: Whether it does.
        parity: What validation said; ``None`` where it was left out.
        artifact: The artifact, where it was written.
        attempts: What was tried for the largest accuracy drop, in its order; the last one is the artifact.
    """

    folder: Path
    written: bool
    parity: ParityReport | None
    artifact: Artifact | None
    attempts: tuple[Attempt, ...] = ()


def export_onnx(
    checkpoint: str | Path,
    output: str | Path,
    *,
    backbone: str | Path | None = None,
    task: str | None = None,
    target: str = "portable",
    dtype: str = "fp32",
    opset: int | None = None,
    data: str | None = None,
    max_accuracy_drop: float | None = None,
    atol: float | None = None,
    validate: bool = True,
    force: bool = False,
    overwrite: bool = False,
    layout: str = "flat",
    progress: Progress = lambda _: None,
) -> ExportResult:
    """Load a checkpoint, fold its adapters, export it to ONNX and prove that the outputs are the same.

    Args:
        checkpoint: PEFT folder, reference file, or hub id.
        output: The artifact's folder.
        backbone: Folder or hub id; what the checkpoint names by default.
        task: Such as ``text-classification``, or a synonym; inferred by default.
        target: ``portable``, ``ort-cpu``, ``openvino``, ``ort-cuda`` or ``tensorrt``.
        dtype: Of the graph: ``fp32``, ``fp16``, ``bf16``, ``int8``, ``fp8`` or ``int4``. Outputs are float32 in any
            case.
        opset: Version of the standard operators, 18 to 23; 20 by default, 21 for int4, and 23 for target ``ort-cpu``.
        data: Text to find the scales of int8 or fp8 on, for target ``tensorrt`` or ``openvino``, and to measure the
            accuracy on; read as for training.
        max_accuracy_drop: By how many points of 100 the task's first metric may be worse on ``data``, such as 0.5.
            From the fastest to the most accurate dtype the first one that holds is kept, beginning with ``dtype``.
        atol: Largest absolute error of an output; the dtype's own tolerance by default.
        validate: Compare with eager PyTorch, which needs ONNX Runtime.
        force: Write the artifact even where validation fails, or the adapters change nothing.
        overwrite: Replace an artifact that is there, in one step, at the end.
        layout: ``flat`` as optimum and sentence-transformers read it, or ``transformers.js``, which looks for
            ``onnx/model.onnx`` or another name by dtype.
        progress: Told of each stage as it begins.

    Raises:
        CheckpointError: The checkpoint cannot be read or does not fit its backbone.
        BackboneError: The backbone cannot be loaded.
        ExportError: The model or an option cannot be exported.
        ArtifactError: ``output`` is something that must not be replaced.
        MissingPackageError: ONNX Runtime is not installed.
    """
    folder, dtype = Path(output), dtype_named(dtype)
    lowered_for = target_named(target)
    check_layout(layout, dtype)
    calibrated = data is not None and (max_accuracy_drop is None or dtype in lowered_for.calibrated)
    opset = lowered_for.default_opset(dtype) if opset is None else opset
    check_dtype(lowered_for, dtype, opset=opset, calibrated=calibrated)
    rungs = rungs_of(lowered_for, dtype, max_accuracy_drop, data)
    tolerance_for(dtype).changed({"absolute": atol})
    check_there(checkpoint, CheckpointError)
    if backbone is not None:
        check_there(backbone, BackboneError)
    _check_place(folder, runs=validate or data is not None, overwrite=overwrite)
    if lowered_for.device is Device.OPENVINO and (validate or max_accuracy_drop is not None):
        require("openvino", extra="openvino")
    progress("load the checkpoint and its backbone")
    from adakron_export.adapter.checkpoint import find_checkpoint
    from adakron_export.adapter.loading import load_model

    found = find_checkpoint(checkpoint, backbone)
    model = load_model(found, task=task)
    eager = _eager(found, model, force=force)
    progress("fold the adapters")
    folded = _folded(found, model, lowered_for, dtype)
    judge = None
    if max_accuracy_drop is not None and data is not None:
        text = _read_text(found, eager, data, progress)
        judge = Judge(eager, text, max_drop=max_accuracy_drop / 100, device=lowered_for.device, progress=progress)
    with ThreadPoolExecutor(1) as beside, staged_folder(folder) as staged:
        sources = beside.submit(_sources, found)  # hashed while PyTorch traces
        scales_from = data if calibrated else None
        make = _Making(found, model, eager, folded, sources, lowered_for, opset, scales_from, progress)
        artifact, attempts = first_that_holds(rungs, lambda rung: make(rung, staged), judge)
        if attempts:
            _write_json(staged / LADDER, {"data": Path(str(data)).name, "max_accuracy_drop": max_accuracy_drop,
                                          "attempts": [row.to_json() for row in attempts]})  # fmt: skip
        tolerance = tolerance_for(artifact.manifest.dtype).changed({"absolute": atol})
        report = _proven(artifact, eager, folded, lowered_for.device, tolerance, progress) if validate else None
        sound = (report is None or report.passed) and (not attempts or attempts[-1].held)
        if not sound and not force:
            return ExportResult(folder, False, report, None, attempts)
        (staged / CARD).write_text(model_card(artifact, folder.name), encoding="utf-8")
        if layout == "transformers.js":
            lay_out_for_javascript(staged, artifact.manifest.dtype)
        artifact = write_manifest(staged, artifact.manifest)
        put_in_place(
            staged, folder, problem=partial(check_replaceable, folder, ours=written_files, overwrite=overwrite)
        )
    return ExportResult(folder, True, report, Artifact(folder, artifact.manifest, artifact.stamp), attempts)


@dataclass(frozen=True, slots=True)
class _Making:
    """Makes the files of one checkpoint's artifact, in a dtype."""

    found: Checkpoint
    model: PeftModel
    eager: TaskModel
    folded: TaskModel
    sources: Future[tuple[SourceFile, ...]]
    target: Target
    opset: int
    data: str | None
    progress: Progress

    def __call__(self, rung: Rung, folder: Path) -> Artifact:
        from adakron_export.graph.build import build_graph

        self.progress(f"export the graph ({rung.label}, opset {self.opset})")
        data = self.data if rung.dtype in self.target.calibrated else None
        describe = partial(_manifest, self.found, self.model, self.folded, self.sources, rung=rung, target=self.target,
                           opset=self.opset, data=data)  # fmt: skip
        calibrate = None
        if data is not None:
            calibrate = _Calibration(self.found, self.eager, describe, data, Kind(rung.dtype), self.progress)
        graph = build_graph(self.folded, opset=self.opset, target=self.target, dtype=rung.dtype, calibrate=calibrate,
                            per_token=rung.per_token)  # fmt: skip
        manifest = describe(graph)
        self.progress("write the model")
        for name in files_of(folder):  # of what was tried before
            (folder / name).unlink()
        _write_model(graph, self.found, self.model, folder)
        if calibrate is not None:
            _write_json(folder / CALIBRATION, {"data": manifest.calibrated_on, "token_ids": calibrate.token_ids})
        plain = has_tokenizer(folder) and check_tokenizer(folder, self.folded, self.progress)
        return Artifact(folder, replace(manifest, plain_tokenizer=plain))


def _read_text(
    found: Checkpoint, eager: TaskModel, data: str, progress: Progress, *, limit: int | None = None
) -> EvaluationData:
    from adakron_export.evaluation_data import read_evaluation, tokenizer_of

    folder = tokenizer_folder(found)
    return read_evaluation(data, task=eager.task, config=eager.config.to_dict(), tokenizer=tokenizer_of(folder),
                           space=model_space(eager, folder), limit=limit, say=progress)  # fmt: skip


def _proven(
    artifact: Artifact, eager: TaskModel, folded: TaskModel, device: Device, tolerance: Tolerance, progress: Progress
) -> ParityReport:
    """Compare with eager PyTorch, and write down what came out."""
    progress("validate against eager PyTorch")
    report = prove(artifact, eager, folded, tolerance=tolerance, device=device, progress=progress)
    if any(row.non_finite for row in report.rows):
        report = replace(report, overflow=find_overflow(folded))
    _write_json(artifact.folder / PARITY, report.to_json())
    return report


def _check_place(folder: Path, *, runs: bool, overwrite: bool) -> None:
    if runs:
        require("onnxruntime", extra="cpu' or 'adakron-export[gpu")
    problem = check_replaceable(folder, ours=written_files, overwrite=overwrite)
    if problem:
        raise ArtifactError(problem)
    check_writable(folder)


def _eager(found: Checkpoint, model: PeftModel, *, force: bool) -> TaskModel:
    if not force:
        check_trained(found.path, model)
    return _task_model(found, model, model.get_base_model())


def _task_model(found: Checkpoint, model: PeftModel, module: Any) -> TaskModel:
    from adakron_export.adapter.loading import task_of
    from adakron_export.adapter.pooling import read_pooling
    from adakron_export.adapter.task_model import TaskModel

    check_padding(model)
    check_positions(model)
    return TaskModel(module, task_of(model), pooling=read_pooling(found.backbone_folder)).eval()


def _folded(found: Checkpoint, model: PeftModel, target: Target, dtype: str) -> TaskModel:
    import torch

    from adakron_export.adapter.folding import fold
    from adakron_export.graph.build import torch_dtype

    module = fold(model)
    captured_in = torch_dtype(target, dtype)
    if captured_in is not torch.float32:
        if captured_in is torch.bfloat16 and model.get_base_model().config.model_type == "vit":
            raise ExportError("images go into a graph in its own dtype, and numpy has no bf16; export in fp16 or fp32")
        module = module.to(captured_in)
        broken = [name for name, tensor in module.state_dict().items()
                  if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all())]  # fmt: skip
        if broken:
            half = "bf16" if captured_in is torch.bfloat16 else "fp16"
            raise ExportError(f"{broken[0]} has values that {half} cannot hold; export in bf16 or fp32")
    return _task_model(found, model, module)


@dataclass(slots=True)
class _Calibration:
    """Finds the roundings to 8 bits of a captured graph, on some of the text.

    Attributes:
        token_ids: What the text is made of, once it was read.
    """

    found: Checkpoint
    eager: TaskModel
    describe: Callable[[ir.Model], Manifest]
    data: str
    kind: Kind
    progress: Progress
    token_ids: list[int] = field(default_factory=list)

    def __call__(self, captured: ir.Model) -> dict[str, Rounding]:
        from adakron_export.calibration import calibrate

        self.progress(f"calibrate {self.kind.value} on {self.data}")
        text = _read_text(self.found, self.eager, self.data, self.progress, limit=CALIBRATION_TEXTS)
        self.token_ids = sorted({token for row in text.features["input_ids"] for token in row})
        return calibrate(captured, self.describe(captured), text.batches, self.progress, kind=self.kind)


def _write_model(graph: ir.Model, found: Checkpoint, model: PeftModel, folder: Path) -> None:
    """The graph, the configuration, and the tokenizer's files as they are: other transformers read them too."""
    write_model(graph, folder)
    config = model.get_base_model().config
    config.architectures = [type(model.get_base_model()).__name__]
    config.to_json_file(folder / "config.json")
    copy_companions((found.folder, found.backbone_folder), folder)


def _sources(found: Checkpoint) -> tuple[SourceFile, ...]:
    """The adapter's weights, and the files of its backbone."""
    from adakron_export.adapter.checkpoint import backbone_files

    return tuple(SourceFile(file.name, sha256_of(file)) for file in (found.weights, *backbone_files(found)))


def _manifest(
    found: Checkpoint, model: PeftModel, folded: TaskModel, sources: Future[tuple[SourceFile, ...]], graph: ir.Model,
    *, rung: Rung, target: Target, opset: int, data: str | None,
) -> Manifest:  # fmt: skip
    from adakron_export.adapter.config import PEFT_TYPE
    from adakron_export.adapter.task_model import position_limit

    settings = model.active_peft_config.to_dict()
    adapter, *backbone = sources.result()
    kept = (
        "r",
        "k",
        "activation",
        "kron_order",
        "num_experts",
        "scale",
        "rank_pattern",
        "layers_to_transform",
        "peft_type",
    )
    return Manifest(
        task=folded.task.value,
        target=target.name,
        dtype=rung.dtype,
        opset=opset,
        inputs=tuple(_tensor_info(value) for value in graph.graph.inputs),
        outputs=tuple(_tensor_info(value) for value in graph.graph.outputs),
        adapter={**{key: settings[key] for key in kept}, "peft_type": PEFT_TYPE.value},
        adapter_source=adapter,
        backbone_source=tuple(backbone),
        backbone=Path(found.backbone).name if Path(found.backbone).exists() else found.backbone,
        max_length=position_limit(folded.model),
        disabled_optimizers=target.disabled_optimizers,
        float_dtype=target.floating(rung.dtype),
        per_token=rung.per_token,
        calibrated_on=Path(data).name if data is not None else None,
        versions=package_versions(),
    )


def _tensor_info(value: ir.Value) -> TensorInfo:
    shape = tuple(dim if isinstance(dim, int) else str(dim.value) for dim in value.shape or ())
    assert value.dtype is not None
    return TensorInfo(str(value.name), value.dtype.numpy().name, shape)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")

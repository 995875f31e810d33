"""Makes the files of an artifact out of a loaded checkpoint."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adakron_export.artifacts.artifact import Artifact
from adakron_export.artifacts.genai import write_genai_config
from adakron_export.artifacts.listing import files_of, sha256_of, written_files
from adakron_export.artifacts.manifest import CALIBRATION, Bank, Manifest, SourceFile, TensorInfo
from adakron_export.artifacts.onnx_file import write_model
from adakron_export.artifacts.sealed import seal_graph
from adakron_export.checkpoints.exportable import check_padding, check_positions, check_tokenizer, check_trained
from adakron_export.data.settings import TextSettings
from adakron_export.errors import ArtifactError, BackboneError, CheckpointError, ExportError
from adakron_export.extras import package_versions, require
from adakron_export.files.places import check_there
from adakron_export.files.records import write_json
from adakron_export.files.staging import check_replaceable, check_writable
from adakron_export.graph.layout import BankLayout
from adakron_export.graph.passes.static_quantization import Kind, Rounding
from adakron_export.graph.stacks import Array
from adakron_export.graph.targets import GraphSpec
from adakron_export.subjects.opened import tokenizer_folder
from adakron_export.subjects.space import model_space
from adakron_export.subjects.subject import Subject
from adakron_export.tokenization.companions import copy_companions, has_tokenizer

if TYPE_CHECKING:
    import onnx_ir as ir

    from adakron_export.checkpoints.checkpoint import Checkpoint
    from adakron_export.checkpoints.kinds import Loaded
    from adakron_export.checkpoints.task_model import TaskModel
    from adakron_export.validation.texts import EvaluationData

_log = logging.getLogger(__name__)
CALIBRATION_TEXTS = 256


@dataclass(frozen=True, slots=True)
class Source:
    """What an artifact is made of.

    Attributes:
        loaded: The checkpoint, and its model.
        eager: The unfolded model, behind its signature.
        data: Where the text is to calibrate and to measure on.
        text: How it is read.
    """

    loaded: Loaded
    eager: TaskModel
    data: str | None
    text: TextSettings

    @property
    def found(self) -> Checkpoint:
        """Where the checkpoint lies."""
        return self.loaded.checkpoint

    def folded(self, spec: GraphSpec, layout: BankLayout | None = None) -> TaskModel:
        """The model with its adapters folded, in what a graph is captured in.

        Args:
            spec: The graph.
            layout: What a bank's graph takes; it has an adapter of zeros at each place.

        Raises:
            ExportError: The model has values that the dtype cannot hold.
        """
        import torch

        from adakron_export.graph.banking import with_places
        from adakron_export.graph.build import torch_dtype

        if self.loaded.adapts:
            _log.info("fold the adapters")
        module = self.loaded.fold() if layout is None else with_places(self.loaded.peft_model, layout)
        captured_in = torch_dtype(spec)
        if captured_in is not torch.float32:
            if captured_in is torch.bfloat16 and self.eager.takes_images:
                raise ExportError(
                    "images go into a graph in its own dtype, and numpy has no bf16; export in fp16 or fp32"
                )
            module = module.to(captured_in)
            broken = [name for name, tensor in module.state_dict().items()
                      if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all())]  # fmt: skip
            if broken:
                raise ExportError(f"{broken[0]} has values that {spec.floating} cannot hold; export in bf16 or fp32")
        return _task_model(self.loaded, module)

    def files(self) -> tuple[SourceFile, ...]:
        """The adapter's weights, and the files of its backbone."""
        from adakron_export.checkpoints.backbone import backbone_files

        files = (self.found.weights, *backbone_files(self.found))
        return tuple(SourceFile(file.name, sha256_of(file)) for file in files)

    def read_text(self, *, limit: int | None = None) -> EvaluationData:
        """The text, or so many of its rows, as the checkpoint's tokenizer and labels make it."""
        from adakron_export.validation.texts import Text, TextModel, read_evaluation, tokenizer_of

        assert self.data is not None
        folder, eager = tokenizer_folder(self.found), self.eager
        model = TextModel(eager.task, eager.config.to_dict(), tokenizer_of(folder), model_space(eager, folder))
        return read_evaluation(Text(self.data, self.text), model, limit=limit)


def check_places(subjects: Iterable[Subject], folder: Path, *, overwrite: bool) -> None:
    """Raise where a checkpoint or a backbone is not there, or the artifact has no place, before the work is done.

    Raises:
        CheckpointError: A checkpoint is not there.
        BackboneError: A backbone is not there.
        ArtifactError: The folder must not be replaced.
        OSError: Nothing can be written there.
    """
    for subject in subjects:
        check_there(subject.path, CheckpointError)
        if subject.backbone is not None:
            check_there(subject.backbone, BackboneError)
    problem = check_replaceable(folder, ours=written_files, overwrite=overwrite)
    if problem:
        raise ArtifactError(problem)
    check_writable(folder)


def check_runtimes(spec: GraphSpec, *, runs: bool) -> None:
    """Raise where what the artifact will be run in is not installed.

    Raises:
        MissingPackageError: A runtime is missing.
    """
    if not runs:
        return
    require("onnxruntime", extra="cpu' or 'adakron-export[gpu")
    if spec.lowered_for.runtime == "openvino":
        require("openvino", extra="openvino")


def load_source(subject: Subject, *, data: str | None, text: TextSettings | None, force: bool) -> Source:
    """Load a checkpoint that can be exported.

    Args:
        subject: The checkpoint.
        data: Where text is.
        text: How it is read.
        force: Take adapters too that change nothing.

    Raises:
        CheckpointError: The checkpoint cannot be read, does not fit its backbone, or was not trained.
        BackboneError: The backbone cannot be loaded.
        ExportError: The model cannot be exported.
    """
    _log.info("load the checkpoint and its backbone")
    from adakron_export.checkpoints.finding import find_checkpoint
    from adakron_export.checkpoints.loading import load_checkpoint
    from adakron_export.graph.sample import sample_batch

    loaded = load_checkpoint(find_checkpoint(subject.path, subject.backbone), task=subject.task)
    eager = _task_model(loaded)
    if not force:
        check_trained(loaded, eager, sample_batch(eager.config, eager.signature))
    return Source(loaded, eager, data, text or TextSettings())


def _task_model(loaded: Loaded, module: Any = None) -> TaskModel:
    from adakron_export.checkpoints.loading import task_model_of

    check_padding(loaded.base)
    check_positions(loaded.base)
    return task_model_of(loaded, module)


@dataclass(frozen=True, slots=True)
class BankRows:
    """What a bank is to be, and the rows that its graph brings along: those of its first adapter."""

    bank: Bank
    first: Mapping[str, Array]


class Making:
    """Makes the files of one checkpoint's artifact, as one graph after the other.

    Args:
        source: The checkpoint.
        files: The source's files, which are hashed while PyTorch traces.
        spec: The first graph; the others are captured in the same floating dtype.
        bank: The bank that the graphs are to be of, where they are.
    """

    def __init__(
        self, source: Source, files: Future[tuple[SourceFile, ...]], spec: GraphSpec, *, bank: BankRows | None = None
    ) -> None:
        self.source = source
        self.files = files
        self._spec = spec
        self._bank = bank

    @cached_property
    def folded(self) -> TaskModel:
        """The folded model that all graphs are captured from."""
        return self.source.folded(self._spec, None if self._bank is None else self._bank.bank.layout)

    def __call__(self, spec: GraphSpec, folder: Path) -> Artifact:
        """Make the files of a graph in the place of those that were tried before."""
        from adakron_export.graph.build import build_graph
        from adakron_export.graph.passes.bank import BankPass, require_inputs

        folded = self.folded
        _log.info("export the graph (%s, opset %s)", spec.label, spec.opset)
        calibration = _Calibration(self, spec) if spec.needs_text else None
        bank = None if self._bank is None else BankPass(self._bank.bank.layout, self._bank.first)
        graph = build_graph(folded, spec, calibrate=calibration, bank=bank)
        manifest = self.manifest(graph, spec)
        _log.info("write the model")
        for name in files_of(folder):
            (folder / name).unlink()
        if self._bank is not None and self._bank.bank.places is not None:
            seal_graph(graph, self._bank.bank, folder)
        if not spec.lowered_for.optional_inputs:
            require_inputs(graph)
        self._write(graph, folder)
        if calibration is not None:
            write_json(folder / CALIBRATION, {"data": manifest.calibrated_on, "token_ids": calibration.token_ids})
        write_genai_config(folder, manifest)
        plain = has_tokenizer(folder) and check_tokenizer(folder, folded)
        return Artifact(folder, replace(manifest, plain_tokenizer=plain))

    def _write(self, graph: ir.Model, folder: Path) -> None:
        """The graph, the configuration, and the tokenizer's files as they are: other transformers read them too."""
        write_model(graph, folder)
        model, found = self.source.loaded.base, self.source.found
        model.config.architectures = [type(model).__name__]
        model.config.to_json_file(folder / "config.json")
        copy_companions((found.folder, found.backbone_folder), folder)

    def manifest(self, graph: ir.Model, spec: GraphSpec) -> Manifest:
        """What is to be said of a graph."""
        from adakron_export.checkpoints.task_model import position_limit

        source, folded = self.source, self.folded
        name = source.found.backbone
        adapter, *backbone = self.files.result()
        return Manifest(
            task=folded.task.value,
            spec=spec,
            inputs=tuple(_tensor_info(value) for value in graph.graph.inputs if value.name in folded.signature.inputs),
            outputs=tuple(_tensor_info(value) for value in graph.graph.outputs),
            adapter=source.loaded.describe(),
            adapter_source=adapter,
            backbone_source=tuple(backbone),
            backbone=Path(name).name if Path(name).exists() else name,
            max_length=position_limit(folded.model),
            disabled_optimizers=spec.lowered_for.disabled_optimizers,
            float_dtype=spec.floating,
            bank=None if self._bank is None else self._bank.bank,
            calibrated_on=Path(str(source.data)).name if spec.needs_text else None,
            versions=package_versions(),
        )


@dataclass(slots=True)
class _Calibration:
    """Finds the roundings of a captured graph, on some of the text.

    Attributes:
        token_ids: What the text is made of, once it was read.
    """

    making: Making
    spec: GraphSpec
    token_ids: list[int] = field(default_factory=list)

    def __call__(self, captured: ir.Model) -> Mapping[str, Rounding]:
        from adakron_export.probing.calibration import calibrate

        _log.info("calibrate %s on %s", self.spec.dtype, self.making.source.data)
        text = self.making.source.read_text(limit=CALIBRATION_TEXTS)
        self.token_ids = sorted({token for row in text.features["input_ids"] for token in row})
        manifest = self.making.manifest(captured, self.spec)
        return calibrate(captured, manifest, text.batches, kind=Kind(self.spec.dtype))


def _tensor_info(value: ir.Value) -> TensorInfo:
    shape = tuple(dim if isinstance(dim, int) else str(dim.value) for dim in value.shape or ())
    assert value.dtype is not None
    return TensorInfo(str(value.name), value.dtype.numpy().name, shape)

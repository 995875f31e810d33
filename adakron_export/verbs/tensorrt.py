"""An artifact or a checkpoint becomes a TensorRT engine."""

from __future__ import annotations

import contextlib
import logging
import shlex
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from adakron_export.artifacts.artifact import Artifact, is_artifact, open_artifact
from adakron_export.artifacts.engine import ENGINE, LOG, EngineFolder, EngineManifest, write_engine_manifest
from adakron_export.artifacts.listing import ENGINE_MANIFEST, written_files
from adakron_export.artifacts.manifest import ADAPTER_FOLDER
from adakron_export.artifacts.shapes import (
    DEFAULT_ADAPTERS,
    EngineShapes,
    Profile,
    bank_shapes,
    profiles_for,
    shape_text,
    tensor_shape,
)
from adakron_export.engines.builder import BuiltEngine, build_engine
from adakron_export.engines.settings import EngineOptions
from adakron_export.errors import BuildError, EngineError
from adakron_export.files.staging import check_replaceable, put_in_place, staged_folder
from adakron_export.graph.dtypes import dtype_named
from adakron_export.machine.flavors import Flavor, flavor_named
from adakron_export.machine.gpu import first_gpu
from adakron_export.subjects.subject import Subject, as_subject
from adakron_export.tokenization.companions import copy_companions

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class EngineResult:
    """What a build came to.

    Attributes:
        folder: The engine's folder.
        engine_bytes: The engine's size.
    """

    folder: EngineFolder
    engine_bytes: int


def export_engine(
    source: str | Path | Subject,
    output: str | Path,
    *,
    flavor: str = "auto",
    dtype: str | None = None,
    data: str | Path | None = None,
    shapes: EngineShapes | None = None,
    options: EngineOptions | None = None,
    overwrite: bool = False,
) -> EngineResult:
    """Build a TensorRT engine.

    Args:
        source: An artifact, or a checkpoint, which is exported and validated first; a `Subject` where the checkpoint's
            backbone or task is to be named.
        output: The engine's folder.
        flavor: ``auto``, ``tensorrt`` or ``rtx``.
        dtype: What it computes in, a name of `DTYPES`; an artifact has its own, and a checkpoint is exported in fp16.
        data: Text to calibrate a checkpoint's int8 or fp8 on.
        shapes: The shapes that it takes; 1x1 to 32x512 by default, or to the model's longest input, tuned for 8x128.
        options: What else the builder is told.
        overwrite: Replace an engine that is there, in one step, at the end.

    Raises:
        EngineError: An option is refused, there is no GPU where one is needed, or the build fails.
        MissingPackageError: The flavor is not installed.
        ArtifactError: The artifact is damaged.
        CheckpointError: The checkpoint cannot be read.
    """
    subject, folder = as_subject(source), Path(output)
    chosen, settings = flavor_named(flavor), options or EngineOptions()
    replaceable = partial(
        check_replaceable, folder, ours=partial(written_files, manifest=ENGINE_MANIFEST), overwrite=overwrite
    )
    problem = replaceable()
    if problem:
        raise EngineError(problem)
    settings.check(chosen)
    chosen.load()
    with _opened(subject, dtype, None if data is None else str(data)) as artifact:
        wanted = shapes or EngineShapes()
        if wanted.max_adapters is not None and artifact.manifest.bank is None:
            raise EngineError(f"{subject.path} is no bank; leave max_adapters out")
        order = _Order(artifact, str(subject.path), folder, profiles_for(artifact.manifest, wanted), chosen, settings,
                       wanted.max_adapters or DEFAULT_ADAPTERS)  # fmt: skip
        with staged_folder(folder) as staged:
            try:
                built = build_engine(
                    artifact, order.profiles, chosen, settings, log=staged / LOG, max_adapters=order.max_adapters
                )
            except BuildError as error:
                kept = folder.with_name(f"{folder.name}.failed.log")
                shutil.copyfile(staged / LOG, kept)
                raise BuildError(f"{error}; the builder's log is {kept}") from error
            _log.info("write the engine")
            (staged / ENGINE).write_bytes(built.plan)
            shutil.copyfile(artifact.folder / "config.json", staged / "config.json")
            copy_companions([artifact.folder], staged)
            if artifact.manifest.bank is not None:
                shutil.copytree(artifact.folder / ADAPTER_FOLDER, staged / ADAPTER_FOLDER)
            manifest = write_engine_manifest(staged, order.manifest(built)).manifest
            artifact.check_there()
            put_in_place(staged, folder, problem=replaceable)
    return EngineResult(EngineFolder(folder, manifest), built.plan.nbytes)


@contextlib.contextmanager
def _opened(subject: Subject, dtype: str | None, data: str | None) -> Iterator[Artifact]:
    """The artifact itself, or one that is exported for the purpose."""
    wanted = None if dtype is None else dtype_named(dtype).name
    if is_artifact(Path(subject.path)):
        yield _usable(subject, open_artifact(subject.path), wanted, data)
        return
    from adakron_export.verbs.onnx import export_onnx

    with tempfile.TemporaryDirectory() as folder:
        result = export_onnx(subject, Path(folder) / "artifact", target="tensorrt", dtype=wanted or "fp16", data=data)
        if result.artifact is None:
            assert result.parity is not None
            raise EngineError(
                f"{subject.path} in {wanted or 'fp16'} is {result.parity.max_abs_error:.2g} off the checkpoint, which "
                "is too much; `adakron-export onnx` shows where, and --dtype fp32 is exact"
            )
        yield result.artifact


def _usable(subject: Subject, artifact: Artifact, dtype: str | None, data: str | None) -> Artifact:
    """The artifact, if an engine can be built of it with these options.

    Raises:
        EngineError: An option does not fit the artifact.
    """
    path, own = subject.path, artifact.manifest.spec.dtype
    if dtype_named(own).quantised and artifact.manifest.calibrated_on is None:
        raise EngineError(
            f"{path} is in {own} for CPUs; export the checkpoint with --target tensorrt, in fp16, or in int8 with "
            "--data TEXT"
        )
    if artifact.manifest.bank is not None and artifact.manifest.spec.lowered_for.optional_inputs:
        raise EngineError(
            f"{path} is a bank for {artifact.manifest.spec.target}; TensorRT would take the initializers of its "
            "inputs for constants: make the bank with --target tensorrt"
        )
    useless = {"data": data, "backbone": subject.backbone, "task": subject.task}
    for name, value in useless.items():
        if value is not None:
            raise EngineError(
                f"{path} is an artifact, which --{name} has no use for; give the checkpoint in its place"
            )
    if dtype not in (None, own):
        raise EngineError(
            f"{path} is in {own}, and an engine has the precision of its graph; export the checkpoint in {dtype}, or "
            "give the checkpoint in its place"
        )
    return artifact


@dataclass(frozen=True, slots=True)
class _Order:
    """What is built, and what of it is written down.

    Attributes:
        artifact: What it is built of.
        source: The name that the user gave.
        output: The engine's folder.
        profiles: The shapes that it takes.
        flavor: The builder.
        options: What that is told.
        max_adapters: The most adapters, of a bank.
    """

    artifact: Artifact
    source: str
    output: Path
    profiles: tuple[Profile, ...]
    flavor: Flavor
    options: EngineOptions
    max_adapters: int = DEFAULT_ADAPTERS

    def manifest(self, built: BuiltEngine) -> EngineManifest:
        """What is to be said of a built engine."""
        bank = self.artifact.manifest.bank
        made_of, options, gpu = self.artifact.manifest, self.options, first_gpu()
        asked = {name: str(value) if isinstance(value, Path) else value for name, value in asdict(options).items()}
        return EngineManifest(
            flavor=self.flavor.name,
            version=built.version,
            dtype=made_of.spec.dtype,
            task=made_of.task,
            inputs=made_of.inputs,
            outputs=made_of.outputs,
            max_length=made_of.max_length,
            profiles=tuple(tuple(map(shape_text, profile.shapes)) for profile in self.profiles),
            compute_capability=options.compute_capability or (),
            built_on=gpu.compute_capability if gpu else None,
            options={name: value for name, value in asked.items() if value and name != "compute_capability"},
            source={name: digest for name, digest in made_of.files.items() if name.endswith((".onnx", ".onnx_data"))},
            layers=built.layers,
            build_seconds=round(built.seconds, 2),
            command=self.command_line(),
            bank=bank,
            max_adapters=None if bank is None or bank.places is not None else self.max_adapters,
            backbone_source=() if bank is None else made_of.backbone_source,
            backbone="" if bank is None else made_of.backbone,
        )

    def command_line(self) -> str:
        """What ``trtexec``, or ``tensorrt_rtx``, is told to build the same."""
        artifact, options = self.artifact, self.options
        folder = Path(self.source) if is_artifact(Path(self.source)) else Path("ARTIFACT")
        model = folder / artifact.model.relative_to(artifact.folder)
        words = [self.flavor.tool, f"--onnx={model}", f"--saveEngine={self.output / ENGINE}", "--skipInference"]
        for index, profile in enumerate(self.profiles):
            words += [f"--profile={index}"] if len(self.profiles) > 1 else []
            for kind, shape, past in zip(("min", "opt", "max"), profile.shapes, profile.pasts, strict=True):
                texts = [
                    f"{info.name}:{'x'.join(map(str, tensor_shape(info, shape, past)))}"
                    for info in artifact.manifest.inputs
                ]
                texts += self._of_bank(profile, ("min", "opt", "max").index(kind))
                words.append(f"--{kind}Shapes={','.join(texts)}")
        if self.flavor.needs_gpu:
            words.append("--stronglyTyped")
        if options.compute_capability:
            capabilities = ",".join(text.replace(".", "") for text in options.compute_capability)
            words.append(f"--computeCapabilities={capabilities}")
        words += [f"--timingCacheFile={options.timing_cache}"] if options.timing_cache else []
        words += [f"--memPoolSize=workspace:{options.workspace_mb}M"] if options.workspace_mb else []
        words += ["--versionCompatible"] if options.version_compatible else []
        words += ["--hardwareCompatibilityLevel=ampere+"] if options.hardware_compatible else []
        words += ["--stripWeights"] if options.strip_weights else []
        words += ["--refit"] if options.refittable else []
        return shlex.join(words)

    def _of_bank(self, profile: Profile, which: int) -> list[str]:
        bank = self.artifact.manifest.bank
        found = {} if bank is None else bank_shapes(bank, profile, self.max_adapters)
        return [f"{name}:{'x'.join(map(str, shapes[which]))}" for name, shapes in found.items()]

"""An artifact or a checkpoint becomes a TensorRT engine."""

from __future__ import annotations

import contextlib
import shlex
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from adakron_export.artifact import DTYPES, INT4, Artifact, dtype_named, is_artifact, open_artifact, written_files
from adakron_export.companions import copy_companions
from adakron_export.engines.builder import BuiltEngine, EngineOptions, build_engine
from adakron_export.engines.flavors import Flavor, flavor_named
from adakron_export.engines.folder import (
    ENGINE,
    LOG,
    MANIFEST,
    EngineFolder,
    EngineManifest,
    write_engine_manifest,
)
from adakron_export.engines.gpu import first_gpu
from adakron_export.engines.profiles import Profile, Shape, profiles_for, shape_text, tensor_shape
from adakron_export.errors import BuildError, EngineError
from adakron_export.staging import check_replaceable, put_in_place, staged_folder

Progress = Callable[[str], None]


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
    source: str | Path,
    output: str | Path,
    *,
    backbone: str | Path | None = None,
    task: str | None = None,
    flavor: str = "auto",
    dtype: str | None = None,
    data: str | None = None,
    min_shape: Shape | None = None,
    opt_shape: Shape | None = None,
    max_shape: Shape | None = None,
    profiles: Sequence[Sequence[Shape]] = (),
    options: EngineOptions | None = None,
    overwrite: bool = False,
    progress: Progress = lambda _: None,
) -> EngineResult:
    """Build a TensorRT engine.

    Args:
        source: An artifact, or a checkpoint, which is exported and validated first.
        output: The engine's folder.
        backbone: Of a checkpoint; what it names by default.
        task: Of a checkpoint; inferred by default.
        flavor: ``auto``, ``tensorrt`` or ``rtx``.
        dtype: ``fp32``, ``fp16``, ``bf16``, ``int8`` or ``fp8``; an artifact has its own, and a
            checkpoint is exported in fp16.
        data: Text to calibrate a checkpoint's int8 or fp8 on.
        min_shape: The smallest texts and tokens; 1 and 1 by default.
        opt_shape: What it is tuned for; 8 and 128 by default.
        max_shape: The largest; 32 and 512 by default, or the model's longest input.
        profiles: Instead of these three, several profiles of three shapes each.
        options: What else the builder is told.
        overwrite: Replace an engine that is there, in one step, at the end.
        progress: Told of each phase.

    Raises:
        EngineError: An option is refused, there is no GPU where one is needed, or the build fails.
        MissingPackageError: The flavor is not installed.
        ArtifactError: The artifact is damaged.
        CheckpointError: The checkpoint cannot be read.
    """
    chosen, settings, folder = flavor_named(flavor), options or EngineOptions(), Path(output)
    replaceable = partial(
        check_replaceable, folder, ours=partial(written_files, manifest=MANIFEST), overwrite=overwrite
    )
    problem = replaceable()
    if problem:
        raise EngineError(problem)
    settings.check(chosen)
    chosen.load()
    with _opened(source, dtype, data, backbone, task, progress) as artifact:
        shapes = profiles_for(artifact.manifest, smallest=min_shape, best=opt_shape, largest=max_shape,
                              several=profiles)  # fmt: skip
        with staged_folder(folder) as staged:
            try:
                built = build_engine(artifact, shapes, chosen, settings, log=staged / LOG, progress=progress)
            except BuildError as error:
                kept = folder.with_name(f"{folder.name}.failed.log")
                shutil.copyfile(staged / LOG, kept)
                raise BuildError(f"{error}; the builder's log is {kept}") from error
            progress("write the engine")
            (staged / ENGINE).write_bytes(built.plan)
            shutil.copyfile(artifact.folder / "config.json", staged / "config.json")
            copy_companions([artifact.folder], staged)
            manifest = _manifest(artifact, source, folder, shapes, chosen, settings, built)
            manifest = write_engine_manifest(staged, manifest).manifest
            put_in_place(staged, folder, problem=replaceable)
    return EngineResult(EngineFolder(folder, manifest), built.plan.nbytes)


@contextlib.contextmanager
def _opened(
    source: str | Path, dtype: str | None, data: str | None, backbone: str | Path | None, task: str | None,
    progress: Progress,
) -> Iterator[Artifact]:  # fmt: skip
    """The artifact itself, or one that is exported for the purpose."""
    dtype = dtype_named(dtype) if dtype is not None else None
    if dtype is not None and dtype not in DTYPES:
        raise EngineError(f"dtype {dtype!r} is unknown; choose one of {', '.join(DTYPES)}")
    if is_artifact(Path(source)):
        artifact = open_artifact(source)
        own = artifact.manifest.dtype
        if own == INT4 or (own == "int8" and artifact.manifest.calibrated_on is None):
            raise EngineError(
                f"{source} is in {own} for CPUs; export the checkpoint with --target tensorrt, in fp16, "
                "or in int8 with --data TEXT"
            )
        if data is not None:
            raise EngineError(
                f"{source} is an artifact, which --data has no use for; give the checkpoint in its place"
            )
        if dtype not in (None, artifact.manifest.dtype):
            raise EngineError(
                f"{source} is in {artifact.manifest.dtype}, and an engine has the precision of its graph; export the "
                f"checkpoint in {dtype}, or give the checkpoint in its place"
            )
        yield artifact
        return
    from adakron_export.export import export_onnx

    with tempfile.TemporaryDirectory() as folder:
        result = export_onnx(source, Path(folder) / "artifact", backbone=backbone, task=task, target="tensorrt",
                             dtype=dtype or "fp16", data=data, progress=progress)  # fmt: skip
        if result.artifact is None:
            assert result.parity is not None
            raise EngineError(
                f"{source} in {dtype or 'fp16'} is {result.parity.max_abs_error:.2g} off the checkpoint, which is too "
                "much; `adakron-export onnx` shows where, and --dtype fp32 is exact"
            )
        yield result.artifact


def _manifest(
    artifact: Artifact, source: str | Path, output: Path, profiles: Sequence[Profile], flavor: Flavor,
    options: EngineOptions, built: BuiltEngine,
) -> EngineManifest:  # fmt: skip
    digests, gpu = artifact.manifest.files, first_gpu()
    asked = {name: str(value) if isinstance(value, Path) else value for name, value in asdict(options).items()}
    return EngineManifest(
        flavor=flavor.name,
        version=built.version,
        dtype=artifact.manifest.dtype,
        task=artifact.manifest.task,
        inputs=artifact.manifest.inputs,
        outputs=artifact.manifest.outputs,
        max_length=artifact.manifest.max_length,
        profiles=tuple(tuple(map(shape_text, profile.shapes)) for profile in profiles),
        compute_capability=options.compute_capability,
        built_on=gpu.compute_capability if gpu else None,
        options={name: value for name, value in asked.items() if value and name != "compute_capability"},
        source={name: digest for name, digest in digests.items() if name.endswith((".onnx", ".onnx_data"))},
        layers=built.layers,
        build_seconds=round(built.seconds, 2),
        command=command_line(artifact, source, output, profiles, flavor, options),
    )


def command_line(
    artifact: Artifact, source: str | Path, output: Path, profiles: Sequence[Profile], flavor: Flavor,
    options: EngineOptions,
) -> str:  # fmt: skip
    """What ``trtexec``, or ``tensorrt_rtx``, is told to build the same."""
    folder = Path(source) if is_artifact(Path(source)) else Path("ARTIFACT")
    model = folder / artifact.model.relative_to(artifact.folder)
    words = [flavor.tool, f"--onnx={model}", f"--saveEngine={output / ENGINE}", "--skipInference"]
    for index, profile in enumerate(profiles):
        words += [f"--profile={index}"] if len(profiles) > 1 else []
        for kind, shape in zip(("min", "opt", "max"), profile.shapes, strict=True):
            texts = (
                f"{info.name}:{'x'.join(map(str, tensor_shape(info, shape)))}" for info in artifact.manifest.inputs
            )
            words.append(f"--{kind}Shapes={','.join(texts)}")
    if flavor.needs_gpu:
        words.append("--stronglyTyped")
    if options.compute_capability:
        words.append(f"--computeCapabilities={','.join(text.replace('.', '') for text in options.compute_capability)}")
    words += [f"--timingCacheFile={options.timing_cache}"] if options.timing_cache else []
    words += [f"--memPoolSize=workspace:{options.workspace_mb}M"] if options.workspace_mb else []
    words += ["--versionCompatible"] if options.version_compatible else []
    words += ["--hardwareCompatibilityLevel=ampere+"] if options.hardware_compatible else []
    words += ["--stripWeights"] if options.strip_weights else []
    words += ["--refit"] if options.refittable else []
    return shlex.join(words)

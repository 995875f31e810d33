"""The folder of an engine: what is in it, how it is written, and how it is opened.

model.engine                     TensorRT's plan; loading it runs code that is in it
adakron_engine.json              the manifest
build.log                        everything that the builder said
config.json, tokenizer files     as in the artifact
adapters/NAME/                   of a bank
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from adakron_export.artifacts.listing import ENGINE_MANIFEST, files_of, problems_of, sha256_of
from adakron_export.artifacts.manifest import (
    SIGNATURE,
    Bank,
    Positive,
    SourceFile,
    TensorInfo,
    check_bank,
    check_tensors,
    is_inside,
)
from adakron_export.artifacts.shapes import Bounds
from adakron_export.errors import EngineError, RunnerError
from adakron_export.files.records import read_object, record_of
from adakron_export.files.staging import write_text
from adakron_export.machine.flavors import FLAVORS
from adakron_export.quantities import parse_shape

ENGINE, LOG = "model.engine", "build.log"
FORMAT_VERSION = 1


@dataclass(frozen=True, slots=True)
class EngineManifest:
    """What `adakron_engine.json` holds.

    Attributes:
        flavor: ``tensorrt`` or ``rtx``.
        version: Version of the library that built it.
        dtype: Precision of the graph, and so of the engine.
        task: What the model is for.
        inputs: Inputs in their order.
        outputs: Outputs in their order; always float32.
        max_length: The longest input that the model takes, in tokens.
        profiles: Each the smallest, the best and the largest shape, as text.
        compute_capability: For which GPUs, where that was said.
        bank: The bank that it was built of, whose adapters lie beside it.
        max_adapters: The most adapters that it takes.
        built_on: The compute capability of the GPU that was there.
        options: What else was asked for.
        source: sha256 of the artifact's files.
        layers: Layers of the network as it was parsed.
        build_seconds: What the build took.
        command: What builds the same without this package.
        backbone_source: The files of a bank's backbone, which its adapters belong to.
        backbone: The name of a bank's backbone.
        files: sha256 of every file but the manifest itself.
    """

    flavor: str
    version: str
    dtype: str
    task: str
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    max_length: Positive | None
    profiles: tuple[tuple[str, ...], ...]
    compute_capability: tuple[str, ...]
    options: dict[str, Any]
    source: dict[str, str]
    layers: int
    build_seconds: float
    command: str
    built_on: str | None = None
    bank: Bank | None = None
    max_adapters: Positive | None = None
    backbone_source: tuple[SourceFile, ...] = ()
    backbone: str = ""
    files: dict[str, str] = field(default_factory=dict)

    @property
    def bounds(self) -> tuple[Bounds, ...]:
        """The smallest and the largest shape of each profile."""
        return tuple((parse_shape(profile[0]), parse_shape(profile[-1])) for profile in self.profiles)


@dataclass(frozen=True, slots=True)
class EngineFolder:
    """An engine's folder that was opened.

    Attributes:
        folder: Where it is.
        manifest: What it says.
        allow_code: Whether host code that the plan brings along may run.
    """

    folder: Path
    manifest: EngineManifest
    allow_code: bool = False

    @property
    def engine(self) -> Path:
        """TensorRT's plan."""
        return self.folder / ENGINE


def is_engine(path: Path) -> bool:
    """Whether a folder claims to hold an engine."""
    return (path / ENGINE_MANIFEST).is_file()


def write_engine_manifest(folder: Path, manifest: EngineManifest) -> EngineFolder:
    """Write the manifest, with the sha256 of every file that is there."""
    files = {name: sha256_of(folder / name) for name in files_of(folder) if name not in (ENGINE_MANIFEST, SIGNATURE)}
    content = {"format_version": FORMAT_VERSION, **asdict(manifest), "files": files}
    write_text(folder / ENGINE_MANIFEST, json.dumps(content, indent=2) + "\n")
    return open_engine(folder)


def open_engine(folder: str | Path, *, allow_code: bool = False) -> EngineFolder:
    """Open an engine's folder and check that its files are those that were written; the engine is not loaded.

    Args:
        folder: The engine's folder.
        allow_code: Let host code run that its plan may bring along, with the rights of this process.

    Raises:
        EngineError: There is no engine, its manifest is not readable, or a file changed.
    """
    path = Path(folder)
    if not is_engine(path):
        raise EngineError(
            f"{path}: no engine ({ENGINE_MANIFEST} is missing); build one with `adakron-export tensorrt`"
        )
    manifest = _read(path / ENGINE_MANIFEST)
    problems = problems_of(path, manifest.files)
    if problems:
        raise EngineError(f"{path}: {problems}; or build it again")
    return EngineFolder(path, manifest, allow_code)


def _read(path: Path) -> EngineManifest:
    try:
        content = read_object(path)
        version = content.pop("format_version")
        if version != FORMAT_VERSION:
            raise EngineError(f"{path}: format version {version!r:.20}, this release reads {FORMAT_VERSION}")
        manifest = record_of(content, EngineManifest)
        check_tensors(manifest.inputs, manifest.outputs)
        if manifest.bank is not None:
            check_bank(manifest.bank)
        usable = manifest.flavor in FLAVORS and ENGINE in manifest.files and bool(manifest.bounds)
    except (OSError, ValueError, KeyError, IndexError, RunnerError) as error:
        raise EngineError(f"{path}: not a readable manifest ({type(error).__name__}: {error})") from error
    if not usable:
        raise EngineError(f"{path}: not a manifest that this release reads; build the engine again")
    outside = [name for name in (*manifest.files, *manifest.source) if not is_inside(name)]
    if outside:
        raise EngineError(f"{path}: names files outside its folder: {', '.join(outside)}")
    return manifest

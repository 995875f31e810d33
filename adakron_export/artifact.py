"""The exported folder: what is in it, how it is written, and how it is opened. Needs no torch.

model.onnx (+ model.onnx_data)   the graph, named as Hugging Face tools expect it
config.json, tokenizer files,    so that those tools open the folder as it is
  generation and pooling settings
adakron_export.json              the manifest
parity.json                      what was compared, and the result
calibration.json                 of int8 and fp8 with fixed scales: the tokens of the text they were found on
accuracy.json                    what was tried for the largest accuracy drop that was allowed
README.md                        a model card
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from pathlib import Path, PurePosixPath
from threading import Thread
from typing import Annotated, Any, Literal, TypeVar

import msgspec

from adakron_export.errors import ArtifactError, first_few
from adakron_export.json_files import object_of, read_bytes, read_object, record_of
from adakron_export.staging import folder_lock, write_text
from adakron_export.tasks import Task

T = TypeVar("T")
Positive = Annotated[int, msgspec.Meta(gt=0, le=2**53)]

MANIFEST = "adakron_export.json"
PARITY = "parity.json"
CARD = "README.md"
CALIBRATION = "calibration.json"
LADDER = "accuracy.json"
SIGNATURE = "model.sig"  # of OpenSSF's model signing, which covers all other files
MODEL = "model.onnx"
MODEL_DATA = "model.onnx_data"
FORMAT_VERSION = 1
HALF_DTYPES = ("fp16", "bf16")
QUANTISED_DTYPES = ("int8", "fp8")
INT4 = "int4"  # of weights alone
DTYPES = ("fp32", *HALF_DTYPES, *QUANTISED_DTYPES, INT4)
TORCH_NAMES = {"float32": "fp32", "float16": "fp16", "half": "fp16", "bfloat16": "bf16"}
LAYOUTS = ("flat", "transformers.js")
TARGETS = ("portable", "ort-cpu", "openvino", "ort-cuda", "tensorrt")  # the rows of graph/targets.py
PLAIN_ATTENTION, MULTI_HEAD_ATTENTION = "plain", "MultiHeadAttention"  # forms that `tune` tries
REWRITES_KEY = "adakron_export.rewrites"  # metadata of a model: our passes that it went through
MODULE_KEY = "adakron_export.module"  # metadata of a node: the module of the model that it comes from
SHIFTED_KEY = "adakron_export.shifted"  # the same: what it puts out is off by a bias that is added later, or never
EXACT_SUMS = "session.x64quantprecision"  # ONNX Runtime's entry: integer products are exact without VNNI too
_UNLISTED = (SIGNATURE,)
_MANIFESTS = (MANIFEST, "adakron_engine.json")  # a folder has one of them
_TRIES = 20


def _one_of(*names: str) -> msgspec.Meta:
    """What a text of a record may be."""
    return msgspec.Meta(pattern=f"^({'|'.join(names)})$")


def dtype_named(name: str) -> str:
    """A dtype as it is called here, of that name or of PyTorch's, such as ``float16``."""
    return TORCH_NAMES.get(name, name)


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """An input or output: its dtype as numpy names it, and its shape, dynamic axes by name."""

    name: str
    dtype: Annotated[str, _one_of("int64", "int32", "float32", "float16")]
    shape: tuple[int | str, ...]


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file the artifact was made from."""

    name: str
    sha256: str


@dataclass(frozen=True, slots=True)
class Tuning:
    """How ONNX Runtime is fastest with an artifact on one machine; on others it counts for nothing.

    Attributes:
        processor: Its name, as of `describe_machine`.
        cores: Of the machine.
        threads: Of one operator; ``None`` is ONNX Runtime's choice.
        spinning: Whether threads without work wait awake.
        attention: The form that attention is computed in; ``None`` is the exported one. Others are made while opening.
        disabled_optimizers: ONNX Runtime optimisers to leave off, in the place of the manifest's.
        speedup: Over the settings without it, and where that was measured.
        shapes: Texts and tokens, such as ``1x128``.
    """

    processor: str
    cores: int
    threads: Positive | None = None
    spinning: bool = True
    attention: Annotated[str, _one_of(PLAIN_ATTENTION, MULTI_HEAD_ATTENTION)] | None = None
    disabled_optimizers: tuple[str, ...] = ()
    speedup: float = 1.0
    shapes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Manifest:
    """What `adakron_export.json` holds.

    Attributes:
        task: What the model is for, as the hub names it.
        target: The runtime the graph was lowered for.
        dtype: ``fp32``, ``fp16``, ``bf16``, ``int8`` or ``fp8``.
        opset: Version of the standard operators.
        inputs: In their order.
        outputs: In their order; always float32.
        adapter: The adapter's configuration.
        adapter_source: The checkpoint's file.
        backbone_source: The backbone's files.
        backbone: The backbone's name, without its folder.
        max_length: The longest input, in tokens.
        disabled_optimizers: ONNX Runtime optimisers to leave off.
        float_dtype: Of all that is not in 8 bits.
        per_token: Whether every product in int8 has a scale per token; else only those with fewer columns than rows.
        calibrated_on: The text that int8 or fp8 with fixed scales was calibrated on.
        tuning: What `tune` found.
        plain_tokenizer: Whether ``tokenizer.json`` alone gives what transformers' tokenizer gives.
        versions: Of the packages that made it.
        files: sha256 of every file but the manifest itself.
    """

    task: str
    target: str
    dtype: Annotated[str, _one_of(*DTYPES)]
    opset: Positive
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    adapter: dict[str, Any]
    adapter_source: SourceFile
    backbone_source: tuple[SourceFile, ...]
    backbone: str
    max_length: Positive | None
    disabled_optimizers: tuple[str, ...] = ()
    float_dtype: Annotated[str, _one_of("fp32", *HALF_DTYPES)] = "fp32"
    per_token: bool = False
    calibrated_on: str | None = None
    tuning: Tuning | None = None
    plain_tokenizer: bool = False
    versions: dict[str, str] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)

    @property
    def computes_in_half(self) -> bool:
        """Whether what is not in 8 bits is in half precision."""
        return self.float_dtype in HALF_DTYPES


@dataclass(frozen=True, slots=True)
class _Row:
    batch: str


@dataclass(frozen=True, slots=True)
class _Parity:
    """What is read of ``parity.json``."""

    passed: bool
    max_abs_error: float | Literal["inf"]
    reference: str
    candidate: str
    rows: list[_Row]


@dataclass(frozen=True, slots=True)
class Attempt:
    """What came of a rung.

    Attributes:
        label: The rung's.
        metric: That decides.
        reference: Its value in eager PyTorch.
        candidate: Of the artifact.
        flips: Texts whose answer changed.
        examples: Texts in all.
        size_bytes: Of the graph and its weights.
        held: Whether it was good enough.
    """

    label: str
    metric: str
    reference: float
    candidate: float
    flips: int
    examples: int
    size_bytes: int
    held: bool

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class _Ladder:
    """What is read of ``accuracy.json``."""

    data: str
    max_accuracy_drop: float
    attempts: list[Attempt]


@dataclass(frozen=True, slots=True)
class _Calibration:
    """What is read of ``calibration.json``."""

    token_ids: list[Annotated[int, msgspec.Meta(ge=0, le=2**31)]]


@dataclass(frozen=True, slots=True)
class Artifact:
    """An exported folder that was opened."""

    folder: Path
    manifest: Manifest
    stamp: str = ""  # sha256 of the manifest as it was read
    hashed: Future[str] | None = None  # what `problems_of` says, where that is found out beside other work

    @property
    def model(self) -> Path:
        """The ONNX file: ``model.onnx``, or the one of another layout."""
        usual = self.folder / MODEL
        listed = [name for name in self.manifest.files if name.endswith(".onnx")]
        return self.folder / listed[0] if listed and not usual.is_file() else usual

    @property
    def size_bytes(self) -> int:
        """Of the graph and its weights."""
        files = (self.model, self.model.with_name(f"{self.model.name}_data"))
        return sum(file.stat().st_size for file in files if file.exists())

    def parity(self) -> dict[str, Any] | None:
        """What validation said when it was exported; ``None`` where it was left out."""
        return self._record(PARITY, _Parity)

    def attempts(self) -> list[dict[str, Any]]:
        """What was tried for the largest accuracy drop, in its order, or nothing."""
        tried = self._record(LADDER, _Ladder)
        return tried["attempts"] if tried is not None else []

    def measured_on(self) -> str | None:
        """The text that the accuracy was measured on; ``None`` where none was asked for."""
        tried = self._record(LADDER, _Ladder)
        return str(tried["data"]) if tried is not None else None

    def _record(self, name: str, kind: type) -> dict[str, Any] | None:
        """What an export wrote down, of which some is read; ``None`` where it did not.

        Raises:
            ArtifactError: It cannot be read.
        """
        path = self.folder / name
        if not path.is_file():
            return None
        try:
            content = read_object(path)
            record_of({row.name: content[row.name] for row in fields(kind) if row.name in content}, kind)
        except ValueError as error:
            raise ArtifactError(f"{path}: not readable ({error}); export again") from error
        return content

    def calibration_tokens(self) -> tuple[int, ...]:
        """Ids of the tokens that fixed scales were found on; empty where there are none.

        Raises:
            ArtifactError: The file cannot be read.
        """
        found = self._record(CALIBRATION, _Calibration)
        return tuple(found["token_ids"]) if found else ()

    def check(self) -> None:
        """Wait until every file was hashed, and raise unless they are those that were written.

        Raises:
            ArtifactError: They are not.
        """
        problems = self.hashed.result() if self.hashed is not None else problems_of(self.folder, self.manifest.files)
        if problems:
            raise ArtifactError(f"{self.folder}: {problems}; or export it again")

    def was_replaced(self) -> bool:
        """Whether another export has taken its place since it was opened."""
        try:
            return bool(self.stamp) and sha256_of(self.folder / MANIFEST) != self.stamp
        except OSError:
            return True


def problems_of(folder: Path, files: Mapping[str, str]) -> str:
    """In what a folder is not what its manifest says, in words; empty where it is.

    Hidden files are no part of it: nothing reads them.

    Args:
        folder: The artifact's or the engine's.
        files: sha256 of each of its files, by their names.
    """
    there = {name for name in files_of(folder) if name not in (*_UNLISTED, *_MANIFESTS)}
    missing, unlisted = sorted(files.keys() - there), sorted(there - files.keys())
    if missing:
        return f"changed since it was written: {first_few(missing)} missing; restore the files"
    if unlisted:
        return f"holds files that its manifest does not list: {first_few(unlisted)}; move them away"
    odd = [name for name in files if not (folder / name).is_file()]
    if odd:
        return f"holds what is no plain file: {first_few(odd)}; restore the files"
    changed = [name for name, digest in files.items() if sha256_of(folder / name) != digest]
    return f"changed since it was written: {first_few(changed)}; restore the files" if changed else ""


def is_artifact(path: Path) -> bool:
    """Whether a folder claims to be an artifact."""
    return (path / MANIFEST).is_file()


def check_artifact(folder: str | Path) -> Path:
    """Its path, if it looks like an exported folder; a look that costs nothing.

    Raises:
        ArtifactError: It does not.
    """
    path = Path(folder)
    if not path.is_dir():
        raise ArtifactError(f"{path}: no such folder")
    if not is_artifact(path):
        raise ArtifactError(f"{path}: not an artifact ({MANIFEST} is missing); make one with `adakron-export onnx`")
    return path


def open_artifact(folder: str | Path, *, wait: bool = True) -> Artifact:
    """Open an exported folder.

    Args:
        folder: The artifact.
        wait: Check its files now. Else they are hashed beside other work, and whoever opened it calls
            `Artifact.check` before anything that came out of it is used.

    Raises:
        ArtifactError: It is none, it is of a newer format, or its files are not those that were written.
    """
    path = check_artifact(folder)
    for _ in range(_TRIES):
        text = _manifest_bytes(path / MANIFEST)
        manifest = _read_manifest(path / MANIFEST, text)
        hashed = _beside(partial(problems_of, path, manifest.files))
        artifact = Artifact(path, manifest, hashlib.sha256(text).hexdigest(), hashed)
        if not wait:
            return artifact
        try:
            artifact.check()
        except (ArtifactError, OSError):
            if not artifact.was_replaced():
                raise
        else:
            return artifact
    raise ArtifactError(f"{path}: is written again and again; open it when that is over")


def opened_with(folder: str | Path, make: Callable[[Artifact], T]) -> T:
    """What is made of an exported folder, while its files are hashed beside.

    Readers see one export whole: where another one takes its place meanwhile, all is made again.

    Args:
        folder: The artifact.
        make: Reads what it needs.

    Raises:
        ArtifactError: As of `open_artifact`.
    """
    for _ in range(_TRIES):
        artifact = open_artifact(folder, wait=False)
        try:
            made = make(artifact)
        except Exception:
            if artifact.was_replaced():
                continue
            artifact.check()  # what was damaged is the better reason
            raise
        try:
            artifact.check()
        except (ArtifactError, OSError):
            if artifact.was_replaced():
                continue
            raise
        if not artifact.was_replaced():
            return made
    raise ArtifactError(f"{folder}: is written again and again; open it when that is over")


def _beside(work: Callable[[], str]) -> Future[str]:
    """The result of some work in a thread of its own."""
    future: Future[str] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    Thread(target=run, daemon=True).start()
    return future


def files_of(folder: Path) -> list[str]:
    """The files of a folder and of those in it, by their names within it; hidden ones are left out."""
    names = (file.relative_to(folder) for file in folder.rglob("*") if not file.is_dir())
    return sorted(name.as_posix() for name in names if not any(part.startswith(".") for part in name.parts))


def written_files(folder: Path, manifest: str = MANIFEST) -> list[str] | None:
    """The files of a folder that its manifest lists, and what goes with it; ``None`` for what has none.

    Args:
        folder: An artifact's or an engine's.
        manifest: The name of its manifest.
    """
    try:
        files = read_object(folder / manifest)["files"]
    except (OSError, ValueError, KeyError):
        return None
    return [manifest, SIGNATURE, *files] if isinstance(files, dict) else None


def is_inside(name: str) -> bool:
    """Whether a file's name stays within its folder."""
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts and path.as_posix() == name and "\\" not in name


def write_manifest(folder: Path, manifest: Manifest) -> Artifact:
    """Write the manifest, with the sha256 of every file that is there."""
    files = {name: sha256_of(folder / name) for name in files_of(folder) if name not in (MANIFEST, SIGNATURE)}
    manifest = _parse({**asdict(manifest), "files": files})
    text = _manifest_text(manifest)
    write_text(folder / MANIFEST, text)
    return Artifact(folder, manifest, hashlib.sha256(text.encode()).hexdigest())


def update_manifest(artifact: Artifact, change: Callable[[Manifest], Manifest]) -> Artifact:
    """Change the manifest of the same files, in one step and as the only writer.

    Raises:
        ArtifactError: Another export has taken the artifact's place.
    """
    with folder_lock(artifact.folder):
        now = open_artifact(artifact.folder, wait=False)
        if now.manifest.files != artifact.manifest.files:
            raise ArtifactError(f"{artifact.folder}: was exported anew meanwhile; nothing was written")
        manifest = change(now.manifest)
        text = _manifest_text(manifest)
        write_text(artifact.folder / MANIFEST, text)
    return Artifact(artifact.folder, manifest, hashlib.sha256(text.encode()).hexdigest())


def _manifest_text(manifest: Manifest) -> str:
    return json.dumps({"format_version": FORMAT_VERSION, **asdict(manifest)}, indent=2) + "\n"


def sha256_of(path: Path) -> str:
    """The file's sha256 as hexadecimal text."""
    digest, piece = hashlib.sha256(), memoryview(bytearray(2**22))  # long: beside a busy thread each waits its turn
    with path.open("rb", buffering=0) as stream:
        while count := stream.readinto(piece):
            digest.update(piece[:count])
    return digest.hexdigest()


def _manifest_bytes(path: Path) -> bytes:
    try:
        return read_bytes(path)
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path}: not a readable manifest ({error})") from error


def _read_manifest(path: Path, text: bytes) -> Manifest:
    try:
        content = object_of(text)
        version = content.pop("format_version")
    except (ValueError, KeyError) as error:
        raise ArtifactError(f"{path}: not a readable manifest ({type(error).__name__}: {error})") from error
    if version != FORMAT_VERSION:
        raise ArtifactError(
            f"{path}: format version {version}, this release reads {FORMAT_VERSION}; "
            "upgrade adakron-export, or export the checkpoint again"
        )
    try:
        manifest = _parse(content)
    except ValueError as error:
        raise ArtifactError(f"{path}: not a readable manifest ({error})") from error
    if not manifest.files:
        raise ArtifactError(f"{path}: lists no files; export the checkpoint again")
    outside = [name for name in manifest.files if not is_inside(name)]
    if outside:
        raise ArtifactError(f"{path}: names files outside its folder: {', '.join(outside)}")
    return manifest


def _parse(content: dict[str, Any]) -> Manifest:
    """The manifest of plain data.

    Raises:
        ValueError: A value is missing, unknown, of another type or impossible.
    """
    manifest = record_of(content, Manifest)
    if manifest.task not in list(Task):
        raise ValueError(f"task is {manifest.task!r:.60}")
    lacking = {"r", "k", "num_experts"} - manifest.adapter.keys()
    if lacking:
        raise ValueError(f"adapter lacks {', '.join(sorted(lacking))}")
    check_tensors(manifest.inputs, manifest.outputs)
    return manifest


def check_tensors(*sides: tuple[TensorInfo, ...]) -> None:
    """Raise unless inputs, and outputs, have names of their own.

    Raises:
        ValueError: There are none, or one repeats.
    """
    for infos in sides:
        if not infos or len({info.name for info in infos}) < len(infos):
            raise ValueError("inputs or outputs lack or repeat")

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

import contextlib
import hashlib
import logging
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Annotated, Any, Literal, TypeVar

import msgspec

from adakron_export.artifacts.listing import files_of, problems_of, sha256_of
from adakron_export.artifacts.manifest import (
    ADAPTER_FOLDER,
    CALIBRATION,
    LADDER,
    MANIFEST,
    MODEL,
    PARITY,
    SIGNATURE,
    STACKS,
    Manifest,
    manifest_of,
    manifest_text,
    read_manifest,
)
from adakron_export.errors import ArtifactError
from adakron_export.files.records import read_bytes, read_object, record_of
from adakron_export.files.staging import folder_lock, write_text

_log = logging.getLogger(__name__)
T = TypeVar("T")
_TRIES = 10  # to read an artifact without holding off its writers


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
        label: Label of the rung.
        metric: The metric that decides.
        reference: Its value in eager PyTorch.
        candidate: Value of the artifact.
        flips: Texts whose answer changed.
        examples: Texts in all.
        size_bytes: Size of the graph and its weights.
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
        files = (self.model, self.model.with_name(f"{self.model.name}_data"), self.folder / STACKS)
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
            ArtifactError: The file cannot be read.
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
            skip = f"{ADAPTER_FOLDER}/" in problems
            more = "open it with skip_damaged, which leaves such adapters out" if skip else "export it again"
            raise ArtifactError(f"{self.folder}: {problems}; or {more}")

    def was_replaced(self) -> bool:
        """Whether another export has taken its place since it was opened."""
        try:
            return bool(self.stamp) and sha256_of(self.folder / MANIFEST) != self.stamp
        except OSError:
            return True

    def check_there(self) -> None:
        """Raise where another export has taken its place since it was opened.

        Raises:
            ReplacedError: One has.
        """
        if self.was_replaced():
            raise ReplacedError(self.folder)


def is_artifact(path: Path) -> bool:
    """Whether a folder claims to be an artifact."""
    return (path / MANIFEST).is_file()


def check_artifact(folder: str | Path) -> Path:
    """Its path, if it looks like an exported folder; a look that costs nothing.

    Raises:
        ArtifactError: The folder does not.
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
        ArtifactError: The folder is no artifact, it is of a newer format, or its files are not those that were
            written.
    """
    path = check_artifact(folder)
    if not wait:
        return _read_artifact(path)
    return _read_whole(path, lambda artifact: artifact)


def opened_with(folder: str | Path, make: Callable[[Artifact], T], *, skip_damaged: bool = False) -> T:
    """What is made of an exported folder, while its files are hashed beside.

    Readers see one export whole: where another one takes its place meanwhile, all is made again.

    Args:
        folder: The artifact.
        make: Reads what it needs.
        skip_damaged: Whether adapters of a bank whose files are damaged are left out.

    Raises:
        ArtifactError: `open_artifact` refuses the folder.
    """
    return _read_whole(check_artifact(folder), make, skip_damaged=skip_damaged)


def _read_whole(path: Path, make: Callable[[Artifact], T], *, skip_damaged: bool = False) -> T:
    for _ in range(_TRIES):
        with contextlib.suppress(ReplacedError):
            return _read_once(path, make, skip_damaged=skip_damaged)
    with folder_lock(path):  # writers that leave no gap wait for one reader
        return _read_once(path, make, skip_damaged=skip_damaged)


class ReplacedError(ArtifactError):
    """Another export took the artifact's place while it was read."""

    def __init__(self, folder: Path) -> None:
        super().__init__(f"{folder}: was written again while it was read; try once more")


def _read_once(path: Path, make: Callable[[Artifact], T], *, skip_damaged: bool) -> T:
    artifact = _read_artifact(path, skip_damaged=skip_damaged)
    try:
        made = _made_and_checked(artifact, make)
    except Exception:
        if artifact.was_replaced():
            raise ReplacedError(path) from None
        raise
    artifact.check_there()
    return made


def _made_and_checked(artifact: Artifact, make: Callable[[Artifact], T]) -> T:
    try:
        made = make(artifact)
    except Exception:
        artifact.check()  # what was damaged is the better reason
        raise
    artifact.check()
    return made


def _read_artifact(path: Path, *, skip_damaged: bool = False) -> Artifact:
    """The artifact as its manifest says, whose files are hashed beside other work."""
    text = _manifest_bytes(path / MANIFEST)
    manifest = read_manifest(path / MANIFEST, text)
    damaged = _damaged_adapters(path, manifest) if skip_damaged else {}
    for name, problem in damaged.items():
        _log.warning("%s: adapter %s is left out: its folder %s", path, name, problem)
    manifest = manifest.without(damaged)
    ignored = tuple(f"{ADAPTER_FOLDER}/{name}/" for name in damaged)
    hashed = _beside(partial(problems_of, path, manifest.files, ignored=ignored))
    return Artifact(path, manifest, hashlib.sha256(text).hexdigest(), hashed)


def _damaged_adapters(path: Path, manifest: Manifest) -> dict[str, str]:
    """The adapters of a bank whose files are not those that were written, and what is wrong with them."""
    found = {}
    for name in manifest.bank.adapters if manifest.bank is not None else ():
        prefix = f"{ADAPTER_FOLDER}/{name}/"
        files = {
            each.removeprefix(prefix): digest for each, digest in manifest.files.items() if each.startswith(prefix)
        }
        problem = problems_of(path / prefix, files)
        if problem:
            found[name] = problem
    return found


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


def write_manifest(folder: Path, manifest: Manifest) -> Artifact:
    """Write the manifest, with the sha256 of every file that is there."""
    files = {name: sha256_of(folder / name) for name in files_of(folder) if name not in (MANIFEST, SIGNATURE)}
    manifest = manifest_of({**manifest.to_json(), "files": files})
    text = manifest_text(manifest)
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
        text = manifest_text(manifest)
        write_text(artifact.folder / MANIFEST, text)
    return Artifact(artifact.folder, manifest, hashlib.sha256(text.encode()).hexdigest())


def _manifest_bytes(path: Path) -> bytes:
    try:
        return read_bytes(path)
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path}: not a readable manifest ({error})") from error

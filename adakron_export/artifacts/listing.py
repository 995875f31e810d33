"""The files of a folder: which there are, which its manifest lists, and whether they are those that were written."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from adakron_export.artifacts.manifest import MANIFEST, SIGNATURE
from adakron_export.errors import first_few
from adakron_export.files.records import read_object

ENGINE_MANIFEST = "adakron_engine.json"
_UNLISTED = (SIGNATURE, MANIFEST, ENGINE_MANIFEST)  # a folder has one manifest


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


def problems_of(folder: Path, files: Mapping[str, str], *, ignored: tuple[str, ...] = ()) -> str:
    """In what a folder is not what its manifest says, in words; empty where it is.

    Hidden files are no part of it: nothing reads them.

    Args:
        folder: The artifact's or the engine's.
        files: sha256 of each of its files, by their names.
        ignored: Folders within it that are not looked at, such as ``adapters/NAME/``.
    """
    there = {name for name in files_of(folder) if name not in _UNLISTED and not name.startswith(ignored)}
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


def sha256_of(path: Path) -> str:
    """The file's sha256 as hexadecimal text; a file that did not change is read once per process."""
    before = _stamp(path)
    if before in _known:
        return _known[before]
    digest = _digest_of(path)
    settled = time.time_ns() - max(before.modified_ns, before.changed_ns) > _UNSETTLED_NS
    if settled and _stamp(path) == before:
        _known[before] = digest
    return digest


class _Stamp(NamedTuple):
    """What tells one state of a file from another."""

    device: int
    inode: int
    size: int
    modified_ns: int
    changed_ns: int


_known: dict[_Stamp, str] = {}
_UNSETTLED_NS = 2 * 10**9  # within a tick of the file system's clock a file may change and keep its times


def _stamp(path: Path) -> _Stamp:
    found = path.stat()
    return _Stamp(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def _digest_of(path: Path) -> str:
    digest, piece = hashlib.sha256(), memoryview(bytearray(2**22))  # long: beside a busy thread each waits its turn
    with path.open("rb", buffering=0) as stream:
        while count := stream.readinto(piece):
            digest.update(piece[:count])
    return digest.hexdigest()

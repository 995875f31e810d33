"""Folders that appear whole or not at all."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_SUFFIX = ".partial"


@contextlib.contextmanager
def staged_folder(final: Path) -> Iterator[Path]:
    """A new empty folder beside ``final``; call `put_in_place` when it is complete.

    It is removed when the block is left, unless it was put in place. A killed process leaves only a hidden
    ``.NAME.PID.*.partial`` folder, which the next run into the same place removes.
    """
    final = Path(os.path.abspath(final))  # noqa: PTH100 - a link in the way stays a link
    final.parent.mkdir(parents=True, exist_ok=True)
    _sweep(final)
    prefix = f".{final.name}.{os.getpid()}."
    staged = Path(tempfile.mkdtemp(prefix=prefix, suffix=_SUFFIX, dir=final.parent))
    try:
        yield staged
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def put_in_place(staged: Path, final: Path) -> None:
    """Make ``staged`` be ``final`` in one step; what stood there before is gone after it."""
    for file in staged.rglob("*"):
        _sync(file)
    # mkdtemp makes private folders; the result should be as readable as any other folder.
    umask = os.umask(0)
    os.umask(umask)
    staged.chmod(0o777 & ~umask)
    if not final.exists():
        staged.rename(final)
    elif not _exchange(staged, final):
        replaced = staged.with_name(staged.name.removesuffix(_SUFFIX) + ".old" + _SUFFIX)
        final.rename(replaced)
        staged.rename(final)
        shutil.rmtree(replaced, ignore_errors=True)


def check_replaceable(final: Path, *, is_ours: Callable[[Path], bool], overwrite: bool) -> str | None:
    """Why ``final`` must not be replaced, or ``None``: an empty folder is, and ours where that was asked for."""
    other = "and would be replaced; choose another output folder"
    if final.is_symlink():
        return f"{final} is a symbolic link, {other}"
    if not final.exists():
        return None
    if not final.is_dir():
        return f"{final} is a file, {other}"
    if not any(final.iterdir()):
        return None
    if not is_ours(final):
        return f"{final} is a folder with other things in it, {other}"
    return None if overwrite else f"{final} is there already; --overwrite (overwrite=True) replaces it"


def _sync(file: Path) -> None:
    if file.is_file():
        with file.open("rb") as stream:
            os.fsync(stream.fileno())


def _exchange(first: Path, second: Path) -> bool:
    """Swap two folders atomically (Linux's renameat2); ``False`` where the system cannot."""
    if sys.platform != "linux":
        return False
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    result = renameat2(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE)
    return bool(result == 0)


def _sweep(final: Path) -> None:
    """Remove what killed runs into the same place left behind."""
    for folder in final.parent.glob(f".{final.name}.*{_SUFFIX}"):
        pid = folder.name.removeprefix(f".{final.name}.").partition(".")[0]
        if pid.isdigit() and not _alive(int(pid)):
            shutil.rmtree(folder, ignore_errors=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True

"""Files and folders that appear whole or not at all, and never in the place of somebody else's.

Temporary names are random and are made exclusively, so that no link which waits under a known name is written through.
A folder that is being made is locked for as long as its maker lives, and one that is replaced while it is.
"""

from __future__ import annotations

import contextlib
import ctypes
import glob
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from adakron_export.errors import AdaKronError, first_few

if sys.platform != "win32":
    import fcntl

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_SUFFIX = ".partial"


def write_text(file: Path, text: str) -> None:
    """Write a file in one step: readers see the old one or the new one, and a full disk leaves the old one.

    What is no file, such as ``/dev/stdout`` or a pipe, is written to as it is.

    Raises:
        OSError: The path cannot be written; the error names it.
    """
    with named_in_errors(file):
        if _is_stream(file):
            with file.open("w", encoding="utf-8") as stream:
                stream.write(text)
            return
        file.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=f".{file.name}.", suffix=_SUFFIX, dir=file.parent)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
                stream.write(text)
                stream.flush()
                os.fsync(stream.fileno())
            Path(name).chmod(0o666 & ~_umask())
            Path(name).replace(file)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise


@contextlib.contextmanager
def named_in_errors(file: Path) -> Iterator[None]:
    """A full disk or a bad descriptor has no name of its own: give it the file's."""
    try:
        yield
    except OSError as error:
        error.filename = str(file)
        raise


def check_writable(place: Path) -> None:
    """Raise where nothing can be written, before the work is done.

    Args:
        place: A file or a folder that is to be written; it and its parents need not be there yet.

    Raises:
        OSError: Nothing can be; the error names the folder that refuses it.
    """
    if _is_stream(place):
        return
    folder = Path(os.path.abspath(place)).parent  # noqa: PTH100 - a link in the way stays a link
    while not folder.exists():
        folder = folder.parent
    with named_in_errors(folder):
        descriptor, name = tempfile.mkstemp(prefix=".adakron-export.", suffix=_SUFFIX, dir=folder)
        os.close(descriptor)
        Path(name).unlink()


@contextlib.contextmanager
def staged_folder(final: Path) -> Iterator[Path]:
    """A new empty folder beside ``final``; call `put_in_place` when it is complete.

    It is removed when the block is left, unless it was put in place. A killed process leaves only a hidden
    ``.NAME.*.partial`` folder, which the next run into the same place removes: nobody holds its lock.
    """
    final = Path(os.path.abspath(final))  # noqa: PTH100 - a link in the way stays a link
    with named_in_errors(final):
        final.parent.mkdir(parents=True, exist_ok=True)
        _sweep(final)
        staged, held = _make_locked(final)
    try:
        yield staged
    finally:
        shutil.rmtree(staged, ignore_errors=True)
        os.close(held)


def put_in_place(
    staged: Path, final: Path, *, problem: Callable[[], str | None] = lambda: None, locked: bool = False
) -> None:
    """Make ``staged`` be ``final`` in one step; what stood there before is gone after it.

    Args:
        staged: The folder that `staged_folder` made.
        final: The place.
        problem: Asked once more why ``final`` must not be replaced, while nobody else can.
        locked: Whether the caller holds `folder_lock` of ``final`` already.

    Raises:
        AdaKronError: There is a problem.
    """
    for file in staged.rglob("*"):
        _sync(file)
    staged.chmod(0o777 & ~_umask())  # mkdtemp makes private folders
    with folder_lock(final) if final.is_dir() and not locked else contextlib.nullcontext():
        refused = problem()
        if refused:
            raise AdaKronError(refused)
        if not final.exists():
            staged.rename(final)
        elif not _exchange(staged, final):
            replaced = staged.with_name(staged.name.removesuffix(_SUFFIX) + ".old" + _SUFFIX)
            final.rename(replaced)
            staged.rename(final)
            shutil.rmtree(replaced, ignore_errors=True)


@contextlib.contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Hold a folder as its only writer; others wait. Readers take no part in it."""
    while True:
        held = _lock(Path(os.path.realpath(folder)))
        same = held is None or (folder.is_dir() and os.path.samestat(os.fstat(held), folder.stat()))
        if same:
            break
        if held is not None:
            os.close(held)  # it was replaced while we waited
    try:
        yield
    finally:
        if held is not None:
            os.close(held)


def check_replaceable(final: Path, *, ours: Callable[[Path], Collection[str] | None], overwrite: bool) -> str | None:
    """Why ``final`` must not be replaced, or ``None``: an empty folder is, and ours where that was asked for.

    Args:
        final: The place.
        ours: The files of a folder that we wrote, by their names within it; a folder's name stands for all in it.
            ``None`` for a folder that is not ours.
        overwrite: Whether that was asked for.
    """
    other = "and would be replaced; choose another output folder"
    if final.is_symlink():
        return f"{final} is a symbolic link, {other}"
    if not final.exists():
        return None
    if not final.is_dir():
        return f"{final} is a file, {other}"
    if not any(final.iterdir()):
        return None
    written = ours(final)
    if written is None:
        return f"{final} is a folder with other things in it, {other}"
    others = [
        name for name in _entries(final) if not any(name == own or name.startswith(f"{own}/") for own in written)
    ]
    if others:
        names = first_few(others)
        return f"{final} has files that this did not write: {names}; move them away, or choose another output folder"
    return None if overwrite else f"{final} is there already; --overwrite (overwrite=True) replaces it"


def _entries(folder: Path) -> list[str]:
    """Everything in a folder that is not a plain folder itself."""
    return sorted(
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()
    )


def _is_stream(place: Path) -> bool:
    """Whether something is there that is neither a file nor a folder; ``/dev/stdout`` may lead to a file."""
    return place.exists() and (place.parts[:2] == ("/", "dev") or not (place.is_file() or place.is_dir()))


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask


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


def _make_locked(final: Path) -> tuple[Path, int]:
    """A new folder, and the descriptor that holds its lock."""
    while True:
        staged = Path(tempfile.mkdtemp(prefix=f".{final.name}.", suffix=_SUFFIX, dir=final.parent))
        try:
            held = _lock(staged)
        except FileNotFoundError:  # another run swept it before it was locked
            continue
        if staged.is_dir():  # and was not swept while that run held it
            return staged, held if held is not None else os.open(os.devnull, os.O_RDONLY)
        if held is not None:
            os.close(held)


def _lock(folder: Path, *, wait: bool = True) -> int | None:
    """The descriptor that holds a folder's lock; ``None`` where there are no such locks.

    Raises:
        BlockingIOError: Somebody else holds it, and we do not wait.
        OSError: The folder is gone.
    """
    if sys.platform == "win32":
        return None
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        os.close(descriptor)
        raise
    except OSError:  # a file system without locks
        os.close(descriptor)
        return None
    return descriptor


def _sweep(final: Path) -> None:
    """Remove what killed runs into the same place left behind: what is locked is being made."""
    for folder in final.parent.glob(f".{glob.escape(final.name)}.*{_SUFFIX}"):
        try:
            held = _lock(folder, wait=False)
        except OSError:
            continue
        if held is not None:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(held)

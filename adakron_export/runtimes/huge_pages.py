"""Weights on huge pages.

A model whose weights are read from memory at every run spends some of it on looking up addresses: BERT-base has
110,000 pages of 4 KB. On pages of 2 MB it takes 0.97 of the time at 1x16 (0.94 to 1.00, in each of eight openings),
and the same at 1x128. Linux gives those only to memory that asks for them (`madvise`, its default), as ONNX Runtime
does not; `GLIBC_TUNABLES=glibc.malloc.hugetlb=1` in the environment has the same effect on any program.

What opening a session freed is given back first, so that BERT-base keeps 504 MB and not 578, in int8 190 and not 286.
Moving it takes some 0.1 to 0.5 s, in int8 less than 0.05 s, beside whatever comes after the opening.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

_PAGE = 2 << 20  # bytes
_COLLAPSE = 25  # MADV_COLLAPSE, since Linux 6.1
_FULL = 0.5  # of a page in use: what is not would be filled
_MAPS = Path("/proc/self/maps")

Range = tuple[int, int]


class Moving:
    """What goes on in a thread of its own, so that nobody has to wait for it; a measurement does."""

    def __init__(self) -> None:
        self.thread: threading.Thread | None = None

    def wait(self) -> None:
        """Until everything is where it stays."""
        if self.thread is not None:
            self.thread.join()


@contextlib.contextmanager
def huge_pages() -> Iterator[Moving]:
    """Move what was allocated within this to huge pages, where the system has them; elsewhere nothing happens.

    Older memory of the process stays as it is, and what was freed within this is given back. What is read and written
    stays the same, while it moves too.
    """
    moving = Moving()
    if not sys.platform.startswith("linux") or not _MAPS.is_file():
        yield moving
        return
    before = _allocated()
    yield moving
    moving.thread = threading.Thread(target=_move, args=(before,), daemon=True)
    moving.thread.start()


def _move(before: list[Range]) -> None:
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(ctypes.c_size_t(0))  # or what was freed would be moved, and filled, too
    present = (ctypes.c_ubyte * (_PAGE // mmap.PAGESIZE))()
    for start, end in _new(before, _allocated()):
        for page in range(-(-start // _PAGE) * _PAGE, end - _PAGE + 1, _PAGE):
            address, size = ctypes.c_void_p(page), ctypes.c_size_t(_PAGE)
            if libc.mincore(address, size, present) == 0 and sum(present) >= _FULL * len(present):
                libc.madvise(address, size, _COLLAPSE)


def _allocated() -> list[Range]:
    """Addresses of the heap and of anonymous memory, in their order."""
    ranges = []
    for line in _MAPS.read_text().splitlines():
        addresses, access, _, _, _, *name = line.split(maxsplit=5)
        if access == "rw-p" and name in ([], ["[heap]"]):
            start, _, end = addresses.partition("-")
            ranges.append((int(start, 16), int(end, 16)))
    return ranges


def _new(before: list[Range], after: list[Range]) -> Iterator[Range]:
    """What of the later ranges is in none of the earlier ones."""
    for start, end in after:
        for old_start, old_end in before:
            if old_end <= start or old_start >= end:
                continue
            if old_start > start:
                yield start, old_start
            start = old_end
        if start < end:
            yield start, end

"""Memory moves to huge pages with what is in it, and no other memory does."""

import platform
import re
from pathlib import Path

import numpy as np
import pytest

from adakron_export.runtimes.huge_pages import _new, huge_pages

PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def in_huge_pages():
    found = re.search(r"AnonHugePages:\s+(\d+) kB", Path("/proc/self/smaps_rollup").read_text())
    return int(found[1]) << 10


@pytest.mark.skipif(
    not PAGES.is_file() or tuple(map(int, re.findall(r"\d+", platform.release())[:2])) < (6, 1),
    reason="memory is moved to huge pages on demand since Linux 6.1",
)
def test_new_memory_moves_and_keeps_what_is_in_it():
    size = 64 << 20
    older = np.ones(size, np.uint8)
    before = in_huge_pages()
    with huge_pages() as moving:
        newer = np.arange(size // 8)
    moving.wait()
    moved = in_huge_pages() - before
    assert size / 2 < moved < size + older.nbytes / 2
    assert np.array_equal(newer, np.arange(size // 8))


@pytest.mark.parametrize(
    ("before", "after", "new"),
    [
        ([], [(2, 5)], [(2, 5)]),
        ([(2, 5)], [(2, 5)], []),
        ([(2, 5)], [(2, 9)], [(5, 9)]),
        ([(4, 5), (6, 7)], [(2, 9)], [(2, 4), (5, 6), (7, 9)]),
        ([(1, 3), (8, 12)], [(2, 9)], [(3, 8)]),
    ],
)
def test_new_ranges(before, after, new):
    assert list(_new(before, after)) == new


def test_nothing_happens_where_the_system_tells_no_addresses(monkeypatch, tmp_path):
    monkeypatch.setattr("adakron_export.runtimes.huge_pages._MAPS", tmp_path / "maps")
    with huge_pages():
        array = np.ones(8)
    assert array.sum() == 8

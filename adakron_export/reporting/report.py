"""A report: a folder with ``report.json``, which has a schema, and ``index.html``, which is drawn from it."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adakron_export._version import __version__
from adakron_export.errors import ReportError
from adakron_export.files.records import read_json
from adakron_export.files.staging import check_writable, write_text
from adakron_export.reporting.page import render

if TYPE_CHECKING:
    from collections.abc import Mapping

FORMAT_VERSION = 1
DATA, PAGE = "report.json", "index.html"
Content = dict[str, Any]


def report_content(
    *, machine: Mapping[str, Any], versions: Mapping[str, str], repeat: str, subject: Mapping[str, str],
    parity: Content | None = None, latency: Content | None = None,
) -> Content:  # fmt: skip
    """A report as plain data, as ``report.schema.json`` describes it.

    Args:
        machine: What it was measured on.
        versions: Versions of the packages.
        repeat: The command that makes it again.
        subject: What was looked at: its ``name`` and, of an exported model, ``task``, ``target`` and ``dtype``.
        parity: What `ParityReport.to_json` returned.
        latency: What `BenchReport.to_json` returned.
    """
    parts = [part for part in (parity, latency) if part is not None]
    return {
        "format_version": FORMAT_VERSION,
        "adakron_export": __version__,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "passed": all(part["passed"] for part in parts),
        "repeat": repeat,
        "subject": dict(subject),
        "machine": dict(machine),
        "versions": dict(versions),
        "parity": parity,
        "latency": latency,
    }


def write_report(folder: str | Path, content: Content) -> Path:
    """Write both files; others in the folder are left alone.

    Args:
        folder: Made where it is not there.
        content: What `report_content` returned.

    Returns:
        The page.

    Raises:
        ReportError: There is a file in the folder's place.
    """
    folder = Path(folder)
    page, data = render(content), json.dumps(content, indent=2, allow_nan=False) + "\n"
    check_report_folder(folder)
    (folder / PAGE).unlink(missing_ok=True)  # so that a page never stands beside the data of another run
    write_text(folder / DATA, data)
    write_text(folder / PAGE, page)
    return folder / PAGE


def check_report_folder(folder: str | Path) -> None:
    """Raise where no report can be written, before anything is measured.

    Raises:
        ReportError: There is a file in the folder's place.
    """
    if Path(folder).exists() and not Path(folder).is_dir():
        raise ReportError(f"{folder} is a file; a report is a folder, name another one")
    check_writable(Path(folder) / PAGE)


def read_report(path: str | Path) -> Content:
    """Read and check a report.

    Args:
        path: The folder, or its ``report.json``.

    Raises:
        ReportError: The file cannot be read, or is no report that this release knows.
    """
    import jsonschema

    file = Path(path) / DATA if Path(path).is_dir() else Path(path)
    try:
        content = read_json(file)
    except OSError as error:
        raise ReportError(f"{file}: {error.strerror}; write one with --report DIR") from error
    except ValueError as error:
        raise ReportError(f"{file}: not a report ({error})") from error
    found = jsonschema.exceptions.best_match(jsonschema.Draft202012Validator(schema()).iter_errors(content))
    if found is not None:
        raise ReportError(f"{file}: not a report that this release reads: {found.json_path} {found.message[:200]}")
    checked: Content = content
    return checked


@cache
def schema() -> Content:
    """The JSON schema of a report."""
    text = files("adakron_export.reporting").joinpath("report.schema.json").read_text(encoding="utf-8")
    content: Content = json.loads(text)
    return content

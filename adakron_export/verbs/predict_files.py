"""Runs an artifact on files of any number of rows, with Ray Data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from adakron_export.artifacts.artifact import check_artifact
from adakron_export.extras import check_installed
from adakron_export.serving.settings import BulkSettings

if TYPE_CHECKING:
    from adakron_export.serving.bulk import BulkResult


def predict_files(
    artifact: str | Path, source: str | Path, output: str | Path, *, settings: BulkSettings | None = None
) -> BulkResult:
    """Answer every row of some files, and write them as Parquet with all of their columns.

    Each output file is written in one step. A run that was killed goes on where it is called again: what is there
    stays. A row that cannot be answered keeps its own part from being written, and no other.

    Args:
        artifact: The exported folder.
        source: A file, a folder or a pattern of CSV, TSV, JSON lines and Parquet.
        output: A folder. The answers are the column ``prediction``, as `predict` gives them, and
            ``prediction_cut_off`` says of a row whether its text is longer than the model takes.
        settings: How many processes run, and which columns are read.

    Returns:
        How many rows and files there are, and what was wrong with those that are not.

    Raises:
        ArtifactError: The artifact is damaged, or has no tokenizer.
        DataError: There are no such files, or one cannot be read.
        RunnerError: The folder holds another run, or the device is not available.
        MissingPackageError: Ray is not installed.
    """
    settings = settings or BulkSettings()
    check_installed("ray", extra="serve")
    check_artifact(artifact)
    from adakron_export.serving.bulk import answer_files
    from adakron_export.serving.local import check_device

    check_device(settings.device, settings.address)

    return answer_files(Path(artifact), str(source), Path(output), settings)

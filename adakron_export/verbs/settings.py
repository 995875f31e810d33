"""How an artifact is made. Reading this costs nothing: the command line's options are made from it."""

from __future__ import annotations

from dataclasses import dataclass, field

from adakron_export.artifacts.manifest import LAYOUTS
from adakron_export.data.settings import TextSettings
from adakron_export.errors import ExportError
from adakron_export.options.fields import check_record, option


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportSettings:
    """How an artifact is made and written.

    Attributes:
        text: How the text of ``data`` is read.

    Raises:
        ExportError: A value makes no sense.
    """

    opset: int | None = option(
        None, "Version of the standard operators, 18 to 23.", shown="20; int4: 21; ort-cpu: 23", metavar="N"
    )
    per_token: bool = option(False, "Give every int8 product a scale per token, which is slower and more accurate.")
    layout: str = option("flat", "Layout of the folder, for those who look for the model.", choices=LAYOUTS)
    validate: bool = option(True, "Compare the artifact with eager PyTorch.")
    force: bool = option(False, "Write the artifact even if a check fails.")
    text: TextSettings | None = field(default=None)

    def __post_init__(self) -> None:
        """Refuse values that make no sense."""
        check_record(self, ExportError)

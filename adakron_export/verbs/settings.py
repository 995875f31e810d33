"""How an artifact is made. Reading this costs nothing: the command line's options are made from it."""

from __future__ import annotations

from dataclasses import dataclass, field

from adakron_export.artifacts.manifest import LAYOUTS
from adakron_export.data.settings import TextSettings
from adakron_export.errors import ExportError
from adakron_export.options.fields import check_record, option


@dataclass(frozen=True, slots=True, kw_only=True)
class MakingSettings:
    """How an artifact or a bank is made.

    Attributes:
        text: How the text of ``data`` is read.

    Raises:
        ExportError: A value makes no sense.
    """

    opset: int | None = option(
        None, "Version of the standard operators, 18 to 23.", shown="20; int4: 21; ort-cpu: 23", metavar="N"
    )
    per_token: bool = option(False, "Give every int8 product a scale per token, which is slower and more accurate.")
    validate: bool = option(True, "Compare the artifact with eager PyTorch.")
    force: bool = option(False, "Write the artifact even if a check fails.")
    text: TextSettings | None = field(default=None)

    def __post_init__(self) -> None:
        """Refuse values that make no sense."""
        check_record(self, ExportError)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportSettings(MakingSettings):
    """How an artifact is made and written; the fields of `MakingSettings`, and one more."""

    layout: str = option("flat", "Layout of the folder, for those who look for the model.", choices=LAYOUTS)


@dataclass(frozen=True, slots=True, kw_only=True)
class BankSettings(MakingSettings):
    """How a bank is made and written; the fields of `MakingSettings`, and one more."""

    sealed: int | None = option(
        None, "Keep the adapters in a file with N places, for servers that bind no inputs.", metavar="N", least=1
    )

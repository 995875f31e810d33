"""Text that others may have written, as a terminal and a CI's log may show it.

Names, labels and messages come out of files. A terminal obeys what it shows (ECMA-48 control sequences), and
so does a CI that reads its own log (``::error`` and ``##[error]`` of GitHub Actions and Azure Pipelines).
"""

from __future__ import annotations

import re

# What click.style makes of our own words; it can do no harm.
_OUR_STYLES = r"\x1b\[(?:0|1|2|3[0-7]|9[0-7])m"
# Control characters but newline and tab; those that turn the reading direction; line ends of Unicode.
_CONTROL = re.compile(rf"({_OUR_STYLES})|[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
_COMMAND = re.compile(r"^(\s*):(?=:)|#(?=#\[)", re.MULTILINE)


def printable(text: str) -> str:
    """Text of several lines, with all that a terminal or a CI would obey written as an escape."""
    shown = _CONTROL.sub(lambda found: found[1] or _escaped(found[0]), text)
    return _COMMAND.sub(lambda found: (found[1] or "") + _escaped(found[0][-1]), shown)


def one_line(text: str) -> str:
    """The same of a name, which has no lines of its own."""
    return printable(text.replace("\\n", "\\\\n").replace("\n", "\\n").replace("\t", "\\t"))


def _escaped(character: str) -> str:
    number = ord(character)
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}"

"""JSON that somebody else may have written."""

import pytest

from adakron_export.files.records import json_of


def test_half_a_character_is_no_text():
    assert json_of(b'{"a": "\\ud83d\\ude00"}') == {"a": "\N{GRINNING FACE}"}
    for text in (b'{"a": "\\ud800"}', b'{"\\uDC00": 1}', b'["x\\ud83d"]'):
        with pytest.raises(ValueError, match="half a character"):
            json_of(text)

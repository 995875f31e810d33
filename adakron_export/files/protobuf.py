"""The little of protobuf's wire format that is written and read without its library.

Source: https://protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

from collections.abc import Iterator

_VARINT, _LENGTH = 0, 2  # wire types
_FIXED = {1: 8, 5: 4}  # their bytes
_LONGEST_VARINT_BITS = 70


def varint(number: int) -> bytes:
    """A number in base 128, the lowest digit first."""
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


def length_prefix(field: int, length: int) -> bytes:
    """The key and the length of a length-delimited field (wire type 2)."""
    return varint(field << 3 | 2) + varint(length)


def message(*fields: tuple[int, int | str | bytes]) -> bytes:
    """Fields by number, in their order: numbers as varints, texts and messages behind their length."""
    encoded = b""
    for field, value in fields:
        if isinstance(value, int):
            encoded += varint(field << 3) + varint(value)
        else:
            content = value.encode() if isinstance(value, str) else value
            encoded += length_prefix(field, len(content)) + content
    return encoded


def read_fields(content: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Fields by number: numbers of wire types 0, 1 and 5 as numbers, all else as the bytes behind its length.

    Raises:
        ValueError: The bytes are no message.
    """
    at, end = 0, len(content)
    while at < end:
        key, at = _read_varint(content, at)
        kind = key & 7
        if kind == _VARINT:
            number, at = _read_varint(content, at)
            yield key >> 3, number
            continue
        length, at = _read_varint(content, at) if kind == _LENGTH else (_FIXED.get(kind, -1), at)
        if length < 0 or at + length > end:
            raise ValueError(f"no message: a field of wire type {kind} ends at {at + length} of {end}")
        piece = content[at : at + length]
        yield key >> 3, piece if kind == _LENGTH else int.from_bytes(piece, "little")
        at += length


def read_varints(content: memoryview) -> list[int]:
    """Numbers that are packed into one field.

    Raises:
        ValueError: They do not end where it ends.
    """
    found, at = [], 0
    while at < len(content):
        number, at = _read_varint(content, at)
        found.append(number)
    return found


def _read_varint(content: memoryview, at: int) -> tuple[int, int]:
    number = shift = 0
    while at < len(content) and shift < _LONGEST_VARINT_BITS:
        byte = content[at]
        number |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return number, at
    raise ValueError(f"no message: a number does not end at {at}")

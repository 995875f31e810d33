"""The little of protobuf's wire format that is written without its library.

Source: https://protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations


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

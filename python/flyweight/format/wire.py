"""The small encodings of a .fly file: numbers, text, numbered fields and text pairs.

Every writer stands next to its reader. The bytes are specified in docs/format.md.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

from flyweight.errors import CorruptStreamError, UnsupportedError

__all__ = [
    "FieldValue",
    "Reader",
    "read_fields",
    "read_pairs",
    "write_fields",
    "write_pairs",
    "write_varint",
    "write_zigzag",
]

FieldValue = int | float | bool | str | tuple[int, ...]


def write_varint(value: int) -> bytes:
    """Unsigned LEB128: seven bits a byte, low bits first, no longer than needed."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def write_zigzag(value: int) -> bytes:
    """A signed number as the varint of 0, -1, 1, -2, ... -> 0, 1, 2, 3, ..."""
    return write_varint(2 * value if value >= 0 else -2 * value - 1)


class Reader:
    """A cursor over bytes that never reads past their end."""

    def __init__(self, data: bytes | memoryview, what: str) -> None:
        self._data = memoryview(data)
        self._what = what
        self.position = 0

    @property
    def is_done(self) -> bool:
        """Whether every byte was read."""
        return self.position == len(self._data)

    def take(self, count: int) -> bytes:
        """The next ``count`` bytes."""
        if count > len(self._data) - self.position:
            raise CorruptStreamError(
                f"{self._what}: needs {count} bytes at byte {self.position}, "
                f"has {len(self._data) - self.position}"
            )
        self.position += count
        return bytes(self._data[self.position - count : self.position])

    def u8(self) -> int:
        """One byte."""
        return self.take(1)[0]

    def u32(self) -> int:
        """Four bytes, little-endian."""
        return int.from_bytes(self.take(4), "little")

    def varint(self) -> int:
        """See :func:`write_varint`; at most 63 bits."""
        value = 0
        for shift in range(0, 63, 7):
            byte = self.u8()
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                if byte == 0 and shift:
                    break
                return value
        raise CorruptStreamError(f"{self._what}: varint before byte {self.position} is malformed")

    def zigzag(self) -> int:
        """See :func:`write_zigzag`."""
        value = self.varint()
        return value // 2 if value % 2 == 0 else -(value + 1) // 2

    def text(self) -> str:
        """A length and that many bytes of UTF-8."""
        return self.utf8(self.take(self.varint()))

    def utf8(self, raw: bytes) -> str:
        """Bytes that must be UTF-8."""
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise CorruptStreamError(
                f"{self._what}: text before byte {self.position} is not UTF-8"
            ) from error


def write_fields(fields: Mapping[int, FieldValue]) -> bytes:
    """Numbered values: the model's config without its names.

    Parameters
    ----------
    fields : id of at least 1 to int, float, bool, str or a tuple of ints
    """
    out = bytearray()
    for number in sorted(fields):
        value = fields[number]
        if isinstance(value, bool):
            out += write_varint(number << 3 | (4 + value))
        elif isinstance(value, int):
            out += write_varint(number << 3 | 0) + write_zigzag(value)
        elif isinstance(value, float):
            out += write_varint(number << 3 | 1) + struct.pack("<d", value)
        elif isinstance(value, str):
            raw = value.encode("utf-8")
            out += write_varint(number << 3 | 2) + write_varint(len(raw)) + raw
        else:
            out += write_varint(number << 3 | 3) + write_varint(len(value))
            out += b"".join(write_zigzag(item) for item in value)
    return bytes(out)


def read_fields(data: bytes | memoryview) -> dict[int, FieldValue]:
    """Numbered values from their bytes; ids must ascend."""
    reader = Reader(data, "config")
    fields: dict[int, FieldValue] = {}
    last = 0
    while not reader.is_done:
        key = reader.varint()
        number, wire = key >> 3, key & 7
        if number <= last:
            raise CorruptStreamError(f"config: field {number} comes after field {last}")
        if wire == 0:
            fields[number] = reader.zigzag()
        elif wire == 1:
            fields[number] = struct.unpack("<d", reader.take(8))[0]
        elif wire == 2:
            fields[number] = reader.text()
        elif wire == 3:
            fields[number] = tuple(reader.zigzag() for _ in range(reader.varint()))
        elif wire in (4, 5):
            fields[number] = wire == 5
        else:
            raise UnsupportedError(f"config: field {number} has unknown wire type {wire}")
        last = number
    return fields


def write_pairs(pairs: Mapping[str, str]) -> bytes:
    """Metadata: pairs of text in ascending order of their keys."""
    out = bytearray()
    for key in sorted(pairs, key=lambda text: text.encode("utf-8")):
        for text in (key, pairs[key]):
            raw = text.encode("utf-8")
            out += write_varint(len(raw)) + raw
    return bytes(out)


def read_pairs(data: bytes | memoryview) -> dict[str, str]:
    """Metadata from its bytes."""
    reader = Reader(data, "metadata")
    pairs: dict[str, str] = {}
    last = b""
    while not reader.is_done:
        key = reader.text()
        if pairs and key.encode("utf-8") <= last:
            raise CorruptStreamError(f"metadata: key {key!r} is out of order or there twice")
        last = key.encode("utf-8")
        pairs[key] = reader.text()
    return pairs

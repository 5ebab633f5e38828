"""A second, independent reader of .fly files: NumPy and the standard library only.

This is what a submission ships, so of flyweight it imports only the decoder of streams, which
imports nothing of it, and it is held to the same golden files as the package's own reader. See
docs/format.md for every rule.
"""

from __future__ import annotations

import math
import struct
import zlib
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from flyweight.submission.decode_streams import FLY_DAMAGE, FlyError, FlyReader, decode_planes

__all__ = ["decode_fly"]

FLY_DTYPES = {1: "<f4", 2: "<f2", 3: "<u2", 4: "<f8", 5: "<i1", 6: "<i2", 7: "<i4", 8: "<i8"}
FLY_DTYPES |= {9: "<u1", 10: "<u2", 11: "<u4", 12: "<u8", 13: "?"}
FLY_BFLOAT16 = 3


class FlyPart(NamedTuple):
    """One array of a section; see "Parts" in docs/format.md."""

    dtype: int
    shape: tuple[int, int]
    alphabet: int
    layout: int
    streams: list[tuple[int, int]]

    def plane(self) -> tuple[int, int, int]:
        """Symbols, alphabet and symbols per row of each of its planes."""
        rows, cols = self.shape
        if self.layout == 3:
            size = -(-rows * cols * (self.alphabet - 1).bit_length() // 8)
            return size, 256, size
        itemsize = np.dtype(FLY_DTYPES[self.dtype]).itemsize if self.layout < 2 else 1
        return rows * cols * itemsize, self.alphabet, rows if self.layout == 1 else cols * itemsize

    def join(self, planes: list[NDArray[np.uint8]]) -> NDArray[Any]:
        """The array of its planes; see "Layouts" in docs/format.md."""
        dtype = np.dtype(FLY_DTYPES[self.dtype])
        if self.layout in (2, 4):
            raw = np.stack(planes, axis=1).view(f"<u{len(planes)}")
            if self.layout == 4:
                raw = raw >> 1 | raw << 8 * len(planes) - 1
            return raw.view(dtype).reshape(self.shape)
        symbols = planes[0]
        if self.layout == 1:
            return symbols.view(dtype).reshape(self.shape[::-1]).T
        if self.layout == 3:
            width = (self.alphabet - 1).bit_length()
            bits = np.unpackbits(symbols, bitorder="little")[: math.prod(self.shape) * width]
            weights = (1 << np.arange(width)).astype(np.uint8)
            symbols = (bits.reshape(-1, width) * weights).sum(axis=1, dtype=np.uint8)
            if symbols.max(initial=0) >= self.alphabet:
                raise FlyError("packed symbols are outside the alphabet")
        return symbols.view(dtype).reshape(self.shape)


class FlyEntry(NamedTuple):
    """One tensor; ``grid`` is the smallest code, the group size and the flags of the grid."""

    name: str
    shape: tuple[int, ...]
    dtype: int
    grid: tuple[int, int, int] | None
    parts: list[FlyPart]

    def tensor(self, arrays: list[NDArray[Any]]) -> NDArray[Any]:
        """Dequantize, in float32 and in this order; see "Dequantization" in docs/format.md."""
        values, stored = arrays[0], self.parts[0].dtype
        if self.grid is not None and values.size:
            lo, group, flags = self.grid
            columns = np.arange(values.shape[1]) // group
            values = (values.astype(np.int16) + lo).astype(np.float32)
            if flags & 1:
                values -= arrays[2].astype(np.float32)[:, columns]
            values *= arrays[1].astype(np.float32)[:, columns]
            if flags & 4:
                values *= arrays[-1].astype(np.float32)
        elif stored == FLY_BFLOAT16:
            values = (values.astype(np.uint32) << 16).view(np.float32)
        if self.grid is None and stored == self.dtype:
            return values.reshape(self.shape)
        values = np.ascontiguousarray(values, dtype=np.float32)
        if self.dtype != FLY_BFLOAT16:
            return values.astype(FLY_DTYPES[self.dtype]).reshape(self.shape)
        raw = values.view(np.uint32)  # round to nearest even, and keep as float32
        raw = (raw + 0x7FFF + (raw >> 16 & 1)) & np.uint32(0xFFFF0000)
        return raw.view(np.float32).reshape(self.shape)


def read_entry(reader: FlyReader, name: str) -> FlyEntry:
    """See "Directory" in docs/format.md."""
    kind, dtype = divmod(reader.take(1)[0], 32)
    shape = tuple(reader.varint() for _ in range(reader.take(1)[0]))
    matrix = (shape[0], math.prod(shape[1:])) if shape else (1, 1)
    grid = None
    if kind == 1:
        flags, lo, alphabet = reader.take(1)[0], reader.zigzag(), reader.varint() + 1
        if flags > 7:
            raise FlyError(f"grid flags {flags:#x} are not known")
        if lo < -128 or lo + alphabet > 128:
            raise FlyError(f"{alphabet} codes from {lo} on are not in int8")
        group = reader.varint() or max(matrix[1], 1)
        grid = (lo, group, flags)
        scale = 1 if flags & 2 else 2
        wanted = [(9, matrix, alphabet)]
        wanted += [(scale, (matrix[0], -(-matrix[1] // group)), 256)] * (1 + (flags & 1))
        wanted += [(scale, (1, matrix[1]), 256)] * (flags >> 2)
    elif kind in (0, 2):
        wanted = [(reader.take(1)[0] if kind == 2 else dtype, matrix, 256)]
    else:
        raise FlyError(f"section kind {kind} is not known")
    parts = []
    for part in wanted:
        layout = reader.take(1)[0]
        if layout > 4:
            raise FlyError(f"layout id {layout} is not known")
        planes = np.dtype(FLY_DTYPES[part[0]]).itemsize if layout in (2, 4) else 1
        streams = [(reader.take(1)[0], reader.varint()) for _ in range(planes)]
        parts.append(FlyPart(*part, layout, streams))
    reader.take(4)  # the section's checksum; the whole file's was checked
    return FlyEntry(name, shape, dtype, grid, parts)


def read_config(reader: FlyReader) -> dict[int, object]:
    """See "Config section" in docs/format.md."""
    values: dict[int, object] = {}
    while reader.at < len(reader.data):
        number, wire = divmod(reader.varint(), 8)
        if wire == 0:
            values[number] = reader.zigzag()
        elif wire == 1:
            values[number] = struct.unpack("<d", reader.take(8))[0]
        elif wire == 2:
            values[number] = reader.take(reader.varint()).decode("utf-8")
        elif wire == 3:
            values[number] = tuple(reader.zigzag() for _ in range(reader.varint()))
        else:
            values[number] = wire == 5
    return values


def decode_fly(data: bytes) -> tuple[dict[str, NDArray[Any]], dict[int, object]]:
    """All tensors and the numbered config fields of a .fly file.

    Parameters
    ----------
    data : the whole file

    Returns
    -------
    tensors : name to array; bfloat16 comes as float32 with the same values
    config : field id to value

    Raises
    ------
    FlyError
        A checksum or a rule of the format is broken.
    """
    try:
        return decode_checked(data)
    except FlyError:
        raise
    except FLY_DAMAGE as error:
        raise FlyError(f"the file is damaged: {error!r}") from error


def decode_checked(data: bytes) -> tuple[dict[str, NDArray[Any]], dict[int, object]]:
    """See :func:`decode_fly`; damage that no rule here catches ends in other errors."""
    if len(data) < 18 or data[:6] != b"\x89FLY\x01\x00":
        raise FlyError("not a .fly file of version 1")
    if zlib.crc32(data[:-4]) != struct.unpack("<I", data[-4:])[0]:
        raise FlyError("the file is damaged: its checksum does not match")
    head = FlyReader(data, 14)
    count, config_length = head.varint(), head.varint()
    head.take(4 if config_length else 0)
    metadata_length = head.varint()
    head.take(4 if metadata_length else 0)
    raw, entries = b"", list[FlyEntry]()
    for _ in range(count):
        shared = head.varint()
        earlier, raw = raw, raw[:shared] + head.take(head.varint())
        if len(raw) > 1024 or (entries and raw <= earlier):
            raise FlyError("a tensor name is too long, out of order or there twice")
        entries.append(read_entry(head, raw.decode("utf-8")))
    at = head.at + config_length
    config = read_config(FlyReader(data[:at], head.at))
    at += metadata_length
    planes = []
    for entry in entries:
        for part in entry.parts:
            for codec, size in part.streams:
                symbols, alphabet, columns = part.plane()
                if symbols > (1 << 16) + (size << 14):
                    raise FlyError(f"{symbols} symbols cannot be in {size} bytes")
                planes.append((codec, data[at : at + size], symbols, alphabet, columns))
                at += size
    if at + 4 != len(data):
        raise FlyError("the sections do not tile the file")
    decoded = iter(decode_planes(planes))
    return {
        entry.name: entry.tensor([p.join([next(decoded) for _ in p.streams]) for p in entry.parts])
        for entry in entries
    }, config

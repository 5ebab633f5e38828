"""The directory of a .fly file: what every tensor is and where its bytes lie.

Every writer stands above its reader. The bytes are specified in docs/format.md.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from flyweight.codecs.codec import is_credible
from flyweight.codecs.layout import plane_specs
from flyweight.errors import CorruptStreamError, InvalidArgumentError, UnsupportedError
from flyweight.format.wire import Reader, write_varint, write_zigzag
from flyweight.quant.grid import Grid, matrix_shape

__all__ = [
    "DTYPES",
    "Directory",
    "Part",
    "Section",
    "read_directory",
    "write_directory",
]

DTYPES: dict[int, np.dtype[np.generic]] = {
    1: np.dtype(np.float32),
    2: np.dtype(np.float16),
    3: np.dtype(ml_dtypes.bfloat16),
    4: np.dtype(np.float64),
    5: np.dtype(np.int8),
    6: np.dtype(np.int16),
    7: np.dtype(np.int32),
    8: np.dtype(np.int64),
    9: np.dtype(np.uint8),
    10: np.dtype(np.uint16),
    11: np.dtype(np.uint32),
    12: np.dtype(np.uint64),
    13: np.dtype(np.bool_),
}
DTYPE_IDS = {dtype: number for number, dtype in DTYPES.items()}
FLOAT_IDS = (1, 2, 3, 4)

KIND_PLAIN = 0
KIND_QUANTIZED = 1
KIND_CAST = 2
MAX_AXES = 8
MAX_ELEMENTS = 1 << 40
"""Of a tensor, axes of size 0 left out."""
MAX_NAME_BYTES = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One array of a section: codes, scales of rows or columns, zero-points or data."""

    role: str
    """``codes``, ``scales``, ``zero_points``, ``column_scales`` or ``data``."""
    shape: tuple[int, int]
    """Rows and columns; column scales are one row."""
    dtype: np.dtype[np.generic]
    """Of the elements; codes are stored as uint8 symbols."""
    alphabet_size: int
    """Of the symbols: that of the grid for codes, 256 otherwise."""
    layout: int
    """Layout id."""
    streams: tuple[tuple[int, int], ...]
    """Codec id and length in bytes of each plane, in order."""

    @property
    def length(self) -> int:
        """Bytes of all streams."""
        return sum(length for _, length in self.streams)


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """One tensor's entry in the directory."""

    name: str
    """Tensor name, unique in the file."""
    shape: tuple[int, ...]
    """Shape of the tensor, at most 8 axes."""
    dtype: np.dtype[np.generic]
    """Dtype that loading gives back."""
    grid: Grid | None
    """What codes mean; None for plain and cast tensors."""
    parts: tuple[Part, ...]
    """Arrays in the order of their bytes."""
    checksum: int
    """CRC-32 of the section's bytes."""

    @property
    def elements(self) -> int:
        """Elements of the tensor."""
        return math.prod(self.shape)

    @property
    def length(self) -> int:
        """Bytes of the section."""
        return sum(part.length for part in self.parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Directory:
    """The index of a file: what lies between it and the checksum at the end."""

    config: tuple[int, int] | None
    """Length and CRC-32 of the config section."""
    metadata: tuple[int, int] | None
    """Length and CRC-32 of the metadata section."""
    sections: tuple[Section, ...]
    """Tensors in ascending order of their names' bytes."""

    @property
    def body_length(self) -> int:
        """Bytes of all sections together."""
        extra = sum(entry[0] for entry in (self.config, self.metadata) if entry)
        return extra + sum(section.length for section in self.sections)


def write_directory(directory: Directory) -> bytes:
    """Bytes of a directory."""
    out = bytearray(write_varint(len(directory.sections)))
    for entry in (directory.config, directory.metadata):
        out += write_varint(entry[0] if entry else 0)
        out += struct.pack("<I", entry[1]) if entry else b""
    previous = b""
    for section in directory.sections:
        name = _encoded_name(section.name)
        if name <= previous and previous:
            raise InvalidArgumentError(f"tensor {section.name!r} is out of order or there twice")
        out += _write_name(name, previous) + _write_section(section)
        previous = name
    return bytes(out)


def read_directory(data: bytes | memoryview) -> Directory:
    """A directory from its bytes.

    Raises
    ------
    CorruptStreamError
        A rule of the format is broken; the message names the tensor where there is one.
    UnsupportedError
        A kind, dtype, layout or grid that this version does not know.
    """
    reader = Reader(data, "directory")
    count = reader.varint()
    extras = []
    for _ in range(2):
        length = reader.varint()
        extras.append((length, reader.u32()) if length else None)
    sections: list[Section] = []
    previous = b""
    for _ in range(count):
        raw = _read_name(reader, previous)
        name = reader.utf8(raw)
        if raw <= previous and sections:
            raise CorruptStreamError(f"directory: tensor {name!r} is out of order or there twice")
        try:
            sections.append(_read_section(reader, name))
        except (CorruptStreamError, UnsupportedError, InvalidArgumentError) as error:
            kind = UnsupportedError if isinstance(error, UnsupportedError) else CorruptStreamError
            raise kind(f"tensor {name!r}: {error}") from error
        previous = raw
    if not reader.is_done:
        raise CorruptStreamError(
            f"directory: {len(data) - reader.position} bytes are left after the last tensor"
        )
    return Directory(config=extras[0], metadata=extras[1], sections=tuple(sections))


def _encoded_name(name: str) -> bytes:
    try:
        encoded = name.encode("utf-8")
    except UnicodeEncodeError:
        raise InvalidArgumentError(f"tensor name {name!r} cannot be written as UTF-8") from None
    if len(encoded) > MAX_NAME_BYTES:
        raise InvalidArgumentError(
            f"tensor name {name[:40]!r}... has {len(encoded)} bytes, more than {MAX_NAME_BYTES}"
        )
    return encoded


def _write_name(name: bytes, previous: bytes) -> bytes:
    shared = 0
    while shared < min(len(name), len(previous)) and name[shared] == previous[shared]:
        shared += 1
    return write_varint(shared) + write_varint(len(name) - shared) + name[shared:]


def _read_name(reader: Reader, previous: bytes) -> bytes:
    shared = reader.varint()
    if shared > len(previous):
        raise CorruptStreamError(
            f"directory: a name shares {shared} bytes with one of {len(previous)}"
        )
    name = previous[:shared] + reader.take(reader.varint())
    if len(name) > MAX_NAME_BYTES:
        raise CorruptStreamError(
            f"directory: a name of {len(name)} bytes, expected at most {MAX_NAME_BYTES}"
        )
    return name


def _write_section(section: Section) -> bytes:
    stored = section.parts[0].dtype
    if section.grid is not None:
        kind = KIND_QUANTIZED
    else:
        kind = KIND_PLAIN if stored == section.dtype else KIND_CAST
    out = bytearray([kind << 5 | DTYPE_IDS[section.dtype], len(section.shape)])
    for size in section.shape:
        out += write_varint(size)
    if section.grid is not None:
        out += _write_grid(section.grid)
    elif kind == KIND_CAST:
        out.append(DTYPE_IDS[stored])
    for part in section.parts:
        out.append(part.layout)
        for codec_id, length in part.streams:
            out.append(codec_id)
            out += write_varint(length)
    return bytes(out) + struct.pack("<I", section.checksum)


def _read_section(reader: Reader, name: str) -> Section:
    head = reader.u8()
    kind, dtype = head >> 5, _dtype(head & 31)
    axes = reader.u8()
    if axes > MAX_AXES:
        raise CorruptStreamError(f"{axes} axes, expected at most {MAX_AXES}")
    shape = tuple(reader.varint() for _ in range(axes))
    if math.prod(size for size in shape if size) > MAX_ELEMENTS:
        raise CorruptStreamError(f"shape {shape} has more than {MAX_ELEMENTS} elements")
    grid = None
    wanted: list[tuple[str, tuple[int, int], np.dtype[Any], int]] = []
    if kind == KIND_QUANTIZED:
        grid = _read_grid(reader)
        rows, cols = matrix_shape(shape)
        scale = np.dtype(grid.scale_dtype)
        scales = (rows, grid.groups(cols))
        wanted.append(("codes", (rows, cols), np.dtype(np.uint8), grid.alphabet_size))
        wanted.append(("scales", scales, scale, 256))
        if not grid.is_symmetric:
            wanted.append(("zero_points", scales, scale, 256))
        if grid.has_column_scales:
            wanted.append(("column_scales", (1, cols), scale, 256))
    elif kind in (KIND_PLAIN, KIND_CAST):
        stored = _dtype(reader.u8()) if kind == KIND_CAST else dtype
        wanted.append(("data", matrix_shape(shape or (1,)), stored, 256))
    else:
        raise UnsupportedError(f"kind {kind} is not known to this version")
    if kind != KIND_PLAIN and DTYPE_IDS[dtype] not in FLOAT_IDS:
        raise CorruptStreamError(f"weights cannot come back as {dtype}")
    if kind == KIND_CAST and (DTYPE_IDS[wanted[0][2]] not in FLOAT_IDS or wanted[0][2] == dtype):
        raise CorruptStreamError(f"{dtype} weights cannot be cast from {wanted[0][2]}")
    parts = tuple(_read_part(reader, *each) for each in wanted)
    return Section(
        name=name, shape=shape, dtype=dtype, grid=grid, parts=parts, checksum=reader.u32()
    )


def _read_part(
    reader: Reader,
    role: str,
    shape: tuple[int, int],
    dtype: np.dtype[np.generic],
    alphabet_size: int,
) -> Part:
    layout = reader.u8()
    specs = plane_specs(layout, shape, dtype.itemsize, alphabet_size)
    streams = tuple((reader.u8(), reader.varint()) for _ in specs)
    for spec, (codec_id, length) in zip(specs, streams, strict=True):
        if (length == 0 or spec.count == 0) and (codec_id, length, spec.count) != (0, 0, 0):
            raise CorruptStreamError(
                f"{role}: {spec.count} symbols in {length} bytes of codec {codec_id}"
            )
        if not is_credible(spec.count, length):
            raise CorruptStreamError(f"{role}: {spec.count} symbols cannot be in {length} bytes")
    return Part(
        role=role,
        shape=shape,
        dtype=dtype,
        alphabet_size=alphabet_size,
        layout=layout,
        streams=streams,
    )


def _write_grid(grid: Grid) -> bytes:
    flags = (not grid.is_symmetric) | (grid.scale_dtype == "float32") << 1
    flags |= grid.has_column_scales << 2
    return (
        bytes([flags])
        + write_zigzag(grid.lo)
        + write_varint(grid.hi - grid.lo)
        + write_varint(grid.group_size)
    )


def _read_grid(reader: Reader) -> Grid:
    flags = reader.u8()
    if flags > 7:
        raise UnsupportedError(f"grid flags {flags:#x} are not known to this version")
    lo = reader.zigzag()
    hi = lo + reader.varint()
    return Grid(
        lo=lo,
        hi=hi,
        group_size=reader.varint(),
        is_symmetric=not flags & 1,
        scale_dtype="float32" if flags & 2 else "float16",
        has_column_scales=bool(flags & 4),
    )


def _dtype(number: int) -> np.dtype[np.generic]:
    if number not in DTYPES:
        raise UnsupportedError(f"dtype id {number} is not known to this version")
    return DTYPES[number]

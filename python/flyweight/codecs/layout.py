"""Layouts: how the elements of an array become planes of symbols, and back.

A layout turns one array into one or more planes; each plane is a flat run of symbols that a codec
takes. Codes enter as symbols (code - lo) with the alphabet of their grid; every other array enters
as the little-endian bytes of its elements. Rotated by one bit, floats are exponent, mantissa and
sign in this order, so that the last byte plane of bfloat16 and float32 is the exponent alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from flyweight.codecs.codec import PlaneSpec, check_alphabet
from flyweight.errors import UnsupportedError
from flyweight.kernels.bitpack import pack_bits, packed_size, unpack_bits
from flyweight.typing import AnyArray, Symbols

__all__ = [
    "LAYOUT_NAMES",
    "Plane",
    "applicable_layouts",
    "join_planes",
    "plane_specs",
    "split_planes",
]

PLAIN = 0
TRANSPOSED = 1
BYTE_PLANES = 2
PACKED = 3
FLOAT_PLANES = 4
LAYOUT_NAMES = {
    PLAIN: "plain",
    TRANSPOSED: "transposed",
    BYTE_PLANES: "byte-planes",
    PACKED: "packed",
    FLOAT_PLANES: "float-planes",
}


@dataclass(frozen=True, slots=True)
class Plane:
    """One run of symbols and what its codec must know of it."""

    symbols: Symbols
    """(spec.count,) uint8."""
    spec: PlaneSpec


def applicable_layouts(itemsize: int, alphabet_size: int) -> list[int]:
    """Ids of the layouts that fit elements of ``itemsize`` bytes over such an alphabet."""
    if itemsize > 1:
        return [PLAIN, BYTE_PLANES, FLOAT_PLANES]
    return [PLAIN, TRANSPOSED, PACKED] if 2 <= alphabet_size <= 128 else [PLAIN, TRANSPOSED]


def plane_specs(
    layout: int, shape: tuple[int, int], itemsize: int, alphabet_size: int
) -> list[PlaneSpec]:
    """Planes that a layout makes of an array, from its declared shape alone.

    Parameters
    ----------
    layout : a layout id
    shape : rows and columns
    itemsize : bytes of an element; 1 for codes
    alphabet_size : of the grid for codes, 256 for everything else

    Raises
    ------
    UnsupportedError
        The layout is unknown, or does not apply to such an array.
    """
    if layout not in applicable_layouts(itemsize, alphabet_size):
        raise UnsupportedError(
            f"layout id {layout} ({LAYOUT_NAMES.get(layout, 'unknown')}) does not apply to "
            f"elements of {itemsize} bytes with an alphabet of {alphabet_size}"
        )
    rows, cols = shape
    count = rows * cols
    if layout in (BYTE_PLANES, FLOAT_PLANES):
        return [PlaneSpec(count, 256, cols)] * itemsize
    if layout == PACKED:
        size = packed_size(count, bits=_width(alphabet_size))
        return [PlaneSpec(size, 256, size)]
    columns = rows if layout == TRANSPOSED else cols * itemsize
    return [PlaneSpec(count * itemsize, alphabet_size, columns)]


def split_planes(layout: int, array: AnyArray, alphabet_size: int) -> list[Plane]:
    """Planes of a 2-D array; see :func:`join_planes` for the way back."""
    specs = plane_specs(layout, _shape_2d(array), array.dtype.itemsize, alphabet_size)
    if layout == BYTE_PLANES:
        planes = _split_bytes(_as_bytes(array), array.dtype.itemsize)
    elif layout == FLOAT_PLANES:
        word = _word(array.dtype)
        words = _as_bytes(array).view(word)
        rotated = words << word.type(1) | words >> word.type(8 * word.itemsize - 1)
        planes = _split_bytes(rotated.view(np.uint8), word.itemsize)
    elif layout == TRANSPOSED:
        planes = [_as_bytes(array.T)]
    elif layout == PACKED:
        planes = [pack_bits(_as_bytes(array), bits=_width(alphabet_size))]
    else:
        planes = [_as_bytes(array)]
    return [Plane(symbols, spec) for symbols, spec in zip(planes, specs, strict=True)]


def join_planes(
    layout: int,
    planes: list[Symbols],
    shape: tuple[int, int],
    dtype: np.dtype[np.generic],
    alphabet_size: int,
) -> AnyArray:
    """The (rows, cols) array whose planes these are."""
    if layout == BYTE_PLANES:
        return _join_bytes(planes).view(dtype).reshape(shape)
    if layout == FLOAT_PLANES:
        word = _word(dtype)
        rotated = _join_bytes(planes).view(word)
        words: AnyArray = rotated >> word.type(1) | rotated << word.type(8 * word.itemsize - 1)
        return words.view(dtype).reshape(shape)
    if layout == TRANSPOSED:
        return np.ascontiguousarray(planes[0].view(dtype).reshape(shape[1], shape[0]).T)
    if layout == PACKED:
        count = shape[0] * shape[1]
        unpacked = unpack_bits(planes[0], bits=_width(alphabet_size), count=count)
        check_alphabet(unpacked, alphabet_size=alphabet_size, name="packed")
        return unpacked.view(dtype).reshape(shape)
    return planes[0].view(dtype).reshape(shape)


def _split_bytes(raw: Symbols, itemsize: int) -> list[Symbols]:
    matrix = raw.reshape(-1, itemsize)
    return [np.ascontiguousarray(matrix[:, k]) for k in range(itemsize)]


def _join_bytes(planes: list[Symbols]) -> Symbols:
    raw = np.empty((planes[0].size, len(planes)), dtype=np.uint8)
    for k, plane in enumerate(planes):
        raw[:, k] = plane
    return raw.reshape(-1)


def _word(dtype: np.dtype[np.generic]) -> np.dtype[np.unsignedinteger[Any]]:
    """The unsigned integer of the same size."""
    return np.dtype(f"<u{dtype.itemsize}")


def _width(alphabet_size: int) -> int:
    return (alphabet_size - 1).bit_length()


def _shape_2d(array: AnyArray) -> tuple[int, int]:
    rows, cols = array.shape
    return rows, cols


def _as_bytes(array: AnyArray) -> Symbols:
    return np.frombuffer(np.ascontiguousarray(array).tobytes(), dtype=np.uint8)

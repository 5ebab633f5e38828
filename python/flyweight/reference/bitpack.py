"""Bit-packing, one bit matrix at a time."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from flyweight.errors import CorruptStreamError, InvalidArgumentError
from flyweight.reference.arrays import as_array, check_range
from flyweight.typing import BytesLike, Symbols

__all__ = ["pack_bits", "packed_size", "unpack_bits"]


def packed_size(count: int, *, bits: int) -> int:
    """Bytes that ``count`` symbols of ``bits`` bits take."""
    check_range("bits", bits, 1, 8)
    if count < 0:
        raise InvalidArgumentError(f"got count={count}, expected 0 or more")
    return (count * bits + 7) // 8


def pack_bits(symbols: Symbols, *, bits: int) -> NDArray[np.uint8]:
    """Symbol i becomes bits ``i * bits`` and on; bit k is bit ``k % 8`` of byte ``k // 8``."""
    check_range("bits", bits, 1, 8)
    symbols = as_array(symbols, "symbols", np.uint8, 1)
    too_large = np.flatnonzero(symbols >> bits) if bits < 8 else np.empty(0, np.int64)
    if too_large.size:
        at = int(too_large[0])
        raise InvalidArgumentError(
            f"bitpack: symbol {symbols[at]} at position {at} does not fit into {bits} bits"
        )
    matrix = np.unpackbits(symbols[:, None], axis=1, bitorder="little")[:, :bits]
    return np.packbits(matrix, axis=None, bitorder="little")


def unpack_bits(packed: BytesLike, *, bits: int, count: int) -> Symbols:
    """Inverse of :func:`pack_bits`; the size must fit and padding bits must be zero."""
    size = packed_size(count, bits=bits)
    packed = as_array(packed, "packed", np.uint8, 1)
    if packed.size != size:
        raise CorruptStreamError(
            f"bitpack: {count} symbols of {bits} bits take {size} bytes, got {packed.size}"
        )
    stream = np.unpackbits(packed, bitorder="little")
    if stream[count * bits :].any():
        raise CorruptStreamError(
            f"bitpack: padding bits of the last byte, {size - 1}, are not zero"
        )
    matrix = stream[: count * bits].reshape(count, bits)
    return np.packbits(matrix, axis=1, bitorder="little").reshape(count)

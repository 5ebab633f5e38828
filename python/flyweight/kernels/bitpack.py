"""Dense packing of symbols of 1 to 8 bits."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from flyweight.kernels.dispatch import implementation
from flyweight.reference import bitpack as reference
from flyweight.typing import BytesLike, Symbols

__all__ = ["pack_bits", "packed_size", "unpack_bits"]


def packed_size(count: int, *, bits: int) -> int:
    """Bytes that packed symbols take.

    Parameters
    ----------
    count : number of symbols
    bits : 1 to 8, width of each

    Returns
    -------
    bytes, ``ceil(count * bits / 8)``

    Raises
    ------
    InvalidArgumentError
        A negative count, or a width out of range.

    Examples
    --------
    >>> packed_size(3, bits=6)
    3
    """
    return implementation(reference.packed_size)(count, bits=bits)


def pack_bits(symbols: Symbols, *, bits: int) -> NDArray[np.uint8]:
    """Symbols side by side without gaps, least significant bit first.

    Parameters
    ----------
    symbols : (n,) uint8, C-contiguous, each below ``1 << bits``
    bits : 1 to 8, width of each

    Returns
    -------
    (packed_size(n, bits=bits),) uint8; the unused high bits of the last byte are zero

    Raises
    ------
    InvalidArgumentError
        A symbol needs more bits; the message has the first such position.
    TypeError
        Not a C-contiguous uint8 array of one dimension.

    References
    ----------
    docs/format.md, "Packed symbols".
    """
    return implementation(reference.pack_bits)(symbols, bits=bits)


def unpack_bits(packed: BytesLike, *, bits: int, count: int) -> Symbols:
    """Inverse of :func:`pack_bits`.

    Parameters
    ----------
    packed : (packed_size(count, bits=bits),) uint8 or bytes
    bits : 1 to 8, width of each symbol
    count : number of symbols

    Returns
    -------
    (count,) uint8

    Raises
    ------
    CorruptStreamError
        The size does not belong to ``count`` symbols, or a padding bit is set.
    InvalidArgumentError
        A negative count, or a width out of range.
    TypeError
        Not a C-contiguous uint8 buffer of one dimension.
    """
    return implementation(reference.unpack_bits)(packed, bits=bits, count=count)

"""Dense packing of symbols of 1 to 8 bits, or of codes, and codes straight to weights."""

from __future__ import annotations

from typing import Literal, overload

import numpy as np
from numpy.typing import NDArray

from flyweight.kernels.dispatch import implementation
from flyweight.reference import bitpack as reference
from flyweight.typing import BytesLike, Codes, Symbols

__all__ = ["pack_bits", "packed_size", "unpack_bits", "unpack_dequantize"]


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


@overload
def pack_bits(
    symbols: Symbols, *, bits: int, lo: None = None, out: NDArray[np.uint8] | None = None
) -> NDArray[np.uint8]: ...
@overload
def pack_bits(
    symbols: Codes, *, bits: int, lo: int, out: NDArray[np.uint8] | None = None
) -> NDArray[np.uint8]: ...
def pack_bits(
    symbols: Symbols | Codes,
    *,
    bits: int,
    lo: int | None = None,
    out: NDArray[np.uint8] | None = None,
) -> NDArray[np.uint8]:
    """Symbols side by side without gaps, least significant bit first.

    Parameters
    ----------
    symbols : (n,), C-contiguous: uint8 below ``1 << bits`` where ``lo`` is None, else int8 codes
        ``lo .. lo + (1 << bits) - 1``, whose symbols are ``code - lo``
    bits : 1 to 8, width of each
    lo : smallest code, -128 to ``128 - (1 << bits)``; None packs symbols as they are
    out : (packed_size(n, bits=bits),) uint8, C-contiguous, to be filled and returned; None
        allocates it

    Returns
    -------
    (packed_size(n, bits=bits),) uint8; the unused high bits of the last byte are zero

    Raises
    ------
    InvalidArgumentError
        A symbol needs more bits, or a code is out of range; the message has the first such
        position, and ``out`` has no defined content. Or ``bits`` or ``lo`` is out of range, or
        ``out`` overlaps the symbols.
    TypeError
        Not a C-contiguous array of this dtype and of one dimension.

    References
    ----------
    docs/format.md, "Layouts".

    Examples
    --------
    >>> pack_bits(np.array([-1, 0, 1], dtype=np.int8), bits=2, lo=-1)
    array([36], dtype=uint8)
    """
    return implementation(reference.pack_bits)(symbols, bits=bits, lo=lo, out=out)


@overload
def unpack_bits(
    packed: BytesLike, *, bits: int, count: int, lo: None = None, out: Symbols | None = None
) -> Symbols: ...
@overload
def unpack_bits(
    packed: BytesLike, *, bits: int, count: int, lo: int, out: Codes | None = None
) -> Codes: ...
def unpack_bits(
    packed: BytesLike,
    *,
    bits: int,
    count: int,
    lo: int | None = None,
    out: Symbols | Codes | None = None,
) -> Symbols | Codes:
    """Inverse of :func:`pack_bits`.

    Parameters
    ----------
    packed : (packed_size(count, bits=bits),) uint8 or bytes
    bits : 1 to 8, width of each symbol
    count : number of symbols
    lo : smallest code, as for packing; None gives symbols
    out : (count,) of the result's dtype, C-contiguous, to be filled and returned; None allocates it

    Returns
    -------
    (count,) uint8 symbols where ``lo`` is None, else int8 codes, ``symbol + lo``

    Raises
    ------
    CorruptStreamError
        The size does not belong to ``count`` symbols, or a padding bit is set.
    InvalidArgumentError
        A negative count, a width or ``lo`` out of range, or an ``out`` that overlaps ``packed``.
    TypeError
        Not a C-contiguous uint8 buffer of one dimension, or an ``out`` of another dtype or shape.

    Examples
    --------
    >>> unpack_bits(b"$", bits=2, count=3, lo=-1)
    array([-1,  0,  1], dtype=int8)
    """
    unpack = implementation(reference.unpack_bits)
    codes: Symbols | Codes = unpack(packed, bits=bits, count=count, lo=lo, out=out)
    return codes


@overload
def unpack_dequantize(
    packed: BytesLike,
    scales: NDArray[np.float32] | NDArray[np.float16],
    *,
    bits: int,
    lo: int,
    shape: tuple[int, int],
    group_size: int = 0,
    dtype: Literal["float32"] = "float32",
    out: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]: ...
@overload
def unpack_dequantize(
    packed: BytesLike,
    scales: NDArray[np.float32] | NDArray[np.float16],
    *,
    bits: int,
    lo: int,
    shape: tuple[int, int],
    group_size: int = 0,
    dtype: Literal["bfloat16"],
    out: NDArray[np.uint16] | None = None,
) -> NDArray[np.uint16]: ...
def unpack_dequantize(
    packed: BytesLike,
    scales: NDArray[np.float32] | NDArray[np.float16],
    *,
    bits: int,
    lo: int,
    shape: tuple[int, int],
    group_size: int = 0,
    dtype: Literal["float32", "bfloat16"] = "float32",
    out: NDArray[np.float32] | NDArray[np.uint16] | None = None,
) -> NDArray[np.float32] | NDArray[np.uint16]:
    """Weights of packed codes on a symmetric grid, in one pass.

    Parameters
    ----------
    packed : (packed_size(rows * cols, bits=bits),) uint8 or bytes: row after row, with no padding
        between rows
    scales : (rows, groups) float32 or float16, C-contiguous; one group where ``group_size`` is 0,
        else ``ceil(cols / group_size)``
    bits : 1 to 8, width of each code
    lo : smallest code, -128 to ``128 - (1 << bits)``
    shape : (rows, cols)
    group_size : columns that share a scale; 0 means the whole row
    dtype : ``float32``, or ``bfloat16``
    out : (rows, cols) of the result's dtype, C-contiguous, to be filled and returned; None
        allocates it

    Returns
    -------
    (rows, cols) float32: ``float32(code) * float32(scale)``, rounded once; for bfloat16 that value
    rounded to nearest even, as uint16 bit patterns (``.view(ml_dtypes.bfloat16)``)

    Raises
    ------
    CorruptStreamError
        The size of ``packed`` does not belong to the shape, or a padding bit is set.
    InvalidArgumentError
        A number or dtype out of range, scales of another shape, or an ``out`` that overlaps an
        input.
    TypeError
        An array of another dtype or number of dimensions, or one that is not C-contiguous.

    Notes
    -----
    The bits are those of ``Grid.dequantize`` on every backend, non-finite scales included.

    References
    ----------
    docs/format.md, "Dequantization".

    Examples
    --------
    >>> unpack_dequantize(b"$", np.array([[0.5]], np.float32), bits=2, lo=-1, shape=(1, 3))
    array([[-0.5,  0. ,  0.5]], dtype=float32)
    """
    values: NDArray[np.float32] | NDArray[np.uint16] = implementation(reference.unpack_dequantize)(
        packed,
        scales,
        bits=bits,
        lo=lo,
        shape=shape,
        group_size=group_size,
        dtype=dtype,
        out=out,
    )
    return values

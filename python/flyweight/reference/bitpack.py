"""Bit-packing, one bit matrix at a time."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from flyweight.errors import CorruptStreamError, InvalidArgumentError
from flyweight.reference.arrays import as_array, as_output, check_range
from flyweight.typing import AnyArray, BytesLike, Codes, Symbols

__all__ = ["pack_bits", "packed_size", "unpack_bits", "unpack_dequantize"]


def packed_size(count: int, *, bits: int) -> int:
    """Bytes that ``count`` symbols of ``bits`` bits take."""
    check_range("bits", bits, 1, 8)
    _check_not_negative(count=count)
    return (count * bits + 7) // 8


def pack_bits(
    symbols: Symbols | Codes,
    *,
    bits: int,
    lo: int | None = None,
    out: NDArray[np.uint8] | None = None,
) -> NDArray[np.uint8]:
    """Symbol i becomes bits ``i * bits`` and on; bit k is bit ``k % 8`` of byte ``k // 8``."""
    lowest, dtype = _code_range(bits, lo)
    codes = as_array(symbols, "symbols", dtype, 1)
    out = as_output(out, (packed_size(codes.size, bits=bits),), np.uint8, symbols=codes)
    outside = np.flatnonzero((codes < lowest) | (codes > lowest + (1 << bits) - 1))
    if outside.size:
        at = int(outside[0])
        raise InvalidArgumentError(
            f"bitpack: symbol {codes[at]} at position {at} does not fit into {bits} bits"
            if lo is None
            else f"bitpack: code {codes[at]} at position {at} is outside {lo} to "
            f"{lo + (1 << bits) - 1}, the codes of lo={lo} and {bits} bits"
        )
    shifted = (codes.astype(np.int16) - lowest).astype(np.uint8)
    matrix = np.unpackbits(shifted[:, None], axis=1, bitorder="little")[:, :bits]
    out[:] = np.packbits(matrix, axis=None, bitorder="little")
    return out


def unpack_bits(
    packed: BytesLike,
    *,
    bits: int,
    count: int,
    lo: int | None = None,
    out: AnyArray | None = None,
) -> Any:
    """Inverse of :func:`pack_bits`; the size must fit and padding bits must be zero."""
    lowest, dtype = _code_range(bits, lo)
    packed = _checked_packed(packed, bits, count)
    out = as_output(out, (count,), dtype, packed=packed)
    stream = np.unpackbits(packed, bitorder="little")
    matrix = stream[: count * bits].reshape(count, bits)
    symbols = np.packbits(matrix, axis=1, bitorder="little").reshape(count)
    out[:] = (symbols.astype(np.int16) + lowest).astype(dtype)
    return out


def unpack_dequantize(
    packed: BytesLike,
    scales: NDArray[np.float32] | NDArray[np.float16],
    *,
    bits: int,
    lo: int,
    shape: tuple[int, int],
    group_size: int = 0,
    dtype: Literal["float32", "bfloat16"] = "float32",
    out: AnyArray | None = None,
) -> Any:
    """``float32(code) * float32(scale)``, rounded once, and once more for bfloat16."""
    _code_range(bits, lo)
    rows, cols = shape
    _check_not_negative(rows=rows, cols=cols, group_size=group_size)
    packed = _checked_packed(packed, bits, rows * cols)
    columns_per_scale = group_size or max(cols, 1)
    scales = _checked_scales(scales, (rows, -(-cols // columns_per_scale)))
    if dtype not in ("float32", "bfloat16"):
        raise InvalidArgumentError(f"got dtype={dtype!r}, expected 'float32' or 'bfloat16'")
    out_dtype = np.float32 if dtype == "float32" else np.uint16
    out = as_output(out, (rows, cols), out_dtype, packed=packed, scales=scales)
    codes = unpack_bits(packed, bits=bits, count=rows * cols, lo=lo).reshape(rows, cols)
    with np.errstate(all="ignore"):
        widened = scales.astype(np.float32)[:, np.arange(cols) // columns_per_scale]
        values = codes.astype(np.float32) * widened
    out[:] = values if dtype == "float32" else _bfloat16_bits(values)
    return out


def _bfloat16_bits(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Upper halves after rounding to nearest even; every NaN the quiet one of its sign."""
    bits = values.view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + (bits >> 16 & 1)) >> 16
    quiet_nan = (bits >> 16 & 0x8000) | 0x7FC0
    return np.where(np.isnan(values), quiet_nan, rounded).astype(np.uint16)


def _check_not_negative(**numbers: int) -> None:
    for name, number in numbers.items():
        if number < 0:
            raise InvalidArgumentError(f"got {name}={number}, expected 0 or more")


def _code_range(bits: int, lo: int | None) -> tuple[int, type[np.uint8] | type[np.int8]]:
    """What is added to symbols, and the dtype of the result."""
    check_range("bits", bits, 1, 8)
    if lo is None:
        return 0, np.uint8
    if not -128 <= lo <= 128 - (1 << bits):
        raise InvalidArgumentError(
            f"bitpack: got lo={lo} with bits={bits}, expected -128 to {128 - (1 << bits)} "
            "so that every code is an int8"
        )
    return lo, np.int8


def _checked_packed(packed: BytesLike, bits: int, count: int) -> NDArray[np.uint8]:
    size = packed_size(count, bits=bits)
    array = as_array(packed, "packed", np.uint8, 1)
    if array.size != size:
        raise CorruptStreamError(
            f"bitpack: {count} symbols of {bits} bits take {size} bytes, got {array.size}"
        )
    used = count * bits % 8
    if used and int(array[-1]) >> used:
        raise CorruptStreamError(
            f"bitpack: padding bits of the last byte, {size - 1}, are not zero"
        )
    return array


def _checked_scales(scales: AnyArray, shape: tuple[int, int]) -> AnyArray:
    is_half = isinstance(scales, np.ndarray) and scales.dtype == np.float16
    scales = as_array(scales, "scales", np.float16 if is_half else np.float32, 2)
    if scales.shape != shape:
        raise InvalidArgumentError(f"bitpack: scales has shape {scales.shape}, expected {shape}")
    return scales

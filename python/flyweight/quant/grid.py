"""Grids: which integer codes stand for weights, who shares a scale, and how weights come back.

One object serves quantization, export and load, so that a code means the same in all three. The
order of operations in :meth:`Grid.dequantize` is part of the format: all backends give its bits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from flyweight.errors import InvalidArgumentError
from flyweight.typing import AnyArray, Codes

__all__ = ["Grid", "QuantizedTensor", "from_float32", "matrix_shape"]

SCALE_DTYPES = (np.dtype(np.float16), np.dtype(np.float32))


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """A uniform grid: ``weight = scale x (code - zero_point)`` with codes ``lo .. hi``.

    The scale is that of the row (or of a group of its columns), times that of the column where
    the grid has column scales.
    """

    lo: int
    """Smallest code, at least -128."""
    hi: int
    """Largest code, at most 127."""
    group_size: int = 0
    """Columns that share a scale; 0 means the whole row."""
    is_symmetric: bool = True
    """Symmetric grids have no zero-points: ``weight = scale x code``."""
    scale_dtype: str = "float16"
    """What scales of both kinds (and zero-points) are stored as: ``float16`` or ``float32``."""
    has_column_scales: bool = False
    """Whether every column has a scale too, which multiplies that of the row."""

    def __post_init__(self) -> None:
        if not -128 <= self.lo <= self.hi <= 127:
            raise InvalidArgumentError(
                f"a grid needs -128 <= lo <= hi <= 127, got lo={self.lo}, hi={self.hi}"
            )
        if self.group_size < 0:
            raise InvalidArgumentError(f"group_size must be 0 or more, got {self.group_size}")
        if np.dtype(self.scale_dtype) not in SCALE_DTYPES:
            raise InvalidArgumentError(
                f"scale_dtype must be float16 or float32, got {self.scale_dtype!r}"
            )

    @classmethod
    def symmetric(cls, bits: int, *, group_size: int = 0) -> Grid:
        """The symmetric grid of ``bits`` bits: codes ``-(2**(bits-1)-1) .. 2**(bits-1)-1``.

        That of 8 bits is the widest. With steps that leave its edges unused it is the grid to
        choose where codes are entropy-coded: it clips nothing.
        """
        if not 2 <= bits <= 8:
            raise InvalidArgumentError(f"bits must be 2 to 8, got {bits}")
        qmax = 2 ** (bits - 1) - 1
        return cls(lo=-qmax, hi=qmax, group_size=group_size)

    @classmethod
    def affine(cls, bits: int, *, group_size: int = 0) -> Grid:
        """The affine grid of ``bits`` bits: all codes ``-(2**(bits-1)) .. 2**(bits-1)-1``."""
        if not 2 <= bits <= 8:
            raise InvalidArgumentError(f"bits must be 2 to 8, got {bits}")
        half = 2 ** (bits - 1)
        return cls(lo=-half, hi=half - 1, group_size=group_size, is_symmetric=False)

    @classmethod
    def ternary(cls, *, group_size: int = 0) -> Grid:
        """The symmetric grid of three codes, -1 to 1; that of two bits is the same."""
        return cls(lo=-1, hi=1, group_size=group_size)

    @classmethod
    def pentanary(cls, *, group_size: int = 0) -> Grid:
        """The symmetric grid of five codes, -2 to 2."""
        return cls(lo=-2, hi=2, group_size=group_size)

    @property
    def bits(self) -> int:
        """Nominal bits: the width that a code would need."""
        return (self.alphabet_size - 1).bit_length()

    @property
    def alphabet_size(self) -> int:
        """How many codes there are; symbol = code - lo."""
        return self.hi - self.lo + 1

    def groups(self, cols: int) -> int:
        """Scales in a row of ``cols`` weights."""
        if self.group_size == 0:
            return 1 if cols else 0
        return -(-cols // self.group_size)

    def column_groups(self, cols: int) -> NDArray[np.int32]:
        """Index of the scale of each column, ``(cols,)``."""
        size = self.group_size or max(cols, 1)
        return (np.arange(cols) // size).astype(np.int32)

    def dequantize(
        self,
        codes: Codes,
        scales: AnyArray,
        zero_points: AnyArray | None = None,
        column_scales: AnyArray | None = None,
    ) -> NDArray[np.float32]:
        """Weights of codes, in the one order of operations that the format specifies.

        Parameters
        ----------
        codes : (rows, cols) int8
        scales : (rows, groups) of ``scale_dtype``
        zero_points : (rows, groups) of ``scale_dtype``; None on a symmetric grid
        column_scales : (cols,) of ``scale_dtype``; None on a grid without them

        Returns
        -------
        (rows, cols) float32: ``(float32(code) - float32(zero_point)) * float32(scale) *
        float32(column_scale)`` from left to right, each operation rounded to float32 once

        References
        ----------
        docs/format.md, "Dequantization".
        """
        values = codes.astype(np.float32)
        if not values.size:
            return values
        groups = self.column_groups(codes.shape[1])
        if zero_points is not None:
            values -= zero_points.astype(np.float32)[:, groups]
        values *= scales.astype(np.float32)[:, groups]
        if column_scales is not None:
            values *= column_scales.astype(np.float32)
        return values


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizedTensor:
    """A tensor as codes on a grid; rows are the first axis, columns are all the others."""

    shape: tuple[int, ...]
    """Shape of the tensor that the codes stand for, at least 1-D."""
    dtype: np.dtype[np.generic]
    """Dtype of that tensor; :meth:`dequantize` returns it."""
    grid: Grid
    """What the codes mean."""
    codes: Codes
    """(rows, cols) int8."""
    scales: AnyArray
    """(rows, groups) of the grid's scale dtype."""
    zero_points: AnyArray | None = None
    """(rows, groups) of the grid's scale dtype, or None on a symmetric grid."""
    column_scales: AnyArray | None = None
    """(cols,) of the grid's scale dtype, or None on a grid without them."""

    def __post_init__(self) -> None:
        rows, cols = matrix_shape(self.shape)
        expected = (rows, self.grid.groups(cols))
        if self.codes.dtype != np.int8 or self.codes.shape != (rows, cols):
            raise InvalidArgumentError(
                f"codes must be int8 of shape {(rows, cols)}, "
                f"got {self.codes.dtype} of shape {self.codes.shape}"
            )
        if (self.zero_points is None) != self.grid.is_symmetric:
            raise InvalidArgumentError("zero_points go with affine grids, and only with them")
        if (self.column_scales is not None) != self.grid.has_column_scales:
            raise InvalidArgumentError(
                "column_scales go with grids that have them, and only with them"
            )
        self._check_scales("scales", self.scales, expected)
        self._check_scales("zero_points", self.zero_points, expected)
        self._check_scales("column_scales", self.column_scales, (cols,))

    def _check_scales(self, name: str, array: AnyArray | None, shape: tuple[int, ...]) -> None:
        if array is None:
            return
        if array.dtype != self.grid.scale_dtype or array.shape != shape:
            raise InvalidArgumentError(
                f"{name} must be {self.grid.scale_dtype} of shape {shape}, "
                f"got {array.dtype} of shape {array.shape}"
            )
        if not np.isfinite(array).all():
            at = tuple(np.argwhere(~np.isfinite(array))[0].tolist())
            raise InvalidArgumentError(f"{name} has {array[at]} at {list(at)}")

    def dequantize(self) -> AnyArray:
        """The tensor, in its own shape and dtype."""
        values = self.grid.dequantize(self.codes, self.scales, self.zero_points, self.column_scales)
        return from_float32(values.reshape(self.shape), self.dtype)


def matrix_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """Rows and columns of a tensor of at least one axis: first axis, product of the others."""
    if not shape:
        raise InvalidArgumentError("a scalar has no rows; store it as a plain tensor")
    return shape[0], math.prod(shape[1:])


def from_float32(values: NDArray[np.float32], dtype: np.dtype[np.generic]) -> AnyArray:
    """float32 to another float dtype, rounded to nearest even."""
    if dtype not in (
        np.dtype(np.float64),
        np.dtype(np.float32),
        np.dtype(np.float16),
        np.dtype(ml_dtypes.bfloat16),
    ):
        raise InvalidArgumentError(f"weights come back as a float dtype, not as {dtype}")
    return values if dtype == np.float32 else values.astype(dtype)

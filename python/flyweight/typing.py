"""Array types that signatures share."""

from __future__ import annotations

from typing import Any, TypeAlias, TypedDict

import numpy as np
from numpy.typing import NDArray

__all__ = ["AnyArray", "BytesLike", "Codes", "Counts", "CudaInfo", "Freqs", "Symbols", "Words"]

AnyArray: TypeAlias = NDArray[Any]
"""Any dtype, any shape."""
Codes: TypeAlias = NDArray[np.int8]
"""Integers that stand for weights on a grid, ``(rows, cols)``."""
Symbols: TypeAlias = NDArray[np.uint8]
"""What a coder sees: ``0 .. alphabet_size - 1``."""
Counts: TypeAlias = NDArray[np.int64]
"""Occurrences per symbol, ``(alphabet,)``."""
Freqs: TypeAlias = NDArray[np.uint16]
"""Integer shares of ``1 << prob_bits`` per symbol, ``(alphabet,)`` or ``(tables, alphabet)``."""
Words: TypeAlias = NDArray[np.uint16]
"""16-bit units of an ANS stream."""
BytesLike: TypeAlias = bytes | bytearray | memoryview | NDArray[np.uint8]
"""Coded bytes in any contiguous, one-dimensional buffer of unsigned bytes."""


class CudaInfo(TypedDict):
    """What the extension knows about CUDA on this machine."""

    built_with_cuda: bool
    runtime_version: str | None
    """``"13.0"``-style; None where there is none."""
    driver_version: str | None
    devices: list[str]
    """Names of the devices, empty where there are none."""
    problem: str | None
    """Why no device can be used, in words; None where one can."""

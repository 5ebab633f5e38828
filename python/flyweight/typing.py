"""Array types that signatures share."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["AnyArray", "Codes", "Counts", "Freqs", "Symbols"]

AnyArray: TypeAlias = NDArray[Any]
"""Any dtype, any shape."""
Codes: TypeAlias = NDArray[np.int8]
"""Integers that stand for weights on a grid, ``(rows, cols)``."""
Symbols: TypeAlias = NDArray[np.uint8]
"""What a coder sees: ``0 .. alphabet_size - 1``."""
Counts: TypeAlias = NDArray[np.int64]
"""Occurrences per symbol, ``(alphabet,)``."""
Freqs: TypeAlias = NDArray[np.uint16]
"""Integer shares of ``1 << prob_bits`` per symbol, ``(alphabet,)``."""

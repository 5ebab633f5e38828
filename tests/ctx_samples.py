"""Planes with rows and columns of different deviation, as the ctx codec is for."""

from __future__ import annotations

import numpy as np

from flyweight.codecs.codec import PlaneSpec
from flyweight.typing import Symbols

__all__ = ["class_plane"]


def class_plane(
    rows: int, cols: int, *, alphabet_size: int = 63, spread: float = 1.0, seed: int = 0
) -> tuple[Symbols, PlaneSpec]:
    """Gaussian symbols whose log deviations spread by ``spread``, and columns have means."""
    rng = np.random.default_rng(seed)
    deviations = np.exp(spread * (rng.normal(size=(rows, 1)) / 4 + rng.normal(size=cols) / 2))
    means = spread * rng.normal(size=cols) / 3
    codes = (rng.normal(size=(rows, cols)) + means) * deviations * alphabet_size / 20
    middle = (alphabet_size - 1) / 2
    symbols = np.clip(np.rint(codes + middle), 0, alphabet_size - 1).astype(np.uint8)
    return symbols.reshape(-1), PlaneSpec(symbols.size, alphabet_size, cols)

"""What several kernel tests need: inputs, information content, GPTQ's ingredients."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from flyweight.kernels import cpu_tiers, histogram, normalize_counts
from flyweight.typing import Freqs, Symbols

__all__ = [
    "BACKENDS",
    "WAYS",
    "alphabets",
    "gaussian_symbols",
    "gptq_problem",
    "hessian_error",
    "order0_bits",
    "round_to_nearest",
    "symbol_arrays",
    "table_of",
]

BACKENDS = ("reference", *cpu_tiers())
WAYS = (1, 2, 4, 8, 16, 32, 64)

alphabets = st.sampled_from((1, 2, 3, 15, 63, 255, 256))


@st.composite
def symbol_arrays(draw: st.DrawFn, alphabet_size: int, ways: int = 8) -> Symbols:
    """Flat, skewed and constant symbols of sizes around the multiples of a group."""
    sizes = {0, 1, ways - 1, ways, ways + 1, 3 * ways + 1, 257}
    count = draw(st.sampled_from(sorted(sizes)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    concentration = draw(st.sampled_from((0.01, 0.3, 100.0)))
    shares = rng.dirichlet(np.full(alphabet_size, concentration))
    return rng.choice(alphabet_size, size=count, p=shares).astype(np.uint8)


def table_of(symbols: Symbols, alphabet_size: int, prob_bits: int) -> Freqs:
    """Frequencies fitted to the symbols, or flat ones for none."""
    counts = histogram(symbols, alphabet_size=alphabet_size)
    return normalize_counts(counts if symbols.size else counts + 1, prob_bits=prob_bits)


def gaussian_symbols(count: int, *, std: float = 6.0, seed: int = 0) -> Symbols:
    """Shifted int6 codes as clipping at a few standard deviations makes them: 0 to 62."""
    codes = np.rint(np.random.default_rng(seed).normal(0.0, std, count)).clip(-31, 31)
    return (codes + 31).astype(np.uint8)


def order0_bits(symbols: Symbols) -> float:
    """Empirical order-0 information content of the sequence, in bits."""
    counts = np.bincount(symbols)
    counts = counts[counts > 0].astype(np.float64)
    return float((counts * np.log2(symbols.size / counts)).sum())


def gptq_problem(
    rows: int, cols: int, *, seed: int
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32], NDArray[np.float64]]:
    """Weights, factor U, row scales of a 4-bit grid, and the Hessian of correlated inputs."""
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(cols, cols)) / np.sqrt(cols) + np.eye(cols)
    inputs = rng.normal(size=(4 * cols, cols)) @ mixing
    hessian = inputs.T @ inputs / len(inputs)
    hessian += 0.01 * np.mean(np.diag(hessian)) * np.eye(cols)
    factor = np.linalg.cholesky(np.linalg.inv(hessian)).T
    weights = rng.normal(size=(rows, cols)).astype(np.float32)
    scales = (np.abs(weights).max(axis=1, keepdims=True) / 7).astype(np.float32)
    return weights, np.ascontiguousarray(factor, dtype=np.float32), scales, hessian


def hessian_error(
    weights: NDArray[np.float32], decoded: NDArray[np.float32], hessian: NDArray[np.float64]
) -> float:
    """Proxy loss: ``tr(D H D.T)`` of the difference D, in float64."""
    difference = weights.astype(np.float64) - decoded.astype(np.float64)
    return float(np.einsum("rc,cd,rd->", difference, hessian, difference))


def round_to_nearest(
    weights: NDArray[np.float32],
    scales: NDArray[np.float32],
    zeros: NDArray[np.float32] | np.float32,
    lo: int,
    hi: int,
) -> NDArray[np.int8]:
    """The baseline of GPTQ, in float32; ``scales`` and ``zeros`` broadcast to the weights."""
    return np.clip(np.rint(weights / scales + zeros), lo, hi).astype(np.int8)

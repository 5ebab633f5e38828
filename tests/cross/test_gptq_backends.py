"""Every instruction set, any number of threads, the same codes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from checks import BACKENDS, gptq_problem, hessian_error
from flyweight.kernels import backend, cpu_tiers, gptq_quantize
from flyweight.reference.gptq import quantize_columns

EDGES = (1, 2, 5, 6, 7, 12, 13, 16, 17, 31, 33, 65)


def problem(rows: int, cols: int, groups: int, *, affine: bool, seed: int) -> dict[str, Any]:
    """Scales of any group order, some of them zero."""
    weights, factor, scales, _ = gptq_problem(rows, cols, seed=seed)
    rng = np.random.default_rng(seed)
    spread = rng.choice([0, 0.5, 1, 1.5], size=(rows, groups), p=[0.1, 0.3, 0.3, 0.3])
    arguments: dict[str, Any] = {
        "weights": weights,
        "inverse_factor": factor,
        "scales": np.ascontiguousarray(scales * spread, dtype=np.float32),
        "column_groups": rng.integers(0, groups, cols, dtype=np.int32),
    }
    if affine:
        zeros = rng.uniform(0, 15, (rows, groups)).astype(np.float32)
        return arguments | {"zero_points": zeros, "lo": 0, "hi": 15}
    return arguments | {"lo": -7, "hi": 7}


@given(
    rows=st.sampled_from(EDGES),
    cols=st.sampled_from(EDGES),
    groups=st.integers(1, 5),
    affine=st.booleans(),
    block_cols=st.sampled_from((1, 4, 7, 128)),
    seed=st.integers(0, 2**32),
)
def test_every_tier_codes_as_the_reference(
    rows: int, cols: int, groups: int, affine: bool, block_cols: int, seed: int
) -> None:
    arguments = problem(rows, cols, groups, affine=affine, seed=seed)
    with backend("reference"):
        expected = gptq_quantize(**arguments)
    for name in cpu_tiers():
        with backend(name):
            codes = gptq_quantize(**arguments, block_cols=block_cols)
        np.testing.assert_array_equal(codes, expected, strict=True)


@pytest.mark.parametrize("shape", [(512, 512), (300, 700)])
def test_threads_and_tiers_agree_and_lose_as_much_as_float64(shape: tuple[int, int]) -> None:
    """Few enough codes differ from float64's that the loss is within 1e-3 of it."""
    weights, factor, scales, hessian = gptq_problem(*shape, seed=shape[0])
    codes = gptq_quantize(weights, factor, scales, lo=-7, hi=7, threads=1)
    for name in cpu_tiers():
        for threads in (1, 2, 5):
            with backend(name):
                again = gptq_quantize(weights, factor, scales, lo=-7, hi=7, threads=threads)
            np.testing.assert_array_equal(again, codes, strict=True)
    wide = np.broadcast_to(scales, shape).astype(np.float64)
    exact = quantize_columns(
        weights.astype(np.float64), factor.astype(np.float64), wide, np.zeros_like(wide), -7, 7
    )
    loss = hessian_error(weights, exact * scales, hessian)
    assert hessian_error(weights, codes * scales, hessian) == pytest.approx(loss, rel=1e-3)


@pytest.mark.parametrize("name", BACKENDS)
def test_products_are_not_rounded_before_they_are_subtracted(name: str) -> None:
    """The exact update lies just beyond the tie at -0.5; with a rounded product, upon it."""
    error, entry = 1 + 3 * 2.0**-12, 1 - 2.0**-12
    weights = np.array([[error, 0.5 + 2.0**-11 - 2.0**-22]], dtype=np.float32)
    factor = np.array([[1, entry], [0, 1]], dtype=np.float32)
    assert weights[0, 1] - weights[0, 0] * factor[0, 1] == -0.5
    scales = np.array([[0, 1]], dtype=np.float32)  # column 0 leaves all of itself as its error
    groups = np.array([0, 1], dtype=np.int32)
    with backend(name):
        codes = gptq_quantize(weights, factor, scales, column_groups=groups, lo=-7, hi=7)
    assert codes.tolist() == [[0, -1]]


def test_overflow_ends_alike_on_every_tier() -> None:
    """Infinities and NaNs take the same way through the clipping."""
    rng = np.random.default_rng(8)
    weights = rng.choice(np.array([3e38, -3e38, 1, 0], np.float32), size=(33, 29))
    factor = np.triu(rng.choice(np.array([1e30, -1e30, 0], np.float32), size=(29, 29)))
    np.fill_diagonal(factor, 1e-30)
    with backend("reference"):
        expected = gptq_quantize(weights, factor, np.ones((33, 1), np.float32), lo=-3, hi=5)
    for name in cpu_tiers():
        with backend(name):
            codes = gptq_quantize(weights, factor, np.ones((33, 1), np.float32), lo=-3, hi=5)
        np.testing.assert_array_equal(codes, expected, strict=True)

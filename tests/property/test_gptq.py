from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from checks import BACKENDS, gptq_problem, hessian_error, round_to_nearest
from flyweight.kernels import backend, gptq_quantize
from flyweight.reference.gptq import quantize_columns

SHAPES = [(1, 1), (3, 5), (8, 64), (9, 130), (17, 257)]


@pytest.mark.parametrize("name", BACKENDS)
@given(seed=st.integers(0, 2**32), shape=st.sampled_from(SHAPES))
def test_identity_factor_is_round_to_nearest(name: str, seed: int, shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(seed)
    rows, cols = shape
    weights = rng.normal(size=shape).astype(np.float32)
    scales = rng.uniform(0.05, 0.5, (rows, 1)).astype(np.float32)
    with backend(name):
        codes = gptq_quantize(weights, np.eye(cols, dtype=np.float32), scales, lo=-7, hi=7)
    expected = round_to_nearest(weights, scales, np.float32(0), -7, 7)
    np.testing.assert_array_equal(codes, expected, strict=True)


@pytest.mark.parametrize("name", BACKENDS)
def test_ties_go_to_even_and_codes_are_clipped(name: str) -> None:
    weights = np.array([[-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 3.5, 1e30, -1e30]], dtype=np.float32)
    factor = np.eye(weights.shape[1], dtype=np.float32)
    with backend(name):
        codes = gptq_quantize(weights, factor, np.ones((1, 1), np.float32), lo=-128, hi=127)
    assert codes.tolist() == [[-2, -2, 0, 0, 2, 2, 4, 127, -128]]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("block_cols", [1, 3, 64, 128, 10**6])
def test_backends_and_block_widths_agree_to_the_bit(
    shape: tuple[int, int], block_cols: int
) -> None:
    weights, factor, scales, _ = gptq_problem(*shape, seed=1)
    with backend("reference"):
        expected = gptq_quantize(weights, factor, scales, lo=-7, hi=7)
    codes = gptq_quantize(weights, factor, scales, lo=-7, hi=7, block_cols=block_cols)
    np.testing.assert_array_equal(codes, expected, strict=True)


@pytest.mark.parametrize("seed", range(3))
def test_weighted_error_is_that_of_float64(seed: int) -> None:
    """Rounding decides a few codes differently; the loss that matters moves by at most 0.5 %."""
    weights, factor, scales, hessian = gptq_problem(48, 256, seed=seed)
    codes = gptq_quantize(weights, factor, scales, lo=-7, hi=7)
    wide = np.broadcast_to(scales, weights.shape).astype(np.float64)
    exact = quantize_columns(
        weights.astype(np.float64), factor.astype(np.float64), wide, np.zeros_like(wide), -7, 7
    )
    error = hessian_error(weights, codes * scales, hessian)
    assert error == pytest.approx(hessian_error(weights, exact * scales, hessian), rel=0.005)


def test_loss_is_below_round_to_nearest_on_average() -> None:
    ratios = []
    for seed in range(8):
        weights, factor, scales, hessian = gptq_problem(16, 96, seed=seed)
        codes = gptq_quantize(weights, factor, scales, lo=-7, hi=7)
        rtn = round_to_nearest(weights, scales, np.float32(0), -7, 7)
        baseline = hessian_error(weights, rtn * scales, hessian)
        ratios.append(hessian_error(weights, codes * scales, hessian) / baseline)
    assert np.mean(ratios) < 0.8


@pytest.mark.parametrize("name", BACKENDS)
def test_group_scales_follow_the_columns(name: str) -> None:
    weights, _, _, _ = gptq_problem(6, 40, seed=3)
    rng = np.random.default_rng(4)
    groups = rng.permutation(np.repeat(np.arange(4), 10)).astype(np.int32)
    scales = rng.uniform(0.1, 0.6, (6, 4)).astype(np.float32)
    zeros = rng.uniform(0, 15, (6, 4)).astype(np.float32)
    with backend(name):
        codes = gptq_quantize(
            weights,
            np.eye(40, dtype=np.float32),
            scales,
            column_groups=groups,
            zero_points=zeros,
            lo=0,
            hi=15,
        )
    expected = round_to_nearest(weights, scales[:, groups], zeros[:, groups], 0, 15)
    np.testing.assert_array_equal(codes, expected)


def test_backends_agree_with_groups_and_zero_points() -> None:
    weights, factor, scales, _ = gptq_problem(11, 150, seed=5)
    groups = (np.arange(150) // 50).astype(np.int32)
    options = {
        "column_groups": groups,
        "zero_points": np.full((11, 3), 7.25, np.float32),
        "lo": 0,
        "hi": 15,
    }
    wide = np.ascontiguousarray(scales * np.array([1, 0.5, 0], np.float32))
    with backend("reference"):
        expected = gptq_quantize(weights, factor, wide, **options)
    np.testing.assert_array_equal(gptq_quantize(weights, factor, wide, **options), expected)


@pytest.mark.parametrize("name", BACKENDS)
def test_a_scale_of_zero_codes_the_zero_point(name: str) -> None:
    weights, factor, scales, _ = gptq_problem(2, 8, seed=6)
    with backend(name):
        plain = gptq_quantize(weights, factor, np.zeros_like(scales), lo=-7, hi=7)
        affine = gptq_quantize(
            weights,
            factor,
            np.zeros_like(scales),
            zero_points=np.full_like(scales, 3.6),
            lo=-7,
            hi=7,
        )
    assert (plain == 0).all()
    assert (affine == 4).all()


@pytest.mark.parametrize("name", BACKENDS)
def test_inputs_are_not_modified(name: str) -> None:
    weights, factor, scales, _ = gptq_problem(5, 20, seed=7)
    for array in (weights, factor, scales):
        array.flags.writeable = False
    with backend(name):
        gptq_quantize(weights, factor, scales, lo=-7, hi=7)


def test_overflowing_updates_still_give_codes_of_the_grid() -> None:
    weights = np.full((2, 16), 3e38, dtype=np.float32)
    factor = np.triu(np.full((16, 16), 1e30, dtype=np.float32))
    np.fill_diagonal(factor, 1e-30)
    for name in BACKENDS:
        with backend(name):
            codes = gptq_quantize(weights, factor, np.ones((2, 1), np.float32), lo=-3, hi=3)
        assert codes.min() >= -3
        assert codes.max() <= 3


@pytest.mark.parametrize("shape", [(0, 4), (3, 0)])
def test_empty_matrices(shape: tuple[int, int]) -> None:
    rows, cols = shape
    for name in BACKENDS:
        with backend(name):
            codes = gptq_quantize(
                np.zeros(shape, np.float32),
                np.eye(cols, dtype=np.float32),
                np.ones((rows, 1), np.float32),
                lo=-1,
                hi=1,
            )
        assert codes.shape == shape

"""Grids, scale rules and GPTQ around its kernel."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from flyweight.errors import InvalidArgumentError
from flyweight.quant.clip import row_max_scales, sdclip_scales
from flyweight.quant.gptq import hessian_error, inverse_factor, quantize_matrix
from flyweight.quant.grid import Grid, QuantizedTensor, matrix_shape


def matrix(rows: int = 32, cols: int = 48, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, cols)).astype(np.float32)


def hessian(cols: int = 48, seed: int = 1, decay: float = 1.0) -> np.ndarray:
    """Second moment of correlated inputs with a falling spectrum."""
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(cols, cols)) * (np.arange(1, cols + 1) ** -decay)
    x = rng.normal(size=(4096, cols)) @ mix.T
    return (x.T @ x / len(x)).astype(np.float32)


def rtn(weights: np.ndarray, scales: np.ndarray, grid: Grid) -> np.ndarray:
    """Rounding to nearest, written plainly."""
    wide = scales.astype(np.float32)[:, grid.column_groups(weights.shape[1])]
    return np.clip(np.rint(weights / wide), grid.lo, grid.hi).astype(np.int8)


@pytest.mark.parametrize(("bits", "alphabet"), [(2, 3), (4, 15), (5, 31), (6, 63), (8, 255)])
def test_symmetric_grids(bits: int, alphabet: int) -> None:
    grid = Grid.symmetric(bits)
    assert (grid.lo, grid.alphabet_size) == (-grid.hi, alphabet)


@pytest.mark.parametrize("wrong", [{"lo": 1, "hi": 0}, {"lo": -129, "hi": 0}, {"lo": 0, "hi": 128}])
def test_grids_out_of_range(wrong: dict[str, int]) -> None:
    with pytest.raises(InvalidArgumentError):
        Grid(**wrong)


def test_groups_cover_every_column() -> None:
    grid = Grid(lo=-1, hi=1, group_size=20)
    assert grid.groups(48) == 3
    assert grid.column_groups(48).tolist() == [0] * 20 + [1] * 20 + [2] * 8
    assert Grid(lo=-1, hi=1).groups(48) == 1


def test_dequantization_is_one_operation_at_a_time() -> None:
    grid = Grid(lo=-128, hi=127, is_symmetric=False, scale_dtype="float32")
    rng = np.random.default_rng(0)
    codes = rng.integers(-128, 128, size=(16, 9)).astype(np.int8)
    scales = rng.random((16, 1)).astype(np.float32)
    zeros = rng.random((16, 1)).astype(np.float32)
    values = grid.dequantize(codes, scales, zeros)
    for row in range(16):
        for col in range(9):
            shifted = np.float32(codes[row, col]) - zeros[row, 0]
            assert values[row, col] == np.float32(shifted) * scales[row, 0]


def test_column_scales_come_last() -> None:
    grid = Grid(lo=-128, hi=127, is_symmetric=False, scale_dtype="float32", has_column_scales=True)
    rng = np.random.default_rng(0)
    codes = rng.integers(-128, 128, size=(16, 9)).astype(np.int8)
    scales, zeros = rng.random((2, 16, 1), dtype=np.float32)
    columns = rng.random(9, dtype=np.float32)
    values = grid.dequantize(codes, scales, zeros, columns)
    for row in range(16):
        for col in range(9):
            of_row = (np.float32(codes[row, col]) - zeros[row, 0]) * scales[row, 0]
            assert values[row, col] == of_row * columns[col]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (None, "column_scales go with grids that have them"),
        (np.ones(3, np.float16), r"column_scales must be float16 of shape \(4,\)"),
        (np.ones(4, np.float32), "column_scales must be float16 of shape"),
        (np.array([1, 1, np.nan, 1], np.float16), r"column_scales has nan at \[2\]"),
    ],
)
def test_column_scales_are_checked(columns: np.ndarray | None, message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        QuantizedTensor(
            shape=(3, 4),
            dtype=np.dtype(np.float32),
            grid=Grid(lo=-7, hi=7, has_column_scales=True),
            codes=np.zeros((3, 4), np.int8),
            scales=np.ones((3, 1), np.float16),
            column_scales=columns,
        )


def test_quantized_tensors_come_back_in_their_dtype() -> None:
    weights = matrix()
    grid = Grid.symmetric(6)
    scales = sdclip_scales(weights, grid, k=12.85)
    for dtype in (np.float32, np.float16, ml_dtypes.bfloat16, np.float64):
        tensor = QuantizedTensor(
            shape=(32, 6, 8),
            dtype=np.dtype(dtype),
            grid=grid,
            codes=rtn(weights, scales, grid),
            scales=scales,
        )
        assert tensor.dequantize().dtype == dtype
        assert tensor.dequantize().shape == (32, 6, 8)
    with pytest.raises(InvalidArgumentError, match="float dtype"):
        QuantizedTensor(
            shape=(32, 48), dtype=np.dtype(np.int8), grid=grid, codes=tensor.codes, scales=scales
        ).dequantize()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"codes": np.zeros((3, 4), np.int16)}, "codes must be int8"),
        ({"scales": np.zeros((3, 2), np.float16)}, r"scales must be float16 of shape \(3, 1\)"),
        ({"scales": np.full((3, 1), np.inf, np.float16)}, r"scales has inf at \[0, 0\]"),
        ({"zero_points": np.zeros((3, 1), np.float16)}, "affine"),
        ({"column_scales": np.ones(4, np.float16)}, "column_scales go with grids that have them"),
    ],
)
def test_quantized_tensors_are_checked(changes: dict[str, np.ndarray], message: str) -> None:
    parts = {"codes": np.zeros((3, 4), np.int8), "scales": np.zeros((3, 1), np.float16), **changes}
    with pytest.raises(InvalidArgumentError, match=message):
        QuantizedTensor(shape=(3, 4), dtype=np.dtype(np.float32), grid=Grid.symmetric(4), **parts)


def test_scalars_have_no_rows() -> None:
    assert matrix_shape((3, 4, 5)) == (3, 20)
    assert matrix_shape((7,)) == (7, 1)
    with pytest.raises(InvalidArgumentError, match="scalar"):
        matrix_shape(())


@pytest.mark.parametrize("group_size", [0, 20])
def test_row_max_reaches_the_edge(group_size: int) -> None:
    weights = matrix()
    grid = Grid.symmetric(5, group_size=group_size)
    scales = row_max_scales(weights, grid)
    wide = scales.astype(np.float32)[:, grid.column_groups(48)]
    assert np.abs(weights / wide).max() == pytest.approx(15, rel=1e-3)
    assert scales.dtype == np.float16


def test_sdclip_is_k_deviations_over_qmax() -> None:
    weights = matrix(cols=4096)
    scales = sdclip_scales(weights, Grid.symmetric(6), k=12.85)
    expected = 12.85 * np.sqrt((weights**2).mean(axis=1)) / 31
    assert scales[:, 0].astype(np.float64) == pytest.approx(expected, rel=1e-3)


def test_rows_without_spread() -> None:
    weights = np.zeros((3, 8), dtype=np.float32)
    weights[1] = 0.5
    weights[2] = 1e-12
    grid = Grid.symmetric(6)
    scales = sdclip_scales(weights, grid, k=12.85)
    assert scales[0, 0] == 0
    assert scales[1, 0] == np.float16(0.5 * 12.85 / 31)
    assert scales[2, 0] > 0
    result = quantize_matrix(weights, scales, grid)
    assert np.array_equal(result.codes[0], np.zeros(8))
    assert np.array_equal(result.codes[1], np.full(8, 2))


def test_a_mean_does_not_push_a_row_off_the_grid() -> None:
    rng = np.random.default_rng(0)
    weights = (1 + 0.02 * rng.normal(size=(8, 512))).astype(np.float32)
    grid = Grid.symmetric(6)
    scales = sdclip_scales(weights, grid, k=12.85)
    dequantized = grid.dequantize(quantize_matrix(weights, scales, grid).codes, scales)
    assert np.abs(dequantized - weights).max() < 0.3


def test_scales_beyond_float16_say_what_to_do() -> None:
    weights = np.full((2, 8), 1e9, dtype=np.float32)
    with pytest.raises(InvalidArgumentError, match="more than float16 can hold: keep"):
        row_max_scales(weights, Grid.symmetric(4))


def test_k_must_be_positive() -> None:
    with pytest.raises(InvalidArgumentError, match="k must be"):
        sdclip_scales(matrix(), Grid.symmetric(4), k=0.0)


def test_inverse_factor_is_the_factor_of_the_inverse() -> None:
    h = hessian()
    factor, damping = inverse_factor(h, damp_ratio=0.01)
    damped = h.astype(np.float64)
    damped[np.diag_indices(48)] += 0.01 * np.diagonal(h).astype(np.float64).mean()
    u = factor.astype(np.float64)
    assert damping == 0.01
    assert np.array_equal(factor, np.triu(factor))
    assert np.allclose(u.T @ u @ damped, np.eye(48), atol=1e-3)


@pytest.mark.parametrize("cols", [1, 2, 48, 49, 97, 300])
def test_inverse_factor_has_float64_accuracy(cols: int) -> None:
    """At a condition number of 1e6, where a factor found in float32 errs in the second digit."""
    rng = np.random.default_rng(cols)
    basis = np.linalg.qr(rng.normal(size=(cols, cols)))[0]
    h = ((basis * np.geomspace(1, 1e-6, cols)) @ basis.T).astype(np.float32)
    h = (h + h.T) / 2
    factor, damping = inverse_factor(h, damp_ratio=1e-6)
    damped = h.astype(np.float64) + 1e-6 * np.diagonal(h).mean(dtype=np.float64) * np.eye(cols)
    expected = np.linalg.cholesky(np.linalg.inv(damped)).T
    assert damping == 1e-6
    np.testing.assert_allclose(factor, expected, rtol=1e-5, atol=1e-6 * np.abs(expected).max())


@pytest.mark.parametrize("damp_ratio", [0.0, 1e-12, 0.01])
@pytest.mark.parametrize("lowest", [0.0, -1e-6, -1e-3, -0.2])
def test_not_positive_definite(lowest: float, damp_ratio: float) -> None:
    """Damping grows until there is a factor, and what it feeds back is better than nothing."""
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(20, 48)) @ (np.eye(48) + rng.normal(size=(48, 48)) / 4)
    values, vectors = np.linalg.eigh(inputs.T @ inputs / 20)  # of rank 20
    values[:28] = lowest
    h = ((vectors * values) @ vectors.T).astype(np.float32)
    h = (h + h.T) / 2
    factor, damping = inverse_factor(h, damp_ratio=damp_ratio)
    assert damping is not None
    assert damping >= damp_ratio
    assert np.isfinite(factor).all()
    weights, grid = matrix(), Grid.symmetric(4)
    scales = row_max_scales(weights, grid)
    result = quantize_matrix(weights, scales, grid, hessian=h, damp_ratio=damp_ratio)
    assert result.damp_ratio is not None
    true = ((vectors * values.clip(0)) @ vectors.T).astype(np.float32)
    rounded = grid.dequantize(rtn(weights, scales, grid), scales)
    dequantized = grid.dequantize(result.codes, scales)
    assert hessian_error(weights, dequantized, true) < hessian_error(weights, rounded, true)


def test_identity_hessian_equals_rounding_to_nearest() -> None:
    weights = matrix()
    grid = Grid.symmetric(4)
    scales = row_max_scales(weights, grid)
    result = quantize_matrix(weights, scales, grid, hessian=np.eye(48, dtype=np.float32))
    assert np.array_equal(result.codes, rtn(weights, scales, grid))
    assert result.damp_ratio == 0.01
    without = quantize_matrix(weights, scales, grid)
    assert np.array_equal(without.codes, result.codes)
    assert without.damp_ratio is None


@pytest.mark.parametrize("group_size", [0, 16])
def test_gptq_beats_rounding_where_inputs_are_correlated(group_size: int) -> None:
    grid = Grid.symmetric(4, group_size=group_size)
    gains = []
    for seed in range(5):
        weights, h = matrix(seed=seed), hessian(seed=100 + seed)
        scales = row_max_scales(weights, grid)
        rounded = grid.dequantize(rtn(weights, scales, grid), scales)
        errors = [hessian_error(weights, rounded, h)]
        for act_order in (False, True):
            result = quantize_matrix(weights, scales, grid, hessian=h, act_order=act_order)
            dequantized = grid.dequantize(result.codes, scales)
            errors.append(hessian_error(weights, dequantized, h))
        gains.append([error / errors[0] for error in errors[1:]])
    natural, ordered = np.mean(gains, axis=0)
    assert ordered < natural < 0.9


def test_dead_columns_stand_for_zero() -> None:
    weights, h = matrix(), hessian()
    h[:, [3, 40]] = 0
    h[[3, 40], :] = 0
    grid = Grid.symmetric(5)
    result = quantize_matrix(weights, row_max_scales(weights, grid), grid, hessian=h)
    assert result.dead_columns == 2
    assert not result.codes[:, [3, 40]].any()
    assert result.codes.any()


@pytest.mark.parametrize(
    "bad",
    [
        np.zeros((48, 48), dtype=np.float32),
        np.ones((48, 48), dtype=np.float32),
        np.ones((48, 48), dtype=np.float32) - 2 * np.eye(48, dtype=np.float32) + 3,
        np.full((48, 48), 1e38, dtype=np.float32),
        np.eye(48, dtype=np.float32) * 1e-44,
    ],
    ids=["zero", "rank one", "indefinite", "huge", "subnormal"],
)
def test_no_hessian_can_stop_it(bad: np.ndarray) -> None:
    weights = matrix()
    grid = Grid.symmetric(4)
    scales = row_max_scales(weights, grid)
    result = quantize_matrix(weights, scales, grid, hessian=bad)
    assert result.codes.shape == weights.shape
    assert 0 < np.abs(result.codes).max() <= 7


def test_bad_input_is_named() -> None:
    weights, grid = matrix(), Grid.symmetric(4)
    scales = row_max_scales(weights, grid)
    with pytest.raises(InvalidArgumentError, match=r"needs a \(48, 48\) Hessian"):
        quantize_matrix(weights, scales, grid, hessian=np.eye(47, dtype=np.float32))
    with pytest.raises(InvalidArgumentError, match="-1.0 on its diagonal at column 0"):
        quantize_matrix(weights, scales, grid, hessian=-np.eye(48, dtype=np.float32))
    with pytest.raises(InvalidArgumentError, match="not symmetric"):
        quantize_matrix(weights, scales, grid, hessian=np.triu(hessian()))
    h = hessian()
    h[5, 7] = np.inf
    with pytest.raises(InvalidArgumentError, match="hessian has inf at row 5, column 7"):
        quantize_matrix(weights, scales, grid, hessian=h)
    weights[2, 1] = np.nan
    with pytest.raises(InvalidArgumentError, match="weights has nan at row 2, column 1"):
        quantize_matrix(weights, scales, grid)


def test_empty_matrices() -> None:
    grid = Grid.symmetric(4)
    for shape in ((0, 5), (5, 0)):
        weights = np.zeros(shape, dtype=np.float32)
        scales = np.zeros((shape[0], grid.groups(shape[1])), dtype=np.float16)
        assert quantize_matrix(weights, scales, grid).codes.shape == shape

"""Grids give codes back, in torch to the same bits; searches never lose to the row maximum."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flyweight.quant.clip import PERCENTILES_5, PERCENTILES_15, percentile_scales, row_max_scales
from flyweight.quant.clip_hessian import hessian_scales, sigma_clip_scales
from flyweight.quant.gptq import round_to_nearest
from flyweight.quant.grid import Grid

SEEDS = st.integers(0, 2**32 - 1)


@st.composite
def grids(draw: st.DrawFn) -> Grid:
    """Of every kind and width."""
    group_size = draw(st.sampled_from([0, 1, 7, 64]))
    kinds = ["ternary", "pentanary", "symmetric", "affine"]
    kind = draw(st.sampled_from(kinds))
    if kind in ("ternary", "pentanary"):
        return getattr(Grid, kind)(group_size=group_size)
    return getattr(Grid, kind)(draw(st.integers(2, 8)), group_size=group_size)


@given(grid=grids(), seed=SEEDS, rows=st.integers(1, 5), cols=st.integers(1, 40))
def test_every_code_comes_back(grid: Grid, seed: int, rows: int, cols: int) -> None:
    rng = np.random.default_rng(seed)
    codes = rng.integers(grid.lo, grid.hi + 1, size=(rows, cols)).astype(np.int8)
    shape = (rows, grid.groups(cols))
    scales = np.exp2(rng.uniform(-14, 8, size=shape)).astype(grid.scale_dtype)
    points = None
    if not grid.is_symmetric:
        points = rng.integers(grid.lo, grid.hi + 1, size=shape).astype(grid.scale_dtype)
    values = grid.dequantize(codes, scales, points)
    assert np.array_equal(round_to_nearest(values, scales, grid, points), codes)
    assert codes.min() >= -(2 ** (grid.bits - 1))


@given(
    seed=SEEDS,
    rows=st.integers(0, 5),
    cols=st.integers(0, 40),
    group_size=st.sampled_from([0, 1, 7]),
    scale_dtype=st.sampled_from(["float16", "float32"]),
    is_symmetric=st.booleans(),
    has_column_scales=st.booleans(),
)
def test_torch_gives_the_same_bits(
    seed: int,
    rows: int,
    cols: int,
    group_size: int,
    scale_dtype: str,
    is_symmetric: bool,
    has_column_scales: bool,
) -> None:
    rng = np.random.default_rng(seed)
    grid = Grid(
        lo=-128,
        hi=127,
        group_size=group_size,
        is_symmetric=is_symmetric,
        scale_dtype=scale_dtype,
        has_column_scales=has_column_scales,
    )
    codes = rng.integers(-128, 128, size=(rows, cols)).astype(np.int8)
    scales, points = rng.normal(size=(2, rows, grid.groups(cols))).astype(scale_dtype)
    columns = rng.normal(size=cols).astype(scale_dtype)
    values = grid.dequantize(
        codes,
        scales,
        None if is_symmetric else points,
        columns if has_column_scales else None,
    )
    groups = torch.from_numpy(grid.column_groups(cols)).long()
    expected = torch.from_numpy(codes).float()
    if not is_symmetric:
        expected = expected - torch.from_numpy(points).float()[:, groups]
    if cols:
        expected = expected * torch.from_numpy(scales).float()[:, groups]
    if has_column_scales:
        expected = expected * torch.from_numpy(columns).float()
    assert values.tobytes() == expected.numpy().tobytes()


def errors(weights: np.ndarray, scales: np.ndarray, grid: Grid, hessian: np.ndarray) -> np.ndarray:
    """``d H d^T`` of each row in float64, by rounding to nearest."""
    codes = round_to_nearest(weights, scales, grid)
    error = weights.astype(np.float64) - grid.dequantize(codes, scales)
    return ((error @ hessian.astype(np.float64)) * error).sum(axis=1)


@pytest.mark.parametrize("bits", [2, 4, 6])
@given(seed=SEEDS, degrees=st.sampled_from([1.5, 3.0, 30.0]))
def test_searches_are_never_worse_than_the_row_maximum(
    bits: int, seed: int, degrees: float
) -> None:
    """By what each minimizes: squares or the Hessian's measure, of rows or of the matrix."""
    rng = np.random.default_rng(seed)
    weights = rng.standard_t(degrees, size=(5, 60)).clip(-1e3, 1e3).astype(np.float32)
    x = rng.normal(size=(200, 60)) * np.exp(rng.normal(size=60)) @ rng.normal(size=(60, 60))
    hessian = (x.T @ x / 200).astype(np.float32)
    unit = np.eye(60, dtype=np.float32)
    diagonal = np.diag(np.diagonal(hessian))
    grid = Grid.symmetric(bits)
    top = row_max_scales(weights, grid)
    found = [
        (percentile_scales(weights, grid, quantiles=PERCENTILES_5), unit),
        (hessian_scales(weights, grid, hessian=hessian), hessian),
        (hessian_scales(weights, grid, hessian=hessian, is_diagonal=True), diagonal),
        (hessian_scales(weights, grid), unit),
    ]
    for scales, metric in found:
        bound = errors(weights, top, grid, metric) * (1 + 1e-4)
        assert (errors(weights, scales, grid, metric) <= bound).all()
    shared = [
        (percentile_scales(weights, grid, quantiles=PERCENTILES_15, is_shared=True), unit),
        (sigma_clip_scales(weights, grid, hessian=hessian), hessian),
    ]
    for scales, metric in shared:
        bound = errors(weights, top, grid, metric).sum() * (1 + 1e-4)
        assert errors(weights, scales, grid, metric).sum() <= bound

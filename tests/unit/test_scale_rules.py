"""Every scale rule: its formula, what it refuses, and weights that have no spread."""

from __future__ import annotations

import numpy as np
import pytest

from flyweight.errors import InvalidArgumentError
from flyweight.quant.clip import min_max_scales, percentile_scales, row_max_scales, sdclip_scales
from flyweight.quant.clip_hessian import SIGMAS, hessian_scales, sigma_clip_scales
from flyweight.quant.clip_levels import THRESHOLD, absmean_scales, threshold_scales
from flyweight.quant.config import QuantConfig, QuantRule
from flyweight.quant.gptq import hessian_error, quantize_matrix, round_to_nearest
from flyweight.quant.grid import Grid
from flyweight.quant.scale_rules import SCALE_RULES, find_scales

COLS = 48


def matrix(rows: int = 12, cols: int = COLS, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_t(4, size=(rows, cols)).astype(np.float32)


def hessian(cols: int = COLS, seed: int = 1) -> np.ndarray:
    """Second moment of correlated inputs of uneven power."""
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(cols, cols)) / np.arange(1, cols + 1)
    x = rng.normal(size=(1024, cols)) @ mix.T
    return (x.T @ x / len(x)).astype(np.float32)


def grid_of(rule: str, *, group_size: int = 0) -> Grid:
    """A grid that the rule is made for."""
    if not SCALE_RULES[rule].is_symmetric:
        return Grid.affine(4, group_size=group_size)
    if SCALE_RULES[rule].max_code == 2:
        return Grid.pentanary(group_size=group_size)
    return Grid.symmetric(4, group_size=group_size)


def scales_of(
    rule: str, weights: np.ndarray, *, group_size: int = 0, h: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray | None]:
    k = 5.0 if SCALE_RULES[rule].takes_k else None
    grid = grid_of(rule, group_size=group_size)
    return find_scales(weights, grid, rule=rule, k=k, hessian=h)


@pytest.mark.parametrize("group_size", [0, 1, 20, 48, 100])
@pytest.mark.parametrize("rule", SCALE_RULES)
def test_shapes_and_dtypes(rule: str, group_size: int) -> None:
    grid = grid_of(rule, group_size=group_size)
    scales, zero_points = scales_of(rule, matrix(), group_size=group_size, h=hessian())
    assert scales.shape == (12, grid.groups(COLS))
    assert scales.dtype == np.float16
    assert (scales > 0).all()
    assert (zero_points is None) == grid.is_symmetric
    if zero_points is not None:
        assert (zero_points.shape, zero_points.dtype) == (scales.shape, scales.dtype)


@pytest.mark.parametrize("rule", sorted(SCALE_RULES.keys() - {"percentile-15", "sigma-clip"}))
def test_the_last_group_may_be_shorter(rule: str) -> None:
    """Each group is as if it were a matrix of its own; two rules choose for the whole matrix."""
    weights = matrix()
    found = scales_of(rule, weights, group_size=20, h=hessian())
    for group, start in enumerate((0, 20, 40)):
        columns = slice(start, start + 20)
        part = np.ascontiguousarray(weights[:, columns])
        alone = scales_of(rule, part, h=np.ascontiguousarray(hessian()[columns, columns]))
        for together, single in zip(found, alone, strict=True):
            if together is not None and single is not None:
                assert np.array_equal(together[:, group], single[:, 0])


@pytest.mark.parametrize("rule", SCALE_RULES)
def test_rows_do_not_depend_on_blocks(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = scales_of(rule, matrix(), h=hessian())
    monkeypatch.setattr("flyweight.quant.groups.BLOCK_ELEMENTS", 5 * COLS)
    for together, apart in zip(whole, scales_of(rule, matrix(), h=hessian()), strict=True):
        assert together is None or np.array_equal(together, apart)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("rule", SCALE_RULES)
def test_weights_that_are_not_finite_are_named(rule: str, bad: float) -> None:
    weights = matrix()
    weights[3, 5] = bad
    with pytest.raises(InvalidArgumentError, match=f"weights has {bad} at row 3, column 5"):
        scales_of(rule, weights, h=hessian())


@pytest.mark.parametrize("rule", SCALE_RULES)
def test_rows_without_spread(rule: str) -> None:
    """Zeros have scale 0 and come back as zeros; a constant row to half a step."""
    weights = matrix()
    weights[2] = 0
    weights[4] = 0.5
    weights[6] = 1e-12
    grid = grid_of(rule)
    scales, zero_points = scales_of(rule, weights, h=hessian())
    assert scales[2] == 0
    assert scales[6] > 0
    codes = quantize_matrix(weights, scales, grid, zero_points=zero_points).codes
    values = grid.dequantize(codes, scales, zero_points)
    assert not values[2].any()
    assert np.abs(values[4] - 0.5).max() <= 0.501 * scales[4]
    assert np.abs(values[6]).max() < 1e-6
    nothing = scales_of(rule, np.zeros_like(weights), h=hessian())[0]
    assert not nothing.any()


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 0)])
@pytest.mark.parametrize("rule", SCALE_RULES)
def test_empty_matrices(rule: str, shape: tuple[int, int]) -> None:
    scales, _ = scales_of(rule, np.zeros(shape, np.float32))
    assert scales.shape == (shape[0], grid_of(rule).groups(shape[1]))


@pytest.mark.parametrize("rule", SCALE_RULES)
def test_scales_beyond_float16_are_refused(rule: str) -> None:
    with pytest.raises(InvalidArgumentError, match="row 0 needs a scale of .* float16 can hold"):
        scales_of(rule, np.full((2, 8), 1e9, dtype=np.float32))


@pytest.mark.parametrize("rule", SCALE_RULES)
def test_grids_of_another_kind_are_refused(rule: str) -> None:
    other = Grid.affine(4) if SCALE_RULES[rule].is_symmetric else Grid.symmetric(4)
    with pytest.raises(InvalidArgumentError, match="this scale rule needs"):
        find_scales(matrix(), other, rule=rule, k=5.0 if SCALE_RULES[rule].takes_k else None)


def test_names_and_parameters() -> None:
    with pytest.raises(InvalidArgumentError, match="no scale rule 'best'; there are row-max"):
        find_scales(matrix(), Grid.symmetric(4), rule="best")
    with pytest.raises(InvalidArgumentError, match="'sdclip' needs a k"):
        find_scales(matrix(), Grid.symmetric(4), rule="sdclip")
    with pytest.raises(InvalidArgumentError, match="'row-max' has no parameter k"):
        find_scales(matrix(), Grid.symmetric(4), rule="row-max", k=3.0)


@pytest.mark.parametrize("rule", ["sigma-clip", "hessian", "hessian-diagonal"])
def test_hessians_are_checked(rule: str) -> None:
    with pytest.raises(InvalidArgumentError, match=r"needs a \(48, 48\) Hessian, got \(47, 47\)"):
        scales_of(rule, matrix(), h=np.eye(47, dtype=np.float32))
    h = hessian()
    h[5, 7] = np.nan
    with pytest.raises(InvalidArgumentError, match="hessian has nan at row 5, column 7"):
        scales_of(rule, matrix(), h=h)


def test_percentiles_lie_between_magnitudes() -> None:
    weights = np.array([[0, 1, -2, 3, -10]], dtype=np.float32)
    scales = percentile_scales(weights, Grid.symmetric(2), quantiles=[0.875])
    assert scales[0, 0] == np.float16(6.5)  # half way from 3 to 10
    for wrong in ([], [1.5], [-0.1], [np.nan]):
        with pytest.raises(InvalidArgumentError, match="quantiles must be"):
            percentile_scales(weights, Grid.symmetric(2), quantiles=wrong)


def test_shared_percentiles_choose_once() -> None:
    """The outlier's row alone would choose otherwise."""
    weights = np.ones((3, 1000), dtype=np.float32)
    weights *= np.linspace(0.5, 1, 1000, dtype=np.float32)
    weights[0, 7] = 30
    quantiles = [1.0, 0.9]
    grid = Grid.symmetric(4)
    shared = percentile_scales(weights, grid, quantiles=quantiles, is_shared=True)
    single = percentile_scales(weights, grid, quantiles=quantiles)
    options = [percentile_scales(weights, grid, quantiles=[each]) for each in quantiles]
    assert any(np.array_equal(shared, option) for option in options)
    assert not any(np.array_equal(single, option) for option in options)


def test_sigma_clip_takes_the_best_for_the_matrix() -> None:
    weights, h, grid = matrix(), hessian(), Grid.symmetric(4)
    options = [sigma_clip_scales(weights, grid, hessian=h, sigmas=[sigma]) for sigma in SIGMAS]
    errors = []
    for scales in options:
        codes = round_to_nearest(weights, scales, grid)
        errors.append(hessian_error(weights, grid.dequantize(codes, scales), h))
    chosen = sigma_clip_scales(weights, grid, hessian=h)
    assert np.array_equal(chosen, options[int(np.argmin(errors))])
    clipped = np.clip(weights, *np.array([-2, 2]) * np.sqrt((weights**2).mean()))
    assert options[-1] == pytest.approx(row_max_scales(clipped, grid), rel=1e-3)


def test_the_hessian_says_where_clipping_hurts() -> None:
    """An outlier on an input of no power is clipped, one on an input of much power is kept."""
    weights = np.random.default_rng(0).normal(size=(2, 64)).astype(np.float32)
    weights[:, 0] = 12
    power = np.ones(64, dtype=np.float32)
    for is_diagonal in (False, True):
        power[0] = 1e-6
        weak = hessian_scales(
            weights, Grid.symmetric(4), hessian=np.diag(power), is_diagonal=is_diagonal
        )
        power[0] = 1e6
        strong = hessian_scales(
            weights, Grid.symmetric(4), hessian=np.diag(power), is_diagonal=is_diagonal
        )
        assert (weak < 0.5 * strong).all()
    with pytest.raises(InvalidArgumentError, match="shrinks must be"):
        hessian_scales(weights, Grid.symmetric(4), shrinks=[1.0, 0.0])


def test_ternary_threshold_by_hand() -> None:
    """Mean 1.2, so cut at 0.84; those above it are 1, 2 and 2.4."""
    weights = np.array([[-1, 2, 0.1, -2.4, 0.5]], dtype=np.float32)
    assert threshold_scales(weights, Grid.ternary())[0, 0] == np.float16((1 + 2 + 2.4) / 3)
    # Pentanary: 2 and 2.4 are above 1.68, and count twice.
    expected = (1 + 2 * 2 + 2 * 2.4) / (1 + 4 + 4)
    assert threshold_scales(weights, Grid.pentanary())[0, 0] == np.float16(expected)
    assert absmean_scales(weights, Grid.ternary())[0, 0] == np.float16(1.2)
    for rule in (threshold_scales, absmean_scales):
        with pytest.raises(InvalidArgumentError, match=r"needs the codes -1\.\.1 or -2\.\.2"):
            rule(weights, Grid.symmetric(4))


def test_thresholds_of_a_gaussian_are_those_of_the_pull_request() -> None:
    """It has shares of 0.423, 0.312 and 0.264 of the magnitudes 0, 1 and 2."""
    weights = np.random.default_rng(3).normal(size=(1, 1 << 18)).astype(np.float32)
    unit = THRESHOLD * np.abs(weights).mean()
    codes = np.floor(np.abs(weights) / unit).clip(0, 2)
    shares = np.bincount(codes.astype(int).ravel()) / codes.size
    assert shares == pytest.approx([0.423, 0.312, 0.264], abs=0.003)
    least_squares = (np.abs(weights) * codes).sum() / (codes**2).sum()
    found = threshold_scales(weights, Grid.pentanary())
    assert float(found[0, 0]) == pytest.approx(least_squares, rel=1e-3)


def test_min_max_maps_the_range_to_all_codes() -> None:
    weights = np.array([[-1, 0, 3], [2, 4, 8], [-2, -1, -8], [0, 0, 0]], dtype=np.float32)
    grid = Grid.affine(2)
    scales, zero_points = min_max_scales(weights, grid)
    assert scales.ravel().tolist() == [np.float16(4 / 3), np.float16(8 / 3), np.float16(8 / 3), 0]
    assert zero_points.ravel().tolist() == [-1, -2, 1, 0]
    codes = round_to_nearest(weights, scales, grid, zero_points)
    assert (codes.min(), codes.max()) == (-2, 1)
    assert grid.dequantize(codes, scales, zero_points)[0, 1] == 0


def test_affine_grids_need_less_where_weights_lie_to_one_side() -> None:
    weights = np.abs(matrix(cols=256))
    symmetric, affine = Grid.symmetric(4), Grid.affine(4)
    scales = row_max_scales(weights, symmetric)
    codes = round_to_nearest(weights, scales, symmetric)
    one = hessian_error(weights, symmetric.dequantize(codes, scales), None)
    scales, points = min_max_scales(weights, affine)
    codes = round_to_nearest(weights, scales, affine, points)
    other = hessian_error(weights, affine.dequantize(codes, scales, points), None)
    assert other < 0.3 * one


@pytest.mark.parametrize("rule", SCALE_RULES)
@pytest.mark.parametrize("group_size", [0, 20])
def test_gptq_takes_every_grid_in_every_order(rule: str, group_size: int) -> None:
    weights, h = matrix(rows=24), hessian()
    h[[3, 40], :] = h[:, [3, 40]] = 0
    grid = grid_of(rule, group_size=group_size)
    scales, points = scales_of(rule, weights, group_size=group_size, h=h)
    rounded = round_to_nearest(weights, scales, grid, points)
    plain = hessian_error(weights, grid.dequantize(rounded, scales, points), h)
    for act_order in (False, True):
        result = quantize_matrix(
            weights, scales, grid, hessian=h, zero_points=points, act_order=act_order
        )
        values = grid.dequantize(result.codes, scales, points)
        assert not values[:, [3, 40]].any()
        assert grid.lo <= result.codes.min() <= result.codes.max() <= grid.hi
        assert hessian_error(weights, values, h) < plain
        unit = quantize_matrix(
            weights,
            scales,
            grid,
            hessian=np.eye(COLS, dtype=np.float32),
            zero_points=points,
            act_order=act_order,
        )
        assert np.array_equal(unit.codes, rounded)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "rule 'w': takes either bits or levels"),
        ({"bits": 4, "levels": "ternary"}, "takes either bits or levels"),
        ({"bits": 9, "k": 5.0}, "rule 'w': bits must be 2 to 8, got 9"),
        ({"bits": 4}, "scale rule 'sdclip' needs k"),
        ({"bits": 4, "k": 0.0}, "k must be positive, got 0.0"),
        ({"bits": 4, "scale": "best"}, "no scale rule 'best'; there are row-max"),
        ({"bits": 4, "scale": "row-max", "k": 1.0}, "'row-max' has no k, got 1.0"),
        ({"bits": 4, "scale": "min-max"}, "'min-max' is for affine grids"),
        ({"bits": 4, "scale": "row-max", "is_symmetric": False}, "'row-max' is for symmetric"),
        ({"levels": "ternary", "scale": "min-max", "is_symmetric": False}, "ternary grids are"),
        ({"bits": 4, "scale": "absmean"}, "'absmean' is for codes up to 2, got 7"),
        ({"bits": 4, "k": 5.0, "group_size": -1}, "group_size must be 0 or more"),
    ],
)
def test_rules_of_recipes_are_checked(changes: dict, message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        QuantRule(match="w", **changes)


@pytest.mark.parametrize(
    ("rule", "grid"),
    [
        (QuantRule(match="w", bits=6, k=12.85), Grid(lo=-31, hi=31)),
        (QuantRule(match="w", bits=2, scale="absmean"), Grid(lo=-1, hi=1)),
        (QuantRule(match="w", levels="ternary", scale="threshold"), Grid(lo=-1, hi=1)),
        (
            QuantRule(match="w", levels="pentanary", scale="hessian", group_size=64),
            Grid(lo=-2, hi=2, group_size=64),
        ),
        (
            QuantRule(match="w", bits=4, scale="min-max", is_symmetric=False),
            Grid(lo=-8, hi=7, is_symmetric=False),
        ),
    ],
)
def test_grids_of_rules(rule: QuantRule, grid: Grid) -> None:
    assert rule.build_grid() == grid


def test_uniform_configs_are_sdclip() -> None:
    rule = QuantConfig.uniform(6).rules[0]
    assert (rule.bits, rule.scale, rule.k) == (6, "sdclip", 12.85)
    weights = matrix()
    found, _ = find_scales(weights, rule.build_grid(), rule=rule.scale, k=rule.k)
    assert np.array_equal(found, sdclip_scales(weights, Grid.symmetric(6), k=12.85))

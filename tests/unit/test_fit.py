"""``fit``: budgets met from below, steps of equal slope, damage that means what it says."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

import flyweight
from flyweight.errors import BudgetExceededError, InvalidArgumentError
from flyweight.fitting import fit
from flyweight.quant.equal_slope import (
    curvature_of,
    damage_by_row,
    equal_slope_steps,
    quantize_at,
)
from flyweight.quant.grid import QuantizedTensor
from flyweight.typing import AnyArray

Matrix = NDArray[np.float32]


def model(seed: int = 0) -> dict[str, Matrix]:
    rng = np.random.default_rng(seed)
    tensors: dict[str, Matrix] = {
        f"blocks.{layer}.weight": (
            rng.normal(size=(96, 160)) * rng.gamma(2.0, size=(96, 1)) / 20
        ).astype(np.float32)
        for layer in range(6)
    }
    tensors["bias"] = rng.normal(size=96).astype(np.float32)
    tensors["table"] = rng.standard_t(4, size=(300, 64)).astype(np.float32)
    return tensors


def moment(cols: int, seed: int = 1) -> Matrix:
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(4 * cols, cols)) @ rng.normal(size=(cols, cols)) / cols**0.5
    inputs *= np.exp(rng.normal(size=cols))
    return (inputs.T @ inputs / len(inputs)).astype(np.float32)


def calibration(tensors: dict[str, Matrix]) -> tuple[dict[str, Matrix], dict[str, Matrix]]:
    rng = np.random.default_rng(2)
    names = [name for name, array in tensors.items() if array.ndim == 2]
    hessians = {name: moment(tensors[name].shape[1]) for name in names}
    rows = {name: rng.gamma(1.0, size=len(tensors[name])).astype(np.float32) for name in names}
    return hessians, rows


@pytest.mark.parametrize("budget", [12_000, 24_000, 40_000, 60_000])
@pytest.mark.parametrize("calibrated", ["weights", "hessians", "loss"])
def test_lands_at_most_a_thousandth_below(budget: int, calibrated: str) -> None:
    tensors = model()
    hessians, rows = calibration(tensors)
    found = fit(
        tensors,
        budget,
        hessians=None if calibrated == "weights" else hessians,
        sensitivities=rows if calibrated == "loss" else None,
    )
    assert 0.999 * budget <= len(found.data) <= budget
    assert found.objective == ("loss" if calibrated == "loss" else "distortion")
    back = flyweight.unpack(found.data)
    assert {name: array.shape for name, array in back.items()} == {
        name: array.shape for name, array in tensors.items()
    }
    for tensor in found.tensors:
        delta = (back[tensor.name] - tensors[tensor.name]).astype(np.float64)
        power = np.square(tensors[tensor.name], dtype=np.float64).sum()
        if tensor.method != "float":
            assert np.square(delta).sum() / power == pytest.approx(tensor.relative_error, rel=1e-5)
        if calibrated == "loss" and tensor.method == "gptq":
            curved = rows[tensor.name] @ np.einsum(
                "rc,cd,rd->r", delta, hessians[tensor.name].astype(np.float64), delta
            )
            # Rows that calibration hardly saw are lifted, so damage is never less.
            assert curved / 2 <= tensor.damage * (1 + 1e-4)
            assert tensor.damage <= curved / 2 * 1.05


def test_more_bytes_do_less_damage_and_the_margin_is_the_slope() -> None:
    tensors = model()
    hessians, rows = calibration(tensors)
    found = [
        fit(tensors, budget, hessians=hessians, sensitivities=rows)
        for budget in (30_000, 30_500, 50_000)
    ]
    assert found[0].damage > found[1].damage > found[2].damage
    gained = (found[0].damage - found[1].damage) / 0.5
    assert gained == pytest.approx(found[0].damage_per_kilobyte, rel=0.25)


def test_equal_slope_beats_equal_bits() -> None:
    tensors = model()
    hessians, rows = calibration(tensors)
    found = fit(tensors, 40_000, hessians=hessians, sensitivities=rows)
    uniform = flyweight.pack(tensors, bits=4, hessians=hessians)
    same_size = fit(tensors, len(uniform), hessians=hessians, sensitivities=rows)
    back = flyweight.unpack(uniform)
    damage = 0.0
    for name, hessian in hessians.items():
        delta = (back[name] - tensors[name]).astype(np.float64)
        damage += 0.5 * rows[name] @ np.einsum("rc,cd,rd->r", delta, hessian, delta)
    assert same_size.damage < 0.8 * damage
    assert found.damage > 0


def test_the_same_call_gives_the_same_bytes() -> None:
    tensors = model()
    hessians, rows = calibration(tensors)
    files = {
        fit(tensors, 30_000, hessians=hessians, sensitivities=rows, threads=threads).data
        for threads in (1, 2, 1)
    }
    assert len(files) == 1


def test_a_budget_too_small_names_the_smallest_file() -> None:
    tensors = model()
    with pytest.raises(BudgetExceededError, match=r"the smallest file .* has (\d+)") as caught:
        fit(tensors, 300)
    smallest = int(str(caught.value).split("has ")[1].replace(",", ""))
    found = fit(tensors, smallest)
    assert len(found.data) == smallest
    assert not flyweight.unpack(found.data)["blocks.0.weight"].any()
    with pytest.raises(BudgetExceededError):
        fit(tensors, smallest - 1)


def test_a_budget_above_lossless_keeps_every_bit() -> None:
    tensors: dict[str, AnyArray] = {
        name: array.astype(ml_dtypes.bfloat16) for name, array in model().items()
    }
    everything = fit(tensors, 10_000_000)
    assert everything.damage == 0
    assert {tensor.method for tensor in everything.tensors} == {"lossless"}
    back = flyweight.unpack(everything.data)
    assert all((back[name] == array).all() for name, array in tensors.items())
    partly = fit(tensors, len(everything.data) - 1)
    methods = {tensor.method for tensor in partly.tensors}
    assert methods > {"lossless"}
    assert len(everything.data) * 0.8 < len(partly.data) < len(everything.data)


def test_tensors_without_calibration_get_a_fixed_grid_in_a_calibrated_model() -> None:
    tensors = model()
    hessians, rows = calibration(tensors)
    del hessians["table"]
    found = fit(tensors, 50_000, hessians=hessians, sensitivities=rows)
    methods = {tensor.name: (tensor.method, tensor.damage) for tensor in found.tensors}
    assert methods["table"] == ("fixed", 0.0)
    assert 0.999 * 50_000 <= len(found.data) <= 50_000


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t, h, s: t["table"].__setitem__((3, 4), np.nan), "'table': nan at row 3, column 4"),
        (lambda t, h, s: h.update(nothing=np.eye(3)), "a Hessian for 'nothing'"),
        (lambda t, h, s: s.update(nothing=np.ones(3)), "a sensitivity for 'nothing'"),
        (lambda t, h, s: h.update(table=np.eye(3, dtype=np.float32)), "'table': .*64 columns"),
        (lambda t, h, s: h["table"].__setitem__((0, 0), np.inf), "'table': hessian has inf"),
        (lambda t, h, s: h["table"].__setitem__((5, 5), -1), "'table': .*-1.* column 5"),
        (lambda t, h, s: s.update(table=np.ones(4)), r"'table': .*\(4,\).* 300 rows"),
        (lambda t, h, s: s["table"].__setitem__(7, -1), "'table': .*-1.0 at row 7"),
    ],
)
def test_bad_input_is_named(change, message: str) -> None:
    tensors = model()
    hessians, rows = calibration(tensors)
    change(tensors, hessians, rows)
    with pytest.raises(InvalidArgumentError, match=message):
        fit(tensors, 50_000, hessians=hessians, sensitivities=rows)


def test_dead_columns_and_singular_moments_are_defined() -> None:
    rng = np.random.default_rng(4)
    weights = rng.normal(size=(64, 96)).astype(np.float32)
    inputs = rng.normal(size=(20, 96)).astype(np.float32)  # rank 20 of 96
    inputs[:, [3, 50]] = 0
    tensor, damage = quantize_at(
        weights, curvature_of((64, 96), hessian=inputs.T @ inputs / 20), 0.02
    )
    assert not tensor.codes[:, [3, 50]].any()
    assert np.isfinite(damage).all()
    zeros, damage = quantize_at(
        weights, curvature_of((64, 96), hessian=np.zeros((96, 96), np.float32)), 0.02
    )
    assert isinstance(zeros, QuantizedTensor)
    error = abs(zeros.dequantize() - weights)
    assert (error <= 0.501 * zeros.scales.astype(np.float32)).all()


def test_row_steps_follow_sensitivity_and_column_steps_the_residual_power() -> None:
    rng = np.random.default_rng(5)
    weights = rng.normal(size=(128, 64)).astype(np.float32)
    sensitivity = np.repeat([1.0, 16.0], 64).astype(np.float32)
    powers = np.repeat([1.0, 64.0], 32).astype(np.float32)
    curvature = curvature_of(
        weights.shape, hessian=np.diag(powers), sensitivity=sensitivity, damp_ratio=0.0
    )
    steps = equal_slope_steps(weights, curvature, 2.0)
    assert steps.columns is not None
    assert steps.rows[0] / steps.rows[-1] == pytest.approx(4.0)
    assert steps.columns[0] / steps.columns[-1] == pytest.approx(8.0)
    # Identity moments and equal rows: one step for all, whatever the rows hold.
    rows = weights * np.linspace(0.2, 1, 128, dtype=np.float32)[:, None]
    flat = equal_slope_steps(rows, curvature_of((128, 64)), 0.1)
    assert np.unique(flat.rows).size == 1
    assert flat.columns is None


def test_damage_follows_the_square_of_the_slope() -> None:
    rng = np.random.default_rng(6)
    weights = rng.normal(size=(256, 128)).astype(np.float32)
    hessian = np.eye(128, dtype=np.float32) + np.float32(0.5)
    curvature = curvature_of(weights.shape, hessian=hessian)
    fine, coarse = (quantize_at(weights, curvature, slope)[1].sum() for slope in (0.1, 0.2))
    assert coarse / fine == pytest.approx(4.0, rel=0.1)
    # As high-resolution theory has it: each weight costs slope^2 / 12, halved.
    assert fine == pytest.approx(0.5 * weights.size * 0.1**2 / 12, rel=0.15)
    assert (damage_by_row(weights, weights, curvature) == 0).all()

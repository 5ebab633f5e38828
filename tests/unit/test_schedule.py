"""The schedule: budgets by steps and by the clock, rise and fall of the learning rate."""

from __future__ import annotations

import math
from typing import Any

import pytest

from flyweight.errors import InvalidArgumentError
from flyweight.train.config import OptimConfig, QatConfig, TrainConfig
from flyweight.train.schedule import (
    budget_spent,
    learning_rate_scale,
    linear_ramp,
    rounding_hardness,
    steps_left,
)


@pytest.mark.parametrize(
    ("step", "seconds", "max_steps", "max_seconds", "expected"),
    [
        (25, 999.0, 100, 0.0, 0.25),
        (25, 30.0, 0, 120.0, 0.25),
        (25, 90.0, 100, 100.0, 0.9),
        (95, 90.0, 100, 100.0, 0.95),
        (100, 0.0, 100, 0.0, 1.0),
        (7, 7.0, 0, 0.0, 0.0),
    ],
)
def test_nearer_limit_counts(
    step: int, seconds: float, max_steps: int, max_seconds: float, expected: float
) -> None:
    spent = budget_spent(step, seconds, max_steps=max_steps, max_seconds=max_seconds)
    assert spent == pytest.approx(expected)


@pytest.mark.parametrize(
    ("step", "seconds", "max_steps", "max_seconds", "expected"),
    [
        (25, 999.0, 100, 0.0, 75),
        (20, 10.0, 0, 60.0, 100),  # half a second each, 50 seconds left
        (20, 10.0, 50, 60.0, 30),
        (20, 50.0, 100, 60.0, 4),
        (20, 61.0, 0, 60.0, -20 / 61),
        (0, 0.0, 0, 60.0, math.inf),
        (7, 7.0, 0, 0.0, math.inf),
    ],
)
def test_steps_left_by_their_mean_duration(
    step: int, seconds: float, max_steps: int, max_seconds: float, expected: float
) -> None:
    left = steps_left(step, seconds, max_steps=max_steps, max_seconds=max_seconds)
    assert left == pytest.approx(expected)


def scale_of(step: int, spent: float, left: float = math.inf, **changes: Any) -> float:
    options = {"warmup_steps": 0, "warmdown_fraction": 0.0, "warmdown_steps": 0, "floor": 0.0}
    return learning_rate_scale(step, spent, left, **(options | changes))


def test_learning_rate_rises_by_steps_and_falls_by_budget() -> None:
    def scale(step: int, spent: float) -> float:
        return scale_of(step, spent, warmup_steps=10, warmdown_fraction=0.4)

    assert [scale(step, 0.0) for step in (0, 4, 9, 10)] == pytest.approx([0.1, 0.5, 1.0, 1.0])
    assert [scale(99, s) for s in (0.5, 0.6, 0.8, 1.0, 1.2)] == pytest.approx([1, 1, 0.5, 0, 0])
    assert scale(0, 0.99) == pytest.approx(0.025)  # the smaller of rise and fall


def test_learning_rate_of_pull_request_1123() -> None:
    def scale(step: int) -> float:
        return scale_of(step, step / 10_000, warmup_steps=200, warmdown_fraction=0.175)

    assert [scale(s) for s in (0, 199, 8250)] == pytest.approx([1 / 200, 1, 1])
    assert [scale(s) for s in (9699, 9999)] == pytest.approx([301 / 1750, 1 / 1750])


def test_learning_rate_falls_over_steps_of_the_mean_duration() -> None:
    def published(step: int, elapsed: float) -> float:
        """Pull requests #578, #585 and #1683, in seconds."""
        warmdown = 3500 * elapsed / max(step, 1)
        remaining = max(600 - elapsed, 0)
        return remaining / warmdown if remaining <= warmdown else 1.0

    for step, elapsed in ((0, 0.0), (1000, 85.8), (2640, 258.0), (4000, 391.0), (6140, 600.2)):
        left = steps_left(step, elapsed, max_steps=0, max_seconds=600)
        spent = elapsed / 600
        # where the share is set as well, the steps count
        scale = scale_of(step, spent, left, warmdown_steps=3500, warmdown_fraction=0.5)
        assert scale == pytest.approx(published(step, elapsed))


def test_learning_rate_stops_at_the_floor_but_rises_from_zero() -> None:
    def scale(step: int, spent: float) -> float:
        return scale_of(step, spent, warmup_steps=100, warmdown_fraction=0.5, floor=0.1)

    assert scale(0, 0.0) == pytest.approx(0.01)
    assert [scale(200, s) for s in (0.5, 0.75, 0.96, 1.0)] == pytest.approx([1, 0.5, 0.1, 0.1])


def test_learning_rate_without_rise_and_fall_is_constant() -> None:
    for spent in (0.0, 0.5, 0.999):
        assert scale_of(0, spent) == 1.0


def test_linear_ramp() -> None:
    values = [linear_ramp(s, steps=4, start=0.8, end=1.0) for s in (0, 1, 4, 100)]
    assert values == pytest.approx([0.8, 0.85, 1.0, 1.0])
    assert linear_ramp(0, steps=0, start=0.8, end=1.0) == 1.0


def test_rounding_hardens_from_the_start_on() -> None:
    def hardness(spent: float, anneal: float | None) -> float:
        return rounding_hardness(spent, start_fraction=0.5, anneal_fraction=anneal)

    assert [hardness(s, None) for s in (0.0, 0.499, 0.5, 1.0)] == [0, 0, 1, 1]
    assert [hardness(s, 0.25) for s in (0.4, 0.5, 0.625, 0.75, 1.0)] == [0, 0, 0.5, 1, 1]
    assert rounding_hardness(0.0, start_fraction=0.0, anneal_fraction=None) == 1.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_steps": 0}, "no budget"),
        ({"batch_sequences": 0}, "batch_sequences=0"),
        ({"accumulation_steps": 3}, "not a multiple of accumulation_steps=3"),
        ({"warmdown_fraction": 1.5}, "warmdown_fraction=1.5"),
        ({"warmdown_steps": -1}, "warmdown_steps=-1"),
        ({"lr_floor": 1.1}, "lr_floor=1.1"),
        ({"recur_start_fraction": 1.0}, "recur_start_fraction=1.0"),
        ({"short_fraction": 0.5}, "short_seq_len=0 and short_fraction=0.5: expected both"),
        ({"short_seq_len": 512}, "short_seq_len=512 and short_fraction=0.0: expected both"),
        ({"short_seq_len": 512, "short_fraction": 1.0}, "short_fraction=1.0, expected from 0"),
        ({"ema_decay": -0.1}, "ema_decay=-0.1"),
        ({"grad_clip": 0.0}, "grad_clip=0.0"),
        ({"device": "tpu"}, "device='tpu'"),
        ({"max_seconds": -1.0}, "max_seconds=-1.0"),
    ],
)
def test_impossible_training_is_refused(change: dict[str, Any], message: str) -> None:
    values: dict[str, Any] = {"batch_sequences": 4, "max_steps": 10, **change}
    with pytest.raises(InvalidArgumentError, match=message):
        TrainConfig(**values)


@pytest.mark.parametrize(
    ("name", "value"), [("matrix_lr", 0.0), ("beta2", 1.0), ("scalar_weight_decay", -1.0)]
)
def test_impossible_optimizers_are_refused(name: str, value: float) -> None:
    with pytest.raises(InvalidArgumentError, match=f"{name}={value}"):
        OptimConfig(**{name: value})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"method": "hard"}, "method='hard'"),
        ({"start_fraction": 1.0}, "start_fraction=1.0"),
        ({"start_fraction": -0.1}, "start_fraction=-0.1"),
        ({"anneal_fraction": 0.1}, "ste has none"),
        ({"method": "soft-round"}, "soft-round needs it"),
        ({"method": "soft-round", "anneal_fraction": 0.0}, "expected above 0, to 1"),
        (
            {"method": "soft-round", "start_fraction": 0.5, "anneal_fraction": 0.6},
            "anneal_fraction=0.6, expected above 0, to 0.5",
        ),
    ],
)
def test_impossible_rounding_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        QatConfig(**values)

"""Learning rates and momentum as pure functions of how much of the budget is spent."""

from __future__ import annotations

import math

__all__ = [
    "budget_spent",
    "learning_rate_scale",
    "linear_ramp",
    "rounding_hardness",
    "short_of_warmdown",
    "steps_left",
]


def budget_spent(step: int, seconds: float, *, max_steps: int, max_seconds: float) -> float:
    """Share of the budget that is gone after ``step`` steps and ``seconds`` of training.

    Parameters
    ----------
    max_steps, max_seconds : the limits; 0 is no limit

    Returns
    -------
    float from 0; the run ends at 1. With two limits the nearer one counts, with none it is 0.
    """
    by_steps = step / max_steps if max_steps else 0.0
    by_seconds = seconds / max_seconds if max_seconds else 0.0
    return max(by_steps, by_seconds)


def steps_left(step: int, seconds: float, *, max_steps: int, max_seconds: float) -> float:
    """Steps until the budget is spent, by the mean duration of the ones so far.

    Parameters
    ----------
    max_steps, max_seconds : the limits; 0 is no limit

    Returns
    -------
    float; with two limits the nearer one counts. It is infinite where there is none, and at step 0,
    where no duration is known yet.
    """
    by_steps = max_steps - step if max_steps else math.inf
    by_seconds = (max_seconds - seconds) * step / seconds if max_seconds and seconds else math.inf
    return min(by_steps, by_seconds)


def learning_rate_scale(
    step: int,
    spent: float,
    left: float,
    *,
    warmup_steps: int,
    warmdown_fraction: float,
    warmdown_steps: int,
    floor: float,
) -> float:
    """Factor on every learning rate: a linear rise by steps, a linear fall by budget to a floor.

    Parameters
    ----------
    step : steps done so far; the first step is taken at ``1 / warmup_steps``
    spent : share of the budget that is gone, from :func:`budget_spent`
    left : steps until its end, from :func:`steps_left`
    warmdown_fraction : the fall starts at ``1 - warmdown_fraction``, if it is not by steps
    warmdown_steps : the fall starts when as many are left; 0 goes by ``warmdown_fraction``
    floor : the least that the fall leaves

    References
    ----------
    Pull requests of openai/parameter-golf: #1539 falls over a share of the wall clock; #578, #585
    and #1683 over 3500 steps of the mean duration, ``remaining / (3500 * elapsed / step)``.
    """
    rise = (step + 1) / warmup_steps if warmup_steps else 1.0
    if warmdown_steps:
        fall = left / warmdown_steps
    else:
        fall = (1.0 - spent) / warmdown_fraction if warmdown_fraction else 1.0
    return max(0.0, min(1.0, rise, max(floor, fall)))


def short_of_warmdown(steps: float, warmdown_steps: int) -> str:
    """What to say of a run of fewer steps than its warm-down, as on fewer GPUs than it is for."""
    return (
        f"this run has about {steps:.0f} steps, its warm-down warmdown_steps={warmdown_steps}: "
        f"learning rates stay below {steps / warmdown_steps:.0%} of the full ones; a recipe for "
        "fewer steps sets it lower, or warmdown_fraction instead"
    )


def linear_ramp(step: int, *, steps: int, start: float, end: float) -> float:
    """``start`` at step 0, ``end`` from ``steps`` on, linear between."""
    share = min(1.0, step / steps) if steps else 1.0
    return start + share * (end - start)


def rounding_hardness(
    spent: float, *, start_fraction: float, anneal_fraction: float | None
) -> float:
    """How hard quantization-aware training rounds: 0 before its start, 1 at its end.

    Parameters
    ----------
    spent : share of the budget that is gone, from :func:`budget_spent`
    anneal_fraction : share of the budget over which it rises linearly; None is at once
    """
    if spent < start_fraction:
        return 0.0
    if anneal_fraction is None:
        return 1.0
    return min(1.0, (spent - start_fraction) / anneal_fraction)

"""Learning rates and momentum as pure functions of how much of the budget is spent."""

from __future__ import annotations

__all__ = ["budget_spent", "learning_rate_scale", "linear_ramp", "rounding_hardness"]


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


def learning_rate_scale(
    step: int, spent: float, *, warmup_steps: int, warmdown_fraction: float
) -> float:
    """Factor on every learning rate: a linear rise by steps, a linear fall to 0 by budget.

    Parameters
    ----------
    step : steps done so far; the first step is taken at ``1 / warmup_steps``
    spent : share of the budget that is gone, from :func:`budget_spent`
    warmdown_fraction : the fall starts at ``1 - warmdown_fraction``

    References
    ----------
    The wall-clock form is that of pull request #1539 of openai/parameter-golf.
    """
    rise = (step + 1) / warmup_steps if warmup_steps else 1.0
    fall = (1.0 - spent) / warmdown_fraction if warmdown_fraction else 1.0
    return max(0.0, min(1.0, rise, fall))


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

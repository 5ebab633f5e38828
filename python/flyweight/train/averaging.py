"""Averages over the weights of many steps: what a run exports in the place of its last weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from flyweight.train.config import TrainConfig

__all__ = ["Average", "Ema", "Hma", "Last", "Swa", "new_average", "no_snapshot"]

Weights = Mapping[str, Tensor]
"""By parameter name. What an average keeps is float32, on the same device."""


class Average(Protocol):
    """Takes note of the weights after each step."""

    def update(self, *, step: int, lr_scale: float) -> None:
        """Take in the weights as they are.

        Parameters
        ----------
        step : steps done, from 1
        lr_scale : factor on the learning rates in the last of them
        """
        ...

    def weights(self) -> dict[str, Tensor]:
        """What to export, by parameter name."""
        ...

    def source(self) -> str:
        """What :meth:`weights` gives: ``ema``, ``swa``, ``hma``, or ``last`` for no average."""
        ...

    def state(self) -> dict[str, Tensor]:
        """All that it keeps, to be saved, and filled in place to resume."""
        ...


class Last:
    """No average: the weights as they are."""

    def __init__(self, weights: Weights) -> None:
        self._weights = dict(weights)

    def update(self, *, step: int, lr_scale: float) -> None:
        pass

    def weights(self) -> dict[str, Tensor]:
        return {name: weight.detach() for name, weight in self._weights.items()}

    def source(self) -> str:
        return "last"

    def state(self) -> dict[str, Tensor]:
        return {}


class Ema(Last):
    """Exponential moving average, ``e = decay e + (1 - decay) w`` after each step.

    Notes
    -----
    In step n, from 1, the decay is ``n / (9 + n)`` where that is less, or the average would
    remember the initial weights of a short run.
    """

    def __init__(self, weights: Weights, decay: float) -> None:
        super().__init__(weights)
        self._decay = decay
        self._average = _copies(weights)

    def update(self, *, step: int, lr_scale: float) -> None:
        decay = min(self._decay, step / (9 + step))
        torch._foreach_lerp_(self._average, _values(self._weights), 1 - decay)

    def weights(self) -> dict[str, Tensor]:
        return dict(zip(self._weights, self._average, strict=True))

    def source(self) -> str:
        return "ema"

    def state(self) -> dict[str, Tensor]:
        return self.weights()


class Swa(Last):
    """Mean of snapshots from the end of the run; the last weights where there is none.

    Parameters
    ----------
    every : steps between snapshots
    below : they are taken while the learning rates are below this share of the full ones
    after : steps of the warm-up, whose low learning rates do not count

    References
    ----------
    Izmailov et al., arXiv:1803.05407; pull request #1123 of openai/parameter-golf.
    """

    def __init__(self, weights: Weights, every: int, below: float, after: int = 0) -> None:
        super().__init__(weights)
        self._every = every
        self._below = below
        self._after = after
        self._mean = [torch.zeros_like(copy) for copy in _copies(weights)]
        self._count = torch.zeros((), dtype=torch.int64)

    def update(self, *, step: int, lr_scale: float) -> None:
        if step <= self._after or step % self._every or lr_scale >= self._below:
            return
        self._count += 1
        torch._foreach_lerp_(self._mean, _values(self._weights), 1 / int(self._count))

    def weights(self) -> dict[str, Tensor]:
        if not self._count:
            return super().weights()
        return dict(zip(self._weights, self._mean, strict=True))

    def source(self) -> str:
        return "swa" if self._count else "last"

    def state(self) -> dict[str, Tensor]:
        return {**dict(zip(self._weights, self._mean, strict=True)), "snapshots": self._count}


class Hma(Last):
    """Hull moving average: a fast and a slow average, extrapolated, then smoothed.

    Parameters
    ----------
    decay : of the slow average

    Notes
    -----
    With ``1 - decay = 1 / n``: decays ``1 - 2 / n`` (fast), ``1 - 1 / n`` (slow), and
    ``1 - 1 / sqrt(n)`` for the average of ``2 fast - slow``. All start at the initial weights.

    References
    ----------
    Pull request #1123 of openai/parameter-golf, where it lost to SWA: it overshoots while the
    learning rates fall.
    """

    def __init__(self, weights: Weights, decay: float) -> None:
        super().__init__(weights)
        self._share = 1 - decay
        self._fast, self._slow, self._smooth = (_copies(weights) for _ in range(3))

    def update(self, *, step: int, lr_scale: float) -> None:
        values = _values(self._weights)
        torch._foreach_lerp_(self._fast, values, 2 * self._share)
        torch._foreach_lerp_(self._slow, values, self._share)
        hull = torch._foreach_lerp(self._slow, self._fast, 2.0)
        torch._foreach_lerp_(self._smooth, hull, self._share**0.5)

    def weights(self) -> dict[str, Tensor]:
        return dict(zip(self._weights, self._smooth, strict=True))

    def source(self) -> str:
        return "hma"

    def state(self) -> dict[str, Tensor]:
        parts = {"fast": self._fast, "slow": self._slow, "smooth": self._smooth}
        return {
            f"{part}.{name}": value
            for part, values in parts.items()
            for name, value in zip(self._weights, values, strict=True)
        }


def new_average(config: TrainConfig, weights: Weights) -> Average:
    """The average that a config names, over weights that change in place."""
    if config.average == "ema":
        return Ema(weights, config.ema_decay)
    if config.average == "swa":
        return Swa(weights, config.swa_steps, config.swa_below, config.warmup_steps)
    if config.average == "hma":
        return Hma(weights, config.ema_decay)
    return Last(weights)


def no_snapshot(config: TrainConfig) -> str:
    """What to say of a run that ended before ``swa`` took anything in."""
    return (
        f"average='swa' took no snapshot: no step divisible by swa_steps={config.swa_steps} had "
        f"learning rates below swa_below={config.swa_below} of the full ones; the last weights are "
        "exported; lower swa_steps or raise swa_below"
    )


def _values(weights: Weights) -> list[Tensor]:
    return [weight.detach() for weight in weights.values()]


def _copies(weights: Weights) -> list[Tensor]:
    return [weight.float().clone() for weight in _values(weights)]

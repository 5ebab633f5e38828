"""Quantization-aware training: steps are taken from the weights which the export would give.

What the export puts on a grid is put on the same grid here, with steps of the same rule, so that a
weight rounded here is bit for bit the weight that comes back from an artifact whose codes are
rounded to nearest. Rounded weights take the place of the parameters while a gradient is computed,
so that a compiled model knows nothing of it; latent ones come back before the optimizer's step.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from flyweight.errors import InvalidArgumentError
from flyweight.quant.config import QuantConfig, QuantRule
from flyweight.quant.grid import Grid, matrix_shape
from flyweight.quant.qat_scales import QAT_RULES, StepRounding, raw_steps

__all__ = ["FakeQuant", "round_weights"]

SHARPEST = 16.0
"""Largest ``alpha`` of soft rounding: a tenth of a step from an edge, 0.04 are left to the code."""
SHARPEST_SLOPE = 4.0
"""Largest ``alpha`` of its gradient, which is then 0.15 to 2.07 times that of the weight."""


def round_weights(
    weights: Tensor, scales: Tensor, grid: Grid, hardness: float, *, is_soft: bool
) -> tuple[Tensor, Tensor | None]:
    """Weights as a symmetric grid gives them back, and the slope of that.

    Parameters
    ----------
    weights : (rows, cols) float32
    scales : (rows, groups) float32 that the grid's scale dtype holds exactly
    grid : codes allowed, and columns that share a scale
    hardness : 0 to 1: at 0 the weights as they are, at 1 rounded to nearest even; between, soft
        rounding gets harder, and straight-through is at 1 at once
    is_soft : soft rounding, else straight-through

    Returns
    -------
    rounded : (rows, cols) float32; at hardness 1 the bits of :meth:`Grid.dequantize`
    slope : (rows, cols) float32, what a gradient of the rounded weights is multiplied by to be that
        of the weights; None is 1

    Notes
    -----
    With ``y = weight / step``, clipped to the grid, and ``r = y - floor(y) - 1/2``, soft rounding
    is ``floor(y) + 1/2 + tanh(alpha r) / (2 tanh(alpha / 2))``: the identity for small alpha,
    rounding for large ones, and never farther from ``y`` than half a step. What the grid clips
    fades with ``1 - hardness``. Its derivative grows with alpha at the edges and vanishes
    elsewhere, which wrecked the model of pull request 1683; so the slope is that of an alpha of
    ``SHARPEST_SLOPE`` at most, whose mean over a step is 1. Straight-through passes gradients as
    they are.

    References
    ----------
    Straight-through: Bengio et al., arXiv:1308.3432. Soft rounding: Agustsson and Theis,
    arXiv:2006.09952, equation 11. Clipped weights keep their gradient, as in the pull requests.
    """
    if not hardness:
        return weights.clone(), None
    steps = scales
    if grid.group_size:
        steps = scales.repeat_interleave(grid.group_size, dim=1)[:, : weights.shape[1]]
    levels = weights / torch.where(steps == 0, 1.0, steps)  # a step of 0 stands for zeros
    soft, slope = _soft_round(levels, grid, hardness) if is_soft else (levels, None)
    if hardness < 1 and is_soft:
        return soft * steps, slope
    return levels.round().clamp(grid.lo, grid.hi) * steps + 0.0, slope  # codes have no -0


def _soft_round(levels: Tensor, grid: Grid, hardness: float) -> tuple[Tensor, Tensor]:
    """Softly rounded levels, and the factor of their gradient."""
    inside = levels.clamp(grid.lo, grid.hi)
    below = inside.floor()
    offsets = inside - below - 0.5
    alpha = max(SHARPEST * hardness, 1e-3)
    soft = below + 0.5 + 0.5 / math.tanh(alpha / 2) * torch.tanh(alpha * offsets)
    soft = soft + (1 - hardness) * (levels - inside)
    alpha = min(alpha, SHARPEST_SLOPE)
    tangents = torch.tanh(alpha * offsets)
    slope = alpha / 2 / math.tanh(alpha / 2) * (1 - tangents * tangents)
    return soft, torch.where(levels == inside, slope, 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Covered:
    """A parameter that is rounded."""

    name: str
    rule: QuantRule
    grid: Grid
    shape: tuple[int, int]
    """Rows and columns, as the grid sees them."""
    start: int
    """Of its scales among those of all."""

    @property
    def groups(self) -> int:
        return self.grid.groups(self.shape[1])

    @property
    def stop(self) -> int:
        return self.start + self.shape[0] * self.groups


class FakeQuant:
    """Puts the weights that a quantization config would make in the place of a model's own.

    Parameters
    ----------
    model : its parameters keep their names and places in memory
    config : the parameters that its rules put on a grid are rounded, and no others
    is_soft : soft rounding, else straight-through

    Attributes
    ----------
    covered : names of the parameters that are rounded
    scales : of all of them, one after the other, float32

    Raises
    ------
    InvalidArgumentError
        No rule covers a parameter, or one has a scale rule or a grid that is not for training.
    """

    def __init__(self, model: nn.Module, config: QuantConfig, *, is_soft: bool) -> None:
        self._model = model
        self._is_soft = is_soft
        self._plan = _plan(model, config)
        self.covered = tuple(each.name for each in self._plan)
        device = next(model.parameters()).device
        counts = [each.stop - each.start for each in self._plan]
        self._round = StepRounding([each.grid for each in self._plan], counts, device=device)
        self.scales = torch.zeros(sum(counts), device=device)
        self.refresh()

    @torch.no_grad()
    def refresh(self) -> None:
        """Take the scales of the weights as they are now; they are constants for the gradient."""
        steps = []
        for each in self._plan:
            found = raw_steps(self._matrix(each), each.grid, rule=each.rule.scale, k=each.rule.k)
            steps.append(found.flatten())
        self.scales.copy_(self._round(torch.cat(steps)))

    @contextmanager
    def applied(self, hardness: float) -> Iterator[None]:
        """Within it the covered parameters hold their rounded values.

        Behind it they have their own again, and gradients that they got within, from nothing or
        zero, are those of the latent weights. Scales are those of the weights at the beginning.

        Parameters
        ----------
        hardness : see :func:`round_weights`
        """
        self.refresh()
        latent, slopes = {}, {}
        for each in self._plan:
            matrix = self._matrix(each)
            latent[each.name] = matrix.clone()
            rounded, slopes[each.name] = self._rounded(each, hardness)
            matrix.copy_(rounded)
        try:
            yield
        finally:
            for each in self._plan:
                parameter, slope = self._model.get_parameter(each.name), slopes[each.name]
                self._matrix(each).copy_(latent[each.name])
                if slope is not None and parameter.grad is not None:
                    parameter.grad.mul_(slope.view(parameter.shape))

    def weights(self, hardness: float = 1.0) -> dict[str, Tensor]:
        """The covered parameters by name, rounded by the scales of the last :meth:`refresh`."""
        return {
            each.name: self._rounded(each, hardness)[0].view(
                self._model.get_parameter(each.name).shape
            )
            for each in self._plan
        }

    def _rounded(self, each: _Covered, hardness: float) -> tuple[Tensor, Tensor | None]:
        scales = self.scales[each.start : each.stop].view(each.shape[0], each.groups)
        return round_weights(self._matrix(each), scales, each.grid, hardness, is_soft=self._is_soft)

    def _matrix(self, each: _Covered) -> Tensor:
        return self._model.get_parameter(each.name).detach().view(each.shape)


def _plan(model: nn.Module, config: QuantConfig) -> list[_Covered]:
    plan: list[_Covered] = []
    for name, parameter in model.named_parameters():
        rule = config.rule_for_array(name, tuple(parameter.shape))
        if rule is None:
            continue
        grid = rule.build_grid()
        if rule.scale not in QAT_RULES or not grid.is_symmetric or grid.has_column_scales:
            raise InvalidArgumentError(
                f"tensor {name!r}: scale rule {rule.scale!r} of {rule.match!r} is not for "
                f"quantization-aware training, which has {', '.join(QAT_RULES)}"
            )
        start = plan[-1].stop if plan else 0
        shape = matrix_shape(tuple(parameter.shape))
        plan.append(_Covered(name=name, rule=rule, grid=grid, shape=shape, start=start))
    if not plan:
        raise InvalidArgumentError("quantization-aware training: no rule covers a parameter")
    return plan

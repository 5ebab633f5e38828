"""Quantization-aware training: a loss that is taken of the weights which the export would give.

What the export puts on a grid is put on the same grid here, with steps of the same rule, so that a
weight rounded here is bit for bit the weight that comes back from an artifact whose codes are
rounded to nearest. The parameters themselves stay as they are, latent, under their own names.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from flyweight.errors import InvalidArgumentError
from flyweight.quant.config import QuantConfig, QuantRule
from flyweight.quant.grid import Grid, matrix_shape
from flyweight.quant.qat_scales import QAT_RULES, StepRounding, raw_steps

__all__ = ["FakeQuant", "fake_quantize"]

SHARPEST = 16.0
"""Largest ``alpha`` of soft rounding: a tenth of a step from an edge, 0.04 are left to the code."""
SHARPEST_SLOPE = 4.0
"""Largest ``alpha`` of its gradient, which is then 0.15 to 2.07 times that of the weight."""


def fake_quantize(
    weights: Tensor, scales: Tensor, grid: Grid, hardness: Tensor, *, is_soft: bool
) -> Tensor:
    """Weights as a symmetric grid gives them back, with a gradient as if it were not there.

    Parameters
    ----------
    weights : (rows, cols) float32
    scales : (rows, groups) float32 that the grid's scale dtype holds exactly
    grid : codes allowed, and columns that share a scale
    hardness : () float32, 0 to 1: at 0 the weights as they are, at 1 rounded to nearest even;
        between, soft rounding gets harder, and straight-through is at 1 at once
    is_soft : soft rounding, else straight-through

    Returns
    -------
    (rows, cols) float32; at hardness 1 the bits of :meth:`Grid.dequantize` (but see Notes)

    Notes
    -----
    With ``y = weight / step``, clipped to the grid, and ``r = y - floor(y) - 1/2``, soft rounding
    is ``floor(y) + 1/2 + tanh(alpha r) / (2 tanh(alpha / 2))``: the identity for small alpha,
    rounding for large ones, and never farther from ``y`` than half a step. What the grid clips
    fades with ``1 - hardness``. Its derivative grows with alpha at the edges and vanishes
    elsewhere, which wrecked the model of pull request 1683; so the gradient is that of an alpha of
    ``SHARPEST_SLOPE`` at most, whose mean over a step is 1. Straight-through passes it as it is.

    On CUDA, torch.compile divides with an error in the last bit unless told otherwise, so that a
    weight halfway between two codes may go to the other one.

    References
    ----------
    Straight-through: Bengio et al., arXiv:1308.3432. Soft rounding: Agustsson and Theis,
    arXiv:2006.09952, equation 11. Clipped weights keep their gradient, as in the pull requests.
    """
    frozen = weights.detach()
    steps = scales
    if grid.group_size:
        steps = scales.repeat_interleave(grid.group_size, dim=1)[:, : weights.shape[1]]
    levels = frozen / torch.where(steps == 0, 1.0, steps)  # a step of 0 stands for zeros
    codes = levels.round().clamp(grid.lo, grid.hi)
    rounded, slope = codes * steps, None
    if is_soft:
        soft, slope = _soft_round(levels, grid, hardness)
        rounded = torch.where(hardness < 1, soft * steps, rounded)
    # A select on a tensor: a Python flag would be a constant of the compiled graph.
    used = torch.where(hardness > 0, rounded, frozen)
    passed = weights - frozen  # zeros, whose gradient is that of the weights
    return used + (passed if slope is None else passed * slope)


def _soft_round(levels: Tensor, grid: Grid, hardness: Tensor) -> tuple[Tensor, Tensor]:
    """Softly rounded levels, and the factor of their gradient."""
    inside = levels.clamp(grid.lo, grid.hi)
    below = inside.floor()
    offsets = inside - below - 0.5
    alpha = (SHARPEST * hardness).clamp(min=1e-3)
    soft = below + 0.5 + 0.5 * torch.tanh(alpha * offsets) / torch.tanh(alpha / 2)
    soft = soft + (1 - hardness) * (levels - inside)
    alpha = alpha.clamp(max=SHARPEST_SLOPE)
    tangents = torch.tanh(alpha * offsets)
    slope = alpha / 2 * (1 - tangents * tangents) / torch.tanh(alpha / 2)
    return soft, torch.where((hardness > 0) & (levels == inside), slope, 1.0)


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


class _Entry(nn.Module):
    """A method of a model as the forward of a module, as ``functional_call`` wants it."""

    def __init__(self, model: nn.Module, method: str) -> None:
        super().__init__()
        self.model = model
        self.method = method

    def forward(self, *arguments: Any) -> Any:
        return getattr(self.model, self.method)(*arguments)


class FakeQuant(nn.Module):
    """Calls a model with the weights that a quantization config would make of its own.

    Parameters
    ----------
    model : its float32 parameters are looked at, never changed, and keep their names
    config : the parameters that its rules put on a grid are rounded, and no others
    is_soft : soft rounding, else straight-through
    method : what is called, ``forward`` or another method of the model

    Attributes
    ----------
    hardness : () float32 buffer, see :func:`fake_quantize`. It and the scales are inputs of a
        compiled graph, which changes with them and is not compiled again; set it by ``fill_``
    covered : names of the parameters that are rounded

    Raises
    ------
    InvalidArgumentError
        No rule covers a parameter, or one has a scale rule or a grid that is not for training.
    """

    hardness: Tensor
    scales: Tensor

    def __init__(
        self, model: nn.Module, config: QuantConfig, *, is_soft: bool, method: str = "forward"
    ) -> None:
        super().__init__()
        self._entry = _Entry(model, method)
        self._is_soft = is_soft
        self._plan = _plan(model, config)
        self.covered = tuple(each.name for each in self._plan)
        device = next(model.parameters()).device
        counts = [each.stop - each.start for each in self._plan]
        self._round = StepRounding([each.grid for each in self._plan], counts, device=device)
        self.register_buffer("hardness", torch.ones((), device=device), persistent=False)
        scales = torch.zeros(sum(counts), device=device)
        self.register_buffer("scales", scales, persistent=False)
        self.refresh()

    @torch.no_grad()
    def refresh(self) -> None:
        """Take the scales of the weights as they are now; they are constants for the gradient."""
        steps = []
        for each, weights in zip(self._plan, self._matrices(), strict=True):
            found = raw_steps(weights, each.grid, rule=each.rule.scale, k=each.rule.k)
            steps.append(found.flatten())
        self.scales.copy_(self._round(torch.cat(steps)))

    def weights(self) -> dict[str, Tensor]:
        """The covered parameters by name, rounded by the scales of the last :meth:`refresh`."""
        found = {}
        for each, weights in zip(self._plan, self._matrices(), strict=True):
            scales = self.scales[each.start : each.stop].view(each.shape[0], each.groups)
            rounded = fake_quantize(
                weights, scales, each.grid, self.hardness, is_soft=self._is_soft
            )
            found[each.name] = rounded.view(self._entry.model.get_parameter(each.name).shape)
        return found

    def forward(self, *arguments: Any) -> Any:
        """What the model's method gives with the rounded weights in place of its own."""
        weights = {f"model.{name}": weight for name, weight in self.weights().items()}
        return functional_call(self._entry, weights, arguments)

    def _matrices(self) -> list[Tensor]:
        model = self._entry.model
        return [model.get_parameter(each.name).view(each.shape) for each in self._plan]


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

"""Scale rules on torch tensors: what training rounds with is what the export will round with.

Each rule here is the twin of the function of that name in ``clip.py`` or ``clip_levels.py``, which
documents it. Sums are float64 in both, so that only their order differs; the steps are rounded to
the stored dtype by integer arithmetic, as PyTorch goes from float64 to float16 by way of float32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from flyweight.errors import InvalidArgumentError
from flyweight.quant.clip_levels import THRESHOLD
from flyweight.quant.grid import Grid

__all__ = ["QAT_RULES", "StepRounding", "raw_steps"]


def raw_steps(weights: Tensor, grid: Grid, *, rule: str, k: float | None = None) -> Tensor:
    """Steps before they are rounded to the dtype that is stored.

    Parameters
    ----------
    weights : (rows, cols) float32
    grid : a symmetric grid
    rule : a key of ``QAT_RULES``
    k : of SDClip

    Returns
    -------
    (rows, groups) float64 on the device of the weights; zero exactly for a group of zeros
    """
    rows, cols = weights.shape
    size, groups = grid.group_size or cols, grid.groups(cols)
    padded = torch.nn.functional.pad(weights, (0, groups * size - cols))
    counts = torch.full((groups,), size, dtype=torch.float64, device=weights.device)
    counts[groups - 1 :] = cols - (groups - 1) * size
    return QAT_RULES[rule](padded.view(rows, groups, size), counts, grid.hi, k or 0.0)


def _row_max(blocks: Tensor, counts: Tensor, hi: int, k: float) -> Tensor:
    tops: Tensor = torch.linalg.vector_norm(blocks, torch.inf, dim=2)
    return (tops.double() / hi).float().double()  # the quotient is a float32 in NumPy


def _sdclip(blocks: Tensor, counts: Tensor, hi: int, k: float) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(blocks, dim=2, dtype=torch.float64)
    return norms / counts.sqrt() * (k / hi)


def _absmean(blocks: Tensor, counts: Tensor, hi: int, k: float) -> Tensor:
    sums: Tensor = torch.linalg.vector_norm(blocks, 1, dim=2, dtype=torch.float64)
    return sums / counts


def _threshold(blocks: Tensor, counts: Tensor, hi: int, k: float) -> Tensor:
    magnitudes = blocks.abs().double()
    units = THRESHOLD * magnitudes.sum(dim=2) / counts
    codes = torch.zeros_like(magnitudes)
    for n in range(1, hi + 1):
        codes += magnitudes > n * units[..., None]
    power = codes.square().sum(dim=2)
    return (magnitudes * codes).sum(dim=2) / power.clamp(min=1)  # above the unit: at least one


QAT_RULES: dict[str, Callable[[Tensor, Tensor, int, float], Tensor]] = {
    "row-max": _row_max,
    "sdclip": _sdclip,
    "absmean": _absmean,
    "threshold": _threshold,
}
"""From weights (rows, groups, size), columns of each group, largest code and ``k`` to raw steps."""

_DIGITS = {"float16": 10, "float32": 23}


class StepRounding:
    """Rounds the steps of many tensors, one after another in one vector, to what is stored.

    Parameters
    ----------
    grids : one for each tensor; they say the stored dtypes
    counts : steps of each tensor
    device : of the steps

    Raises
    ------
    InvalidArgumentError
        A scale dtype is neither float16 nor float32.
    """

    def __init__(
        self, grids: Sequence[Grid], counts: Sequence[int], *, device: torch.device
    ) -> None:
        for grid in grids:
            if grid.scale_dtype not in _DIGITS:
                raise InvalidArgumentError(
                    f"scale_dtype must be float16 or float32, got {grid.scale_dtype!r}"
                )
        repeats = torch.tensor(counts)
        infos = [torch.finfo(getattr(torch, grid.scale_dtype)) for grid in grids]

        def spread(values: list[float], dtype: torch.dtype) -> Tensor:
            return torch.tensor(values, dtype=dtype).repeat_interleave(repeats).to(device)

        self._digits = spread([_DIGITS[grid.scale_dtype] for grid in grids], torch.int64)
        self._least = spread([i.smallest_normal * i.eps for i in infos], torch.float64)
        self._most = spread([i.max for i in infos], torch.float64)

    def __call__(self, steps: Tensor) -> Tensor:
        """Steps (n,) float64, 0 or more, rounded to nearest even as float32 (n,).

        Notes
        -----
        As :func:`flyweight.quant.groups.stored`: no step but zero becomes zero. One that is too
        large, which the export refuses, becomes the largest.
        """
        # The exponent field of a float64 gives the distance of the neighbours in the other dtype.
        exponents = (steps.view(torch.int64) >> 52) - self._digits
        quanta = (exponents.clamp(min=0) << 52).view(torch.float64).maximum(self._least)
        rounded = ((steps / quanta).round() * quanta).minimum(self._most)
        return torch.where(steps > 0, rounded.maximum(self._least), 0.0).float()

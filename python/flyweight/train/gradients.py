"""From the gradients of each process to those that the optimizers take."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim import AdamW

from flyweight.train.distributed import World
from flyweight.train.optim import Muon, parameters_of

__all__ = ["mean_over_processes", "passes", "reduce_and_clip"]


def passes(batch_sequences: int, accumulation_steps: int, world: World) -> int:
    """Forward and backward passes of each process in a step.

    Parameters
    ----------
    batch_sequences : rows of a step, of which each process takes an equal share
    accumulation_steps : passes that one process alone would make

    Returns
    -------
    As few as there can be with passes that are equal, and no larger than those of one process

    Raises
    ------
    InvalidArgumentError
        The rows do not divide by the processes.
    """
    own = world.rows(batch_sequences)
    largest = batch_sequences // accumulation_steps
    return next(n for n in range(1, own + 1) if own % n == 0 and own // n <= largest)


@torch.no_grad()
def reduce_and_clip(
    muon: Muon, adamw: AdamW, loss: Tensor, *, max_norm: float, world: World
) -> Tensor:
    """Take the mean of gradients and loss over the processes, and clip the gradients.

    Parameters
    ----------
    loss : () float32, mean over the rows of this process
    max_norm : of the mean gradient of all parameters together

    Returns
    -------
    (2,) float32 on the device, the same in every process: mean loss, and norm before clipping

    Notes
    -----
    Matrices are scattered: each process gets its share of each stack. All else goes in one buffer.
    From the first gradient on that is not finite no weight changes any more, so that what went
    wrong can be looked at when the host hears of it, a step later.
    """
    muon.scatter_gradients()
    rest = [parameter.grad for parameter in parameters_of(adamw) if parameter.grad is not None]
    loss = mean_over_processes(rest, loss, world)
    scattered = world.total(muon.squared_norm()).land()
    norm = (scattered + torch.stack(torch._foreach_norm(rest)).square().sum()).sqrt()
    muon.halt_if(~torch.isfinite(norm + loss))
    adamw.found_inf = muon.has_halted  # type: ignore[attr-defined]  # fused: no update if not 0
    factor = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    torch._foreach_mul_(rest, factor)
    muon.scale_gradients(factor)
    return torch.stack((loss, norm))


def mean_over_processes(gradients: list[Tensor], loss: Tensor, world: World) -> Tensor:
    """Replace gradients by their means over the processes, in one buffer; returns the mean loss."""
    if world.size == 1:
        return loss
    both = [loss, *gradients]
    flat = world.mean(torch.cat([part.flatten() for part in both])).land()
    means = torch.split(flat, [part.numel() for part in both])
    torch._foreach_copy_(both, [m.view_as(part) for m, part in zip(means, both, strict=True)])
    return loss

"""Muon for the matrices, AdamW for the rest."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from flyweight.model.transformer import Transformer
from flyweight.train.config import OptimConfig
from flyweight.train.orthogonalize import orthogonalize

__all__ = ["Muon", "build_optimizers", "set_schedule"]

_COMPILED_SHAPES = 64
"""Shapes of stacks that may be compiled; PyTorch's own limit is 8."""


@dataclass(slots=True, kw_only=True)
class _Stack:
    """Matrices of one shape, which are updated as one tensor."""

    weights: list[Tensor]
    momentum: Tensor
    """(n, rows, cols)."""


class Muon(Optimizer):
    """Nesterov momentum whose step is orthogonalized; decoupled weight decay.

    Parameters
    ----------
    params : matrices, on the device where they stay
    direction : makes a stack (n, rows, cols) orthogonal
    momentum_dtype : of the momentum and of the gradients that enter it

    Notes
    -----
    ``m = momentum m + g``, then ``w = (1 - lr decay) w - lr sqrt(max(1, rows / cols)) O`` with
    ``O = orthogonalize(g + momentum m)``. Matrices of one shape go through it as one stack; those
    of a stack without any gradient stay as they are.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        *,
        lr: float,
        momentum: float,
        weight_decay: float,
        direction: Callable[[Tensor], Tensor] = orthogonalize,
        momentum_dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self._direction = direction
        self._advance = _advance
        self._stacks = _stacks(self.param_groups[0]["params"], momentum_dtype)

    @torch.no_grad()
    def compile(self) -> None:
        """Compile what happens to each stack, and run it once on zeros; no state changes."""
        self._advance = torch.compile(self._advance, fullgraph=True, dynamic=False)
        with torch._dynamo.config.patch(recompile_limit=_COMPILED_SHAPES):
            for stack in self._stacks:
                zeros = torch.zeros_like(stack.momentum)
                self._advance(self._direction, zeros, zeros.clone(), self._tensor(0.0))

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One update of every stack that has a gradient; a closure is not used."""
        group = self.param_groups[0]
        momentum = self._tensor(group["momentum"])
        for stack in self._stacks:
            gradient = _packed(stack)
            if gradient is None:
                continue
            directions = self._advance(self._direction, gradient, stack.momentum, momentum)
            rows, cols = directions.shape[1:]
            torch._foreach_mul_(stack.weights, 1 - group["lr"] * group["weight_decay"])
            step_size = group["lr"] * max(1.0, rows / cols) ** 0.5
            torch._foreach_add_(stack.weights, directions.float().unbind(), alpha=-step_size)

    def momentum(self) -> dict[Tensor, Tensor]:
        """The momentum of each parameter, in the dtype it is kept in."""
        pairs = [zip(stack.weights, stack.momentum, strict=True) for stack in self._stacks]
        return {weight: momentum for stack in pairs for weight, momentum in stack}

    @torch.no_grad()
    def load_momentum(self, values: dict[Tensor, Tensor]) -> None:
        """Take over what :meth:`momentum` gave."""
        for stack in self._stacks:
            for weight, momentum in zip(stack.weights, stack.momentum, strict=True):
                momentum.copy_(values[weight])

    def _tensor(self, value: float) -> Tensor:
        """A number that a compiled graph takes as an input: as a float it would be a constant."""
        return torch.full((), value, device=self._stacks[0].momentum.device)


def _advance(
    direction: Callable[[Tensor], Tensor], gradient: Tensor, momentum: Tensor, factor: Tensor
) -> Tensor:
    """Add a gradient to the momentum, in place, and give the direction of the step."""
    factor = factor.to(momentum.dtype)
    momentum.mul_(factor).add_(gradient)
    return direction(gradient + factor * momentum)


def _stacks(params: Iterable[Tensor], dtype: torch.dtype) -> list[_Stack]:
    """By shape, biggest first."""
    by_shape: defaultdict[torch.Size, list[Tensor]] = defaultdict(list)
    for weight in params:
        by_shape[weight.shape].append(weight)
    groups = sorted(by_shape.values(), key=lambda group: -len(group) * group[0].numel())
    return [
        _Stack(
            weights=weights,
            momentum=torch.zeros(
                len(weights), *weights[0].shape, dtype=dtype, device=weights[0].device
            ),
        )
        for weights in groups
    ]


def _packed(stack: _Stack) -> Tensor | None:
    """The gradients of a stack as one tensor like its momentum; None if there is none."""
    gradients = [weight.grad for weight in stack.weights]
    if all(gradient is None for gradient in gradients):
        return None
    found = [
        torch.zeros_like(weight) if gradient is None else gradient
        for weight, gradient in zip(stack.weights, gradients, strict=True)
    ]
    return torch.stack(found).to(stack.momentum.dtype)


def build_optimizers(model: Transformer, config: OptimConfig) -> tuple[Muon, AdamW]:
    """Muon over the matrices that the config names, AdamW over all else.

    Notes
    -----
    Linears belong to Muon. The embeddings (the token embedding, an untied head, tables of looked-up
    rows) have a learning rate of their own, and so have all others: gains, gates, scales, mixes.
    """
    matrices = _matrices(model, config)
    taken = {id(weight) for weight in matrices}
    modules = list(model.modules())
    heads = [m for m in modules if isinstance(m, nn.Embedding) or m is model.lm_head]
    embeddings = [head.weight for head in heads if id(head.weight) not in taken]
    taken |= {id(weight) for weight in embeddings}
    scalars = [p for p in model.parameters() if id(p) not in taken]
    muon = Muon(
        matrices,
        lr=config.matrix_lr,
        momentum=config.momentum,
        weight_decay=config.matrix_weight_decay,
        direction=partial(
            orthogonalize,
            method=config.orthogonalize,
            steps=config.orthogonalize_steps,
            row_norm=config.row_normalize,
        ),
        momentum_dtype=getattr(torch, config.momentum_dtype),
    )
    groups = [
        {
            "params": embeddings,
            "lr": config.embedding_lr,
            "weight_decay": config.embedding_weight_decay,
        },
        {"params": scalars, "lr": config.scalar_lr, "weight_decay": config.scalar_weight_decay},
    ]
    adamw = AdamW(groups, betas=(config.beta1, config.beta2), eps=config.eps, fused=True)
    for optimizer in (muon, adamw):
        for group in optimizer.param_groups:
            group["full_lr"] = group["lr"]
    return muon, adamw


def _matrices(model: Transformer, config: OptimConfig) -> list[Tensor]:
    """What Muon trains, in the order of the model."""
    if config.muon == "shapes":
        heads = [model.tok_emb.weight, None if model.lm_head is None else model.lm_head.weight]
        return [p for p in model.parameters() if p.ndim >= 2 and all(p is not h for h in heads)]
    root = model.blocks if config.muon == "blocks" else model
    linears = [m for m in root.modules() if isinstance(m, nn.Linear) and m is not model.lm_head]
    return [linear.weight for linear in linears]


def set_schedule(optimizers: Iterable[Optimizer], *, scale: float, momentum: float) -> None:
    """Scale every learning rate that :func:`build_optimizers` gave, and set Muon's momentum."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["full_lr"] * scale
            if isinstance(optimizer, Muon):
                group["momentum"] = momentum

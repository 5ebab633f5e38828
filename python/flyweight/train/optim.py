"""Muon for the matrices, AdamW for the rest."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from flyweight.model.transformer import Transformer
from flyweight.train.config import OptimConfig
from flyweight.train.distributed import Flying, World
from flyweight.train.orthogonalize import orthogonalize

__all__ = ["Muon", "build_optimizers", "parameters_of", "set_schedule"]

_COMPILED_SHAPES = 64
"""Shapes of stacks that may be compiled; PyTorch's own limit is 8."""


@dataclass(slots=True, kw_only=True)
class _Stack:
    """Matrices of one shape, which are updated as one tensor."""

    weights: list[Tensor]
    momentum: Tensor
    """(share, rows, cols): of the matrices that this process updates; behind the last, zeros."""
    gradient: Flying | None = None
    """Like the momentum; None where there is none."""
    step: Flying | None = None
    """Directions of all matrices, (at least n, rows, cols); None where there is none."""


class Muon(Optimizer):
    """Nesterov momentum whose step is orthogonalized; decoupled weight decay.

    Parameters
    ----------
    params : (rows, cols) float32 matrices, on the device where they stay
    lr : learning rate; :func:`set_schedule` changes it, and the momentum
    momentum : decay of the momentum in a step, from 0 to below 1
    weight_decay : each step multiplies the weights by ``1 - lr weight_decay``
    direction : makes a stack (n, rows, cols) orthogonal
    momentum_dtype : of the momentum and of the gradients that enter it
    world : processes that share the work; each keeps the momentum of its share of each stack

    Notes
    -----
    ``m = momentum m + g``, then ``w = (1 - lr decay) w - lr sqrt(max(1, rows / cols)) O`` with
    ``O = orthogonalize(g + momentum m)``. Matrices of one shape go through it as one stack; those
    of a stack without any gradient stay as they are.

    Gradients are reduced and scattered, biggest stack first; each process advances its share; the
    directions are gathered. Between the three there is time for other work: :meth:`step` does them
    in one go.

    References
    ----------
    Keller Jordan, "Muon: an optimizer for hidden layers in neural networks" (2024). Stacks shared
    by processes: pull request #1539 of openai/parameter-golf.
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
        world: World | None = None,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self._direction = direction
        self._advance = _advance
        weights = self.param_groups[0]["params"]
        self._world = World(device=weights[0].device) if world is None else world
        self._stacks = _stacks(weights, momentum_dtype, self._world.size)
        self.has_halted = self._tensor(0.0)

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
        self.scatter_gradients()
        self.advance()
        self.apply()

    @torch.no_grad()
    def scatter_gradients(self) -> None:
        """Move the gradients out of the parameters; each process gets the mean of its share."""
        for stack in self._stacks:
            packed = _packed(stack, len(stack.momentum) * self._world.size)
            if packed is not None:
                stack.gradient = self._world.scatter_mean(packed)

    @torch.no_grad()
    def squared_norm(self) -> Tensor:
        """Sum of the squares, () float32, of this process's share of the scattered gradients."""
        found = [torch.linalg.vector_norm(g, dtype=torch.float32) for g in self._gradients()]
        return torch.stack(found).square().sum() if found else self._tensor(0.0)

    @torch.no_grad()
    def scale_gradients(self, factor: Tensor) -> None:
        """Multiply the scattered gradients."""
        for gradient in self._gradients():
            gradient.mul_(factor)

    @torch.no_grad()
    def halt_if(self, is_bad: Tensor) -> None:
        """Change no weight from now on if the tensor says so; the host does not wait to hear it."""
        torch.maximum(self.has_halted, is_bad.float(), out=self.has_halted)

    @torch.no_grad()
    def advance(self) -> None:
        """Take the scattered gradients into the momentum, and send the directions on their way."""
        momentum = self._tensor(self.param_groups[0]["momentum"])
        for stack in self._stacks:
            if stack.gradient is not None:
                gradient = stack.gradient.land()
                found = self._advance(self._direction, gradient, stack.momentum, momentum)
                stack.gradient = None
                stack.step = self._world.gather(found)

    @torch.no_grad()
    def apply(self) -> None:
        """Change the weights."""
        group = self.param_groups[0]
        kept = 1 - group["lr"] * group["weight_decay"] * (1 - self.has_halted)
        for stack in self._stacks:
            if stack.step is None:
                continue
            directions = stack.step.land()[: len(stack.weights)].float()
            directions = torch.where(self.has_halted > 0, 0.0, directions)
            stack.step = None
            rows, cols = directions.shape[1:]
            torch._foreach_mul_(stack.weights, kept)
            step_size = group["lr"] * max(1.0, rows / cols) ** 0.5
            torch._foreach_add_(stack.weights, directions.unbind(), alpha=-step_size)

    def momentum(self) -> dict[Tensor, Tensor]:
        """The momentum of each parameter; every process must ask for it at the same time."""
        gathered = [self._world.gather(stack.momentum).land() for stack in self._stacks]
        return {
            weight: momentum
            for stack, all_momentum in zip(self._stacks, gathered, strict=True)
            for weight, momentum in zip(stack.weights, all_momentum, strict=False)
        }

    @torch.no_grad()
    def load_momentum(self, values: Mapping[Tensor, Tensor]) -> None:
        """Take this process's share of what :meth:`momentum` gave."""
        for stack in self._stacks:
            own = stack.weights[self._world.share(len(stack.momentum) * self._world.size)]
            for weight, momentum in zip(own, stack.momentum, strict=False):
                momentum.copy_(values[weight])

    def _gradients(self) -> list[Tensor]:
        return [stack.gradient.land() for stack in self._stacks if stack.gradient is not None]

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


def _stacks(params: Iterable[Tensor], dtype: torch.dtype, processes: int) -> list[_Stack]:
    """By shape, biggest first."""
    by_shape: defaultdict[torch.Size, list[Tensor]] = defaultdict(list)
    for weight in params:
        by_shape[weight.shape].append(weight)
    groups = sorted(by_shape.values(), key=lambda group: -len(group) * group[0].numel())
    return [
        _Stack(
            weights=weights,
            momentum=torch.zeros(
                -(-len(weights) // processes),
                *weights[0].shape,
                dtype=dtype,
                device=weights[0].device,
            ),
        )
        for weights in groups
    ]


def _packed(stack: _Stack, length: int) -> Tensor | None:
    """The gradients of a stack, moved into one tensor with zeros at its end; None without any."""
    gradients = [weight.grad for weight in stack.weights]
    if all(gradient is None for gradient in gradients):
        return None
    zeros = torch.zeros_like(stack.weights[0])
    found = [zeros if gradient is None else gradient for gradient in gradients]
    found += [zeros] * (length - len(found))
    for weight in stack.weights:
        weight.grad = None
    return torch.stack(found).to(stack.momentum.dtype)


def build_optimizers(
    model: Transformer, config: OptimConfig, world: World | None = None
) -> tuple[Muon, AdamW]:
    """Muon over the matrices that the config names, AdamW over all else.

    Parameters
    ----------
    model : on the device where it is trained
    world : processes that share Muon's work; None is this one alone

    Returns
    -------
    Muon and fused AdamW, whose groups keep the config's learning rates as ``full_lr`` for
    :func:`set_schedule`

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
        world=world,
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


def parameters_of(optimizer: Optimizer) -> list[Tensor]:
    """Parameters of an optimizer in its own order."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def set_schedule(optimizers: Iterable[Optimizer], *, scale: float, momentum: float) -> None:
    """Scale every learning rate that :func:`build_optimizers` gave, and set Muon's momentum."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["full_lr"] * scale
            if isinstance(optimizer, Muon):
                group["momentum"] = momentum

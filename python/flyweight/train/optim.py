"""Muon for the matrices, AdamW for the rest."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from flyweight.model.transformer import Transformer
from flyweight.train.config import OptimConfig

__all__ = ["Muon", "build_optimizers", "newton_schulz", "set_schedule"]

_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5


def newton_schulz(matrices_NRC: Tensor) -> Tensor:
    """Push the singular values of each matrix of a stack to about 1.

    Parameters
    ----------
    matrices_NRC : (n, rows, cols) float; computed in bfloat16 on CUDA, in float32 elsewhere

    Returns
    -------
    (n, rows, cols), same dtype: near ``U V^T`` of the singular value decomposition, with singular
    values between about 0.7 and 1.2

    References
    ----------
    Keller Jordan, "Muon: an optimizer for hidden layers in neural networks" (2024): the quintic
    ``a X + b (X X^T) X + c (X X^T)^2 X``.
    """
    a, b, c = _NEWTON_SCHULZ
    x = matrices_NRC.to(torch.bfloat16 if matrices_NRC.is_cuda else torch.float32)
    is_tall = x.shape[1] > x.shape[2]
    if is_tall:
        x = x.mT
    x = x / (torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(_ITERATIONS):
        gram = torch.bmm(x, x.mT)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if is_tall else x).to(matrices_NRC.dtype)


class Muon(Optimizer):
    """Nesterov momentum whose step is orthogonalized; decoupled weight decay.

    Notes
    -----
    ``m = momentum m + g``, then ``w = (1 - lr decay) w - lr sqrt(max(1, rows / cols)) O`` with
    ``O = newton_schulz(g + momentum m)``. Matrices of one shape go through it as one stack.
    """

    def __init__(
        self, params: Iterable[Tensor], *, lr: float, momentum: float, weight_decay: float
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One update of every parameter that has a gradient; a closure is not used."""
        for group in self.param_groups:
            by_shape: defaultdict[torch.Size, list[Tensor]] = defaultdict(list)
            for weight in group["params"]:
                if weight.grad is not None:
                    by_shape[weight.shape].append(weight)
            for weights in by_shape.values():
                self._update(weights, group)

    def _update(self, weights: list[Tensor], group: dict[str, Any]) -> None:
        for weight in weights:
            if not self.state[weight]:
                self.state[weight]["momentum"] = torch.zeros_like(weight)
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        buffers = [self.state[weight]["momentum"] for weight in weights]
        torch._foreach_mul_(buffers, group["momentum"])
        torch._foreach_add_(buffers, gradients)
        nesterov = torch._foreach_add(gradients, buffers, alpha=group["momentum"])
        directions = newton_schulz(torch.stack(nesterov)).unbind()
        rows, cols = weights[0].shape
        torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
        step_size = group["lr"] * max(1.0, rows / cols) ** 0.5
        torch._foreach_add_(weights, directions, alpha=-step_size)


def build_optimizers(model: Transformer, config: OptimConfig) -> tuple[Optimizer, ...]:
    """Muon over the linears, AdamW over the embeddings (a head is one) and everything else."""
    modules = list(model.modules())
    linears = [m.weight for m in modules if isinstance(m, nn.Linear) and m is not model.lm_head]
    heads = [m for m in modules if isinstance(m, nn.Embedding) or m is model.lm_head]
    embeddings = [head.weight for head in heads]
    taken = {id(weight) for weight in (*linears, *embeddings)}
    scalars = [p for p in model.parameters() if id(p) not in taken]
    muon = Muon(
        linears,
        lr=config.matrix_lr,
        momentum=config.momentum,
        weight_decay=config.matrix_weight_decay,
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


def set_schedule(optimizers: Iterable[Optimizer], *, scale: float, momentum: float) -> None:
    """Scale every learning rate that :func:`build_optimizers` gave, and set Muon's momentum."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["full_lr"] * scale
            if isinstance(optimizer, Muon):
                group["momentum"] = momentum

"""Cross-entropy of soft-capped logits that keeps little for its backward pass.

Shapes: B sequences, T tokens, V vocab_size, N their B times T.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["softcapped_cross_entropy"]

_WIDEST_CAP = 40.0
"""``exp(-2 cap)`` is still a normal number in float32."""


class _SoftcappedCrossEntropy(torch.autograd.Function):
    """Losses (N,) of logits (N, V); only those, as they came, and N log-sums are kept."""

    @staticmethod
    def forward(ctx: Any, logits_NV: Tensor, targets_N: Tensor, cap: float) -> Tensor:
        below_NV = _below(logits_NV, cap)
        # All lie in a range that exp takes: one pass sums them, without a maximum beforehand.
        is_narrow = 0 < cap <= _WIDEST_CAP
        log_sums_N = below_NV.exp().sum(-1).log() if is_narrow else below_NV.logsumexp(-1)
        ctx.save_for_backward(logits_NV, targets_N, log_sums_N)
        ctx.cap = cap
        return log_sums_N - below_NV.gather(-1, targets_N[:, None]).squeeze(-1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        logits_NV, targets_N, log_sums_N = ctx.saved_tensors
        below_NV = _below(logits_NV, ctx.cap)
        ids_V = torch.arange(logits_NV.shape[-1], device=logits_NV.device)
        is_target_NV = (ids_V == targets_N[:, None]).to(below_NV.dtype)
        grad_NV = (below_NV - log_sums_N[:, None]).exp() - is_target_NV
        if ctx.cap:
            share_NV = below_NV / (-2 * ctx.cap)
            grad_NV = grad_NV * (4 * share_NV * (1 - share_NV))
        return (grad_NV * grads[0][:, None]).to(logits_NV.dtype), None, None


def _below(logits_NV: Tensor, cap: float) -> Tensor:
    """``cap * tanh(logits / cap) - cap``, from -2 cap to 0; without a cap the logits."""
    wide_NV = logits_NV.to(torch.promote_types(logits_NV.dtype, torch.float32))
    return -2 * cap * torch.sigmoid(wide_NV * (-2 / cap)) if cap else wide_NV


def softcapped_cross_entropy(logits_BTV: Tensor, targets_BT: Tensor, cap: float) -> Tensor:
    """Mean cross-entropy of ``cap * tanh(logits / cap)``.

    Parameters
    ----------
    logits_BTV : (B, T, V) before the cap, any float dtype
    targets_BT : (B, T) int64, ids below V
    cap : logits are soft-capped to within plus and minus this; 0 leaves them alone

    Returns
    -------
    nats per target, a scalar in float32 (float64 of float64 logits)

    Notes
    -----
    Run op by op, the plain form keeps capped logits and log-probabilities in float32 for its
    backward pass; this one the logits in their own dtype and a log-sum per token. Compiled,
    inductor finds as much by itself; here it need not. The arithmetic is float32 both ways, the
    gradient is rounded once.
    """
    losses_N: Tensor = _SoftcappedCrossEntropy.apply(  # type: ignore[no-untyped-call]
        logits_BTV.flatten(0, 1), targets_BT.flatten(), cap
    )
    return losses_N.mean()

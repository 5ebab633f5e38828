"""The MLP's way back: the slope of its squared (leaky) relu inside of the matrix product.

On its own, that pass reads and writes three tensors of the hidden width, which takes most of the
time of the product. Its operands come through Hopper's tensor memory accelerator.

Shapes: N tokens, D model_dim, F mlp_hidden.
"""

from __future__ import annotations

from typing import Any

import torch
import triton  # type: ignore[import-untyped, import-not-found, unused-ignore]
import triton.language as tl  # type: ignore[import-untyped, import-not-found, unused-ignore]
from torch import Tensor, nn
from triton.tools.tensor_descriptor import (  # type: ignore[import-untyped, import-not-found, unused-ignore]
    TensorDescriptor,
)

__all__ = ["squared_linear"]

_ROWS, _COLUMNS, _DEPTH = 128, 128, 64
"""What a program takes at once; beyond a tensor's end the accelerator reads zeros."""
_VALUES = 2048
"""That a program squares."""


@triton.jit  # type: ignore[untyped-decorator]
def _slope_kernel(  # type: ignore[no-untyped-def]
    g, w, hidden, out, columns, below,
    DEPTH: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    across = tl.cdiv(columns, BN)
    row = tl.program_id(0) // across * BM  # columns change first: rows of g stay in the cache
    column = tl.program_id(0) % across * BN
    total = tl.zeros((BM, BN), dtype=tl.float32)
    for k in range(0, DEPTH, BK):
        total = tl.dot(g.load([row, k]), w.load([k, column]), total, input_precision="ieee")
    h = hidden.load([row, column]).to(tl.float32)
    out.store([row, column], (2 * total * h * tl.where(h > 0, 1.0, below)).to(out.dtype))


@triton.jit  # type: ignore[untyped-decorator]
def _square_kernel(x, out, count, below, M: tl.constexpr):  # type: ignore[no-untyped-def]
    at = tl.program_id(0).to(tl.int64) * M + tl.arange(0, M)
    value = tl.load(x + at, mask=at < count, other=0).to(tl.float32)
    square = value * value * tl.where(value > 0, 1.0, below)
    tl.store(out + at, square.to(out.dtype.element_ty), mask=at < count)


@torch.library.custom_op("flyweight::leaky_square", mutates_args=())
def _leaky_square(hidden: Tensor, slope: float) -> Tensor:
    hidden = hidden.contiguous()
    out = torch.empty_like(hidden)
    programs = triton.cdiv(hidden.numel(), _VALUES)
    _square_kernel[(programs,)](hidden, out, hidden.numel(), slope * slope, _VALUES)
    return out


@_leaky_square.register_fake
def _(hidden: Tensor, slope: float) -> Tensor:
    return hidden.new_empty(hidden.shape)


@torch.library.custom_op("flyweight::squared_backward", mutates_args=())
def _squared_backward(g: Tensor, w: Tensor, hidden: Tensor, slope: float) -> Tensor:
    """``(g w) * f'(hidden)`` (N, F) of g (N, D) and w (D, F)."""
    g, w, hidden = g.contiguous(), w.contiguous(), hidden.contiguous()
    out = torch.empty_like(hidden)
    _slope_kernel[(triton.cdiv(len(hidden), _ROWS) * triton.cdiv(hidden.shape[1], _COLUMNS),)](
        TensorDescriptor.from_tensor(g, [_ROWS, _DEPTH]),
        TensorDescriptor.from_tensor(w, [_DEPTH, _COLUMNS]),
        TensorDescriptor.from_tensor(hidden, [_ROWS, _COLUMNS]),
        TensorDescriptor.from_tensor(out, [_ROWS, _COLUMNS]),
        hidden.shape[1], slope * slope, g.shape[1], _ROWS, _COLUMNS, _DEPTH,
        num_warps=4, num_stages=3,
    )  # fmt: skip
    return out


@_squared_backward.register_fake
def _(g: Tensor, w: Tensor, hidden: Tensor, slope: float) -> Tensor:
    return hidden.new_empty(hidden.shape)


class _SquaredLinear(torch.autograd.Function):
    """Of hidden (N, F) and a weight (D, F) of its dtype."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, w: Tensor, slope: float) -> Tensor:
        squared = _leaky_square(hidden, slope)
        ctx.save_for_backward(hidden, squared, w)
        ctx.slope = slope
        y: Tensor = squared @ w.mT
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        hidden, squared, w = ctx.saved_tensors
        return _squared_backward(grads[0], w, hidden, ctx.slope), grads[0].mT @ squared, None


def squared_linear(
    hidden_BTF: Tensor, linear: nn.Linear, slope: float, scale_D: Tensor | None
) -> Tensor:
    """As :func:`flyweight.model.blocks.squared_linear`; the weight is scaled, not the output."""
    weight = linear.weight if scale_D is None else linear.weight * scale_D[:, None]
    flat_NF = hidden_BTF.flatten(0, -2)
    y_ND: Tensor = _SquaredLinear.apply(flat_NF, weight.to(flat_NF.dtype), slope)  # type: ignore[no-untyped-call]
    return y_ND.view(*hidden_BTF.shape[:-1], -1)

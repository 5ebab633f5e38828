"""Triton kernels for what surrounds the matrix products: each reads and writes the stream once.

Compilers leave two to four passes over memory here, and at a width of 512 those take as long as the
products. Every kernel computes in float32 and rounds once. Import it where Triton is installed.

Shapes: B sequences, T tokens, D model_dim, N heads of any kind, H query heads, G key and value
heads, K head_dim, R half of rope_dims.
"""

from __future__ import annotations

import torch
import triton  # type: ignore[import-untyped, import-not-found, unused-ignore]
import triton.language as tl  # type: ignore[import-untyped, import-not-found, unused-ignore]
from torch import Tensor, nn

from flyweight.model.blocks import NORM_EPS, Operations
from flyweight.model.fused_heads import exclude_own_value, gate_heads, project
from flyweight.model.fused_mlp import squared_linear

__all__ = [
    "FUSED",
    "add_norm",
    "exclude_own_value",
    "gate_heads",
    "project",
    "scaled_linear",
    "squared_linear",
]

_ROWS = 4
_PROGRAMS = 1056
"""Most programs of a backward pass, each of which leaves one partial sum per vector."""


@triton.jit  # type: ignore[untyped-decorator]
def _add_norm_kernel(  # type: ignore[no-untyped-def]
    x, y, mix, total, normed, rows, width, scale, eps,
    MIXES: tl.constexpr, M: tl.constexpr, W: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * M + tl.arange(0, M)
    column = tl.arange(0, W)
    inside = column < width
    keep = (row < rows)[:, None] & inside[None, :]
    at = row[:, None].to(tl.int64) * width + column[None, :]
    sum_x = tl.load(x + at, mask=keep, other=0).to(tl.float32)
    sum_y = tl.load(y + at, mask=keep, other=0).to(tl.float32)
    if MIXES:
        sum_x *= tl.load(mix + column, mask=inside, other=0)[None, :]
        sum_y *= tl.load(mix + width + column, mask=inside, other=0)[None, :]
    stored = (sum_x + sum_y).to(total.dtype.element_ty)
    tl.store(total + at, stored, mask=keep)
    s = stored.to(tl.float32)
    root = tl.rsqrt(tl.sum(s * s, 1) / width + eps) * scale
    tl.store(normed + at, (s * root[:, None]).to(normed.dtype.element_ty), mask=keep)


@triton.jit  # type: ignore[untyped-decorator]
def _add_norm_backward_kernel(  # type: ignore[no-untyped-def]
    x, y, mix, g_total, g_normed, dx, dy, dmix, rows, width, scale, eps,
    SHARE: tl.constexpr, MIXES: tl.constexpr, M: tl.constexpr, W: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    column = tl.arange(0, W)
    inside = column < width
    if MIXES:
        a_W = tl.load(mix + column, mask=inside, other=0)[None, :]
        b_W = tl.load(mix + width + column, mask=inside, other=0)[None, :]
    da_W = tl.zeros((W,), dtype=tl.float32)
    db_W = tl.zeros((W,), dtype=tl.float32)
    for start in range(0, SHARE, M):
        row = program * SHARE + start + tl.arange(0, M)
        keep = (row < rows)[:, None] & inside[None, :]
        at = row[:, None].to(tl.int64) * width + column[None, :]
        s = tl.load(x + at, mask=keep, other=0).to(tl.float32)
        if MIXES:  # else x is the sum
            first, second = s, tl.load(y + at, mask=keep, other=0).to(tl.float32)
            s = (first * a_W + second * b_W).to(dx.dtype.element_ty).to(tl.float32)
        g = tl.load(g_normed + at, mask=keep, other=0).to(tl.float32) * scale
        root = tl.rsqrt(tl.sum(s * s, 1) / width + eps)[:, None]
        unit = s * root
        g = root * (g - unit * (tl.sum(g * unit, 1) / width)[:, None])
        g += tl.load(g_total + at, mask=keep, other=0).to(tl.float32)
        if MIXES:
            tl.store(dx + at, (g * a_W).to(dx.dtype.element_ty), mask=keep)
            tl.store(dy + at, (g * b_W).to(dx.dtype.element_ty), mask=keep)
            da_W += tl.sum(g * first, 0)
            db_W += tl.sum(g * second, 0)
        else:
            tl.store(dx + at, g.to(dx.dtype.element_ty), mask=keep)
    if MIXES:
        spot = dmix + program * 2 * width + column
        tl.store(spot, da_W, mask=inside)
        tl.store(spot + width, db_W, mask=inside)


@torch.library.custom_op("flyweight::add_norm", mutates_args=())
def _add_norm(x: Tensor, y: Tensor, mix: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    x, y = x.contiguous(), y.contiguous()
    width = x.shape[-1]
    rows = x.numel() // width
    total, normed = torch.empty_like(x), torch.empty_like(x)
    _add_norm_kernel[(triton.cdiv(rows, _ROWS),)](
        x, y, x if mix is None else mix.contiguous(), total, normed, rows, width, scale, NORM_EPS,
        mix is not None, _ROWS, triton.next_power_of_2(width),
    )  # fmt: skip
    return total, normed


@_add_norm.register_fake
def _(x: Tensor, y: Tensor, mix: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(x.shape)


@torch.library.custom_op("flyweight::add_norm_backward", mutates_args=())
def _add_norm_backward(
    kept: list[Tensor], g_total: Tensor, g_normed: Tensor, scale: float
) -> list[Tensor]:
    """Gradients of x, y and mix from those three, or that of x and y from their sum."""
    *kept, g_total, g_normed = (tensor.contiguous() for tensor in (*kept, g_total, g_normed))
    width = g_total.shape[-1]
    rows = g_total.numel() // width
    share = triton.cdiv(triton.cdiv(rows, _PROGRAMS), _ROWS) * _ROWS
    programs = triton.cdiv(rows, share)
    mixes = len(kept) == 3
    x, y, mix = kept if mixes else kept * 3
    found = [torch.empty_like(tensor) for tensor in kept[:2]]
    sums = g_total.new_empty(programs if mixes else 0, 2, width, dtype=torch.float32)
    _add_norm_backward_kernel[(programs,)](
        x, y, mix, g_total, g_normed, found[0], found[-1], sums, rows, width, scale, NORM_EPS,
        share, mixes, _ROWS, triton.next_power_of_2(width), num_warps=2,
    )  # fmt: skip
    return [*found, sums.sum(0)] if mixes else found


@_add_norm_backward.register_fake
def _(kept: list[Tensor], g_total: Tensor, g_normed: Tensor, scale: float) -> list[Tensor]:
    return [tensor.new_empty(tensor.shape) for tensor in kept]


def _keep_sum(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    x, y, mix, ctx.scale = inputs
    ctx.save_for_backward(*((output[0],) if mix is None else (x, y, mix)))


def _sum_backward(ctx, g_total, g_normed):  # type: ignore[no-untyped-def]
    found = _add_norm_backward(list(ctx.saved_tensors), g_total, g_normed, ctx.scale)
    dx, dy, dmix = found if len(found) == 3 else (found[0], found[0], None)
    return dx, dy, dmix, None


_add_norm.register_autograd(_sum_backward, setup_context=_keep_sum)


def add_norm(
    x_BTD: Tensor, y_BTD: Tensor, mix_2D: Tensor | None, scale: float | None
) -> tuple[Tensor, Tensor]:
    """As :func:`flyweight.model.blocks.add_norm`; the mix is float32."""
    sum_BTD, normed_BTD = _add_norm(x_BTD, y_BTD, mix_2D, 1.0 if scale is None else scale)
    return sum_BTD, normed_BTD


def scaled_linear(x: Tensor, linear: nn.Linear, scale_D: Tensor | None) -> Tensor:
    """As :func:`flyweight.model.blocks.scaled_linear`; the weight is scaled, not the output.

    So the scale's gradient comes from that of the weight: the output need not be kept for it.
    """
    weight = linear.weight if scale_D is None else linear.weight * scale_D[:, None]
    return nn.functional.linear(x, weight)


FUSED = Operations(
    add_norm=add_norm,
    project=project,
    scaled_linear=scaled_linear,
    squared_linear=squared_linear,
    exclude_own_value=exclude_own_value,
    gate_heads=gate_heads,
)
"""What a model trains with on CUDA; needs head_dim to be a power of two."""

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

__all__ = [
    "FUSED",
    "add_norm",
    "exclude_own_value",
    "gate_heads",
    "project",
    "scaled_linear",
]

_ROWS = 4
_PROGRAMS = 1056
"""Most programs of a backward pass, each of which leaves one partial sum per vector."""


@triton.jit  # type: ignore[untyped-decorator]
def _add_norm_kernel(  # type: ignore[no-untyped-def]
    x, y, a, b, total, normed, rows, width, scale, eps,
    HAS_A: tl.constexpr, HAS_B: tl.constexpr, M: tl.constexpr, W: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * M + tl.arange(0, M)
    column = tl.arange(0, W)
    inside = column < width
    keep = (row < rows)[:, None] & inside[None, :]
    at = row[:, None].to(tl.int64) * width + column[None, :]
    sum_x = tl.load(x + at, mask=keep, other=0).to(tl.float32)
    sum_y = tl.load(y + at, mask=keep, other=0).to(tl.float32)
    if HAS_A:
        sum_x *= tl.load(a + column, mask=inside, other=0)[None, :]
    if HAS_B:
        sum_y *= tl.load(b + column, mask=inside, other=0)[None, :]
    stored = (sum_x + sum_y).to(total.dtype.element_ty)
    tl.store(total + at, stored, mask=keep)
    s = stored.to(tl.float32)
    root = tl.rsqrt(tl.sum(s * s, 1) / width + eps) * scale
    tl.store(normed + at, (s * root[:, None]).to(normed.dtype.element_ty), mask=keep)


@triton.jit  # type: ignore[untyped-decorator]
def _add_norm_backward_kernel(  # type: ignore[no-untyped-def]
    x, y, a, b, total, g_total, g_normed, dx, dy, da, db, rows, width, scale, eps,
    SHARE: tl.constexpr, HAS_A: tl.constexpr, HAS_B: tl.constexpr, M: tl.constexpr, W: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    column = tl.arange(0, W)
    inside = column < width
    a_W = tl.load(a + column, mask=inside, other=0) if HAS_A else tl.full((W,), 1.0, tl.float32)
    b_W = tl.load(b + column, mask=inside, other=0) if HAS_B else tl.full((W,), 1.0, tl.float32)
    da_W = tl.zeros((W,), dtype=tl.float32)
    db_W = tl.zeros((W,), dtype=tl.float32)
    for start in range(0, SHARE, M):
        row = program * SHARE + start + tl.arange(0, M)
        keep = (row < rows)[:, None] & inside[None, :]
        at = row[:, None].to(tl.int64) * width + column[None, :]
        s = tl.load(total + at, mask=keep, other=0).to(tl.float32)
        g = tl.load(g_normed + at, mask=keep, other=0).to(tl.float32) * scale
        root = tl.rsqrt(tl.sum(s * s, 1) / width + eps)[:, None]
        unit = s * root
        g = root * (g - unit * (tl.sum(g * unit, 1) / width)[:, None])
        g += tl.load(g_total + at, mask=keep, other=0).to(tl.float32)
        tl.store(dx + at, (g * a_W[None, :]).to(dx.dtype.element_ty), mask=keep)
        tl.store(dy + at, (g * b_W[None, :]).to(dy.dtype.element_ty), mask=keep)
        if HAS_A:
            da_W += tl.sum(g * tl.load(x + at, mask=keep, other=0).to(tl.float32), 0)
        if HAS_B:
            db_W += tl.sum(g * tl.load(y + at, mask=keep, other=0).to(tl.float32), 0)
    if HAS_A:
        tl.store(da + program * width + column, da_W, mask=inside)
    if HAS_B:
        tl.store(db + program * width + column, db_W, mask=inside)


@torch.library.custom_op("flyweight::add_norm", mutates_args=())
def _add_norm(
    x: Tensor, y: Tensor, a: Tensor | None, b: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    x, y = x.contiguous(), y.contiguous()
    width = x.shape[-1]
    rows = x.numel() // width
    total, normed = torch.empty_like(x), torch.empty_like(x)
    _add_norm_kernel[(triton.cdiv(rows, _ROWS),)](
        x, y, x if a is None else a, x if b is None else b, total, normed, rows, width, scale,
        NORM_EPS, a is not None, b is not None, _ROWS, triton.next_power_of_2(width),
    )  # fmt: skip
    return total, normed


@_add_norm.register_fake
def _(
    x: Tensor, y: Tensor, a: Tensor | None, b: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(x.shape)


@torch.library.custom_op("flyweight::add_norm_backward", mutates_args=())
def _add_norm_backward(
    x: Tensor,
    y: Tensor,
    a: Tensor | None,
    b: Tensor | None,
    total: Tensor,
    g_total: Tensor,
    g_normed: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x, y, total, g_total, g_normed = (t.contiguous() for t in (x, y, total, g_total, g_normed))
    width = x.shape[-1]
    rows = x.numel() // width
    share = triton.cdiv(triton.cdiv(rows, _PROGRAMS), _ROWS) * _ROWS
    programs = triton.cdiv(rows, share)
    dx, dy = torch.empty_like(x), torch.empty_like(y)
    da = x.new_empty(programs if a is not None else 0, width, dtype=torch.float32)
    db = x.new_empty(programs if b is not None else 0, width, dtype=torch.float32)
    _add_norm_backward_kernel[(programs,)](
        x, y, x if a is None else a, x if b is None else b, total, g_total, g_normed, dx, dy, da,
        db, rows, width, scale, NORM_EPS, share, a is not None, b is not None, _ROWS,
        triton.next_power_of_2(width), num_warps=2,
    )  # fmt: skip
    return dx, dy, da.sum(0), db.sum(0)


@_add_norm_backward.register_fake
def _(
    x: Tensor,
    y: Tensor,
    a: Tensor | None,
    b: Tensor | None,
    total: Tensor,
    g_total: Tensor,
    g_normed: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    vector = x.new_empty(x.shape[-1:], dtype=torch.float32)
    return x.new_empty(x.shape), y.new_empty(y.shape), vector, torch.empty_like(vector)


def _keep_sum(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    x, y, a, b, scale = inputs
    ctx.save_for_backward(x, y, *(vector for vector in (a, b) if vector is not None), output[0])
    ctx.has, ctx.scale = (a is not None, b is not None), scale


def _sum_backward(ctx, g_total, g_normed):  # type: ignore[no-untyped-def]
    x, y, *vectors, total = ctx.saved_tensors
    a = vectors.pop(0) if ctx.has[0] else None
    b = vectors.pop(0) if ctx.has[1] else None
    dx, dy, da, db = _add_norm_backward(x, y, a, b, total, g_total, g_normed, ctx.scale)
    return dx, dy, da if ctx.has[0] else None, db if ctx.has[1] else None, None


_add_norm.register_autograd(_sum_backward, setup_context=_keep_sum)


def add_norm(
    x_BTD: Tensor, y_BTD: Tensor, a_D: Tensor | None, b_D: Tensor | None, scale: float | None
) -> tuple[Tensor, Tensor]:
    """As :func:`flyweight.model.blocks.add_norm`; vectors are float32."""
    sum_BTD, normed_BTD = _add_norm(x_BTD, y_BTD, a_D, b_D, 1.0 if scale is None else scale)
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
    exclude_own_value=exclude_own_value,
    gate_heads=gate_heads,
)
"""What a model trains with on CUDA; needs head_dim to be a power of two."""

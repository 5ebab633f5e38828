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
from torch import Tensor

from flyweight.model.blocks import NORM_EPS, Operations

__all__ = ["FUSED", "add_norm", "exclude_own_value", "norm_rotate"]

_HEADS = 64
"""Heads that a program takes at once: a power of two, which the heads of a token divide."""
_ROWS = 4
_PROGRAMS = 1024
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
        triton.next_power_of_2(width),
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


@triton.jit  # type: ignore[untyped-decorator]
def _angles(cos, sin, row, keep, positions, N: tl.constexpr, K: tl.constexpr, R: tl.constexpr):  # type: ignore[no-untyped-def]
    """Other half of each dimension's pair, its cosine, and its sine with the sign for turning."""
    lane = tl.arange(0, K)
    partner = tl.where(lane < R, lane + R, tl.where(lane < 2 * R, lane - R, lane))
    turns = (lane < 2 * R)[None, :] & keep
    spot = ((row // N) % positions)[:, None] * R + (lane % R)[None, :]
    c = tl.load(cos + spot, mask=turns, other=1.0)
    s = tl.load(sin + spot, mask=turns, other=0.0)
    return partner, c, tl.where((lane < R)[None, :], s, -s)


@triton.jit  # type: ignore[untyped-decorator]
def _norm_rotate_kernel(  # type: ignore[no-untyped-def]
    x, cos, sin, gain, out, rows, positions, eps,
    N: tl.constexpr, K: tl.constexpr, R: tl.constexpr, M: tl.constexpr, HAS_GAIN: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * M + tl.arange(0, M)
    lane = tl.arange(0, K)
    keep = (row < rows)[:, None]
    at = row[:, None].to(tl.int64) * K
    partner, c, s = _angles(cos, sin, row, keep, positions, N, K, R)
    mine = tl.load(x + at + lane[None, :], mask=keep, other=0).to(tl.float32)
    other = tl.load(x + at + partner[None, :], mask=keep, other=0).to(tl.float32)
    root = tl.rsqrt(tl.sum(mine * mine, 1) / K + eps)
    if HAS_GAIN:
        root *= tl.load(gain + row % N)
    turned = (mine * c + other * s) * root[:, None]
    tl.store(out + at + lane[None, :], turned.to(out.dtype.element_ty), mask=keep)


@triton.jit  # type: ignore[untyped-decorator]
def _norm_rotate_backward_kernel(  # type: ignore[no-untyped-def]
    x, cos, sin, gain, g, dx, dgain, rows, positions, eps,
    N: tl.constexpr, K: tl.constexpr, R: tl.constexpr, M: tl.constexpr, HAS_GAIN: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * M + tl.arange(0, M)
    lane = tl.arange(0, K)
    keep = (row < rows)[:, None]
    at = row[:, None].to(tl.int64) * K
    partner, c, s = _angles(cos, sin, row, keep, positions, N, K, R)
    mine = tl.load(x + at + lane[None, :], mask=keep, other=0).to(tl.float32)
    g_mine = tl.load(g + at + lane[None, :], mask=keep, other=0).to(tl.float32)
    g_other = tl.load(g + at + partner[None, :], mask=keep, other=0).to(tl.float32)
    root = tl.rsqrt(tl.sum(mine * mine, 1) / K + eps)
    unit = mine * root[:, None]
    back = g_mine * c - g_other * s
    along = tl.sum(back * unit, 1)  # also the gain's gradient: turning keeps products
    if HAS_GAIN:
        heads = tl.sum(tl.reshape(along, (M // N, N)), 0)
        tl.store(dgain + tl.program_id(0) * N + tl.arange(0, N), heads)
        root *= tl.load(gain + row % N)
    d = root[:, None] * (back - unit * (along / K)[:, None])
    tl.store(dx + at + lane[None, :], d.to(dx.dtype.element_ty), mask=keep)


@torch.library.custom_op("flyweight::norm_rotate", mutates_args=())
def _norm_rotate(x: Tensor, cos: Tensor, sin: Tensor, gain: Tensor | None) -> Tensor:
    x = x.contiguous()
    heads, width = x.shape[2:]
    rows = x.numel() // width
    out = torch.empty_like(x)
    _norm_rotate_kernel[(triton.cdiv(rows, _HEADS),)](
        x, cos, sin, x if gain is None else gain, out, rows, cos.shape[:-1].numel(), NORM_EPS,
        heads, width, cos.shape[-1], _HEADS, gain is not None,
    )  # fmt: skip
    return out


@_norm_rotate.register_fake
def _(x: Tensor, cos: Tensor, sin: Tensor, gain: Tensor | None) -> Tensor:
    return x.new_empty(x.shape)


@torch.library.custom_op("flyweight::norm_rotate_backward", mutates_args=())
def _norm_rotate_backward(
    x: Tensor, cos: Tensor, sin: Tensor, gain: Tensor | None, g: Tensor
) -> tuple[Tensor, Tensor]:
    x, g = x.contiguous(), g.contiguous()
    heads, width = x.shape[2:]
    rows = x.numel() // width
    programs = triton.cdiv(rows, _HEADS)
    dx = torch.empty_like(x)
    dgain = x.new_empty(0 if gain is None else programs, heads, dtype=torch.float32)
    _norm_rotate_backward_kernel[(programs,)](
        x, cos, sin, x if gain is None else gain, g, dx, dgain, rows, cos.shape[:-1].numel(),
        NORM_EPS, heads, width, cos.shape[-1], _HEADS, gain is not None,
    )  # fmt: skip
    return dx, dgain.sum(0)


@_norm_rotate_backward.register_fake
def _(x: Tensor, cos: Tensor, sin: Tensor, gain: Tensor | None, g: Tensor) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(x.shape[2:3], dtype=torch.float32)


def _keep_turned(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    x, cos, sin, gain = inputs
    ctx.save_for_backward(x, cos, sin, *(() if gain is None else (gain,)))


def _turn_backward(ctx, g):  # type: ignore[no-untyped-def]
    x, cos, sin, *gain = ctx.saved_tensors
    dx, dgain = _norm_rotate_backward(x, cos, sin, gain[0] if gain else None, g)
    return dx, None, None, dgain if gain else None


_norm_rotate.register_autograd(_turn_backward, setup_context=_keep_turned)


def norm_rotate(x_BTNK: Tensor, cos: Tensor, sin: Tensor, gain_N: Tensor | None) -> Tensor:
    """As :func:`flyweight.model.blocks.norm_rotate`; tables and gain are float32."""
    out_BTNK: Tensor = _norm_rotate(x_BTNK, cos.contiguous(), sin.contiguous(), gain_N)
    return out_BTNK


@triton.jit  # type: ignore[untyped-decorator]
def _exclude_kernel(  # type: ignore[no-untyped-def]
    y, v, out, rows, K: tl.constexpr, SHARED: tl.constexpr, M: tl.constexpr
):
    row = tl.program_id(0) * M + tl.arange(0, M)
    lane = tl.arange(0, K)[None, :]
    keep = (row < rows)[:, None]
    at = row[:, None].to(tl.int64) * K
    value = tl.load(v + at + lane, mask=keep, other=0).to(tl.float32)
    inverse = 1.0 / tl.maximum(tl.sum(value * value, 1), 1e-24)
    for i in tl.static_range(SHARED):
        spot = at * SHARED + i * K + lane
        mine = tl.load(y + spot, mask=keep, other=0).to(tl.float32)
        along = (tl.sum(mine * value, 1) * inverse)[:, None]
        tl.store(out + spot, (mine - along * value).to(out.dtype.element_ty), mask=keep)


@triton.jit  # type: ignore[untyped-decorator]
def _exclude_backward_kernel(  # type: ignore[no-untyped-def]
    y, v, g, dy, dv, rows, K: tl.constexpr, SHARED: tl.constexpr, M: tl.constexpr
):
    row = tl.program_id(0) * M + tl.arange(0, M)
    lane = tl.arange(0, K)[None, :]
    keep = (row < rows)[:, None]
    at = row[:, None].to(tl.int64) * K
    value = tl.load(v + at + lane, mask=keep, other=0).to(tl.float32)
    inverse = 1.0 / tl.maximum(tl.sum(value * value, 1), 1e-24)
    total = tl.zeros((M, K), dtype=tl.float32)
    for i in tl.static_range(SHARED):
        spot = at * SHARED + i * K + lane
        mine = tl.load(y + spot, mask=keep, other=0).to(tl.float32)
        back = tl.load(g + spot, mask=keep, other=0).to(tl.float32)
        along = (tl.sum(mine * value, 1) * inverse)[:, None]
        along_g = (tl.sum(back * value, 1) * inverse)[:, None]
        tl.store(dy + spot, (back - along_g * value).to(dy.dtype.element_ty), mask=keep)
        total += 2 * along * along_g * value - along * back - along_g * mine
    tl.store(dv + at + lane, total.to(dv.dtype.element_ty), mask=keep)


@torch.library.custom_op("flyweight::exclude_own_value", mutates_args=())
def _exclude(y: Tensor, v: Tensor) -> Tensor:
    y, v = y.contiguous(), v.contiguous()
    rows, width = v.numel() // v.shape[-1], v.shape[-1]
    out = torch.empty_like(y)
    _exclude_kernel[(triton.cdiv(rows, _HEADS),)](
        y, v, out, rows, width, y.shape[2] // v.shape[2], _HEADS
    )
    return out


@_exclude.register_fake
def _(y: Tensor, v: Tensor) -> Tensor:
    return y.new_empty(y.shape)


@torch.library.custom_op("flyweight::exclude_own_value_backward", mutates_args=())
def _exclude_backward(y: Tensor, v: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    y, v, g = y.contiguous(), v.contiguous(), g.contiguous()
    rows, width, dy, dv = (
        v.numel() // v.shape[-1],
        v.shape[-1],
        torch.empty_like(y),
        torch.empty_like(v),
    )
    _exclude_backward_kernel[(triton.cdiv(rows, _HEADS),)](
        y, v, g, dy, dv, rows, width, y.shape[2] // v.shape[2], _HEADS
    )
    return dy, dv


@_exclude_backward.register_fake
def _(y: Tensor, v: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    return y.new_empty(y.shape), v.new_empty(v.shape)


def _keep_excluded(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    ctx.save_for_backward(*inputs)


def _excluded_backward(ctx, g):  # type: ignore[no-untyped-def]
    return _exclude_backward(*ctx.saved_tensors, g)


_exclude.register_autograd(_excluded_backward, setup_context=_keep_excluded)


def exclude_own_value(y_BTHK: Tensor, v_BTGK: Tensor) -> Tensor:
    """As :func:`flyweight.model.blocks.exclude_own_value`."""
    out_BTHK: Tensor = _exclude(y_BTHK, v_BTGK)
    return out_BTHK


FUSED = Operations(add_norm=add_norm, norm_rotate=norm_rotate, exclude_own_value=exclude_own_value)
"""What a model trains with on CUDA; needs head_dim and the numbers of heads to be powers of two."""

"""Triton kernels around attention: queries, keys and values from one product; XSA.

Every kernel reads and writes its tensors once, computes in float32 and rounds once.

Shapes: B sequences, T tokens, D model_dim, C columns of values, H query heads, G key and value
heads, K head_dim, R half of rope_dims.
"""

from __future__ import annotations

import torch
import triton  # type: ignore[import-untyped, import-not-found, unused-ignore]
import triton.language as tl  # type: ignore[import-untyped, import-not-found, unused-ignore]
from torch import Tensor, nn

from flyweight.model.attention import Positions
from flyweight.model.blocks import NORM_EPS

__all__ = ["exclude_own_value", "project"]

_HEADS = 16
"""Heads that a program takes at once, if those of one token are not more."""


@triton.jit  # type: ignore[untyped-decorator]
def _placed(token, head, keep, H: tl.constexpr, G: tl.constexpr, K: tl.constexpr):  # type: ignore[no-untyped-def]
    """Which rows are queries, keys and values, and where each begins in those three and before."""
    is_q = keep & (head < H)
    is_k = keep & (head >= H) & (head < H + G)
    is_v = keep & (head >= H + G)
    long = token.to(tl.int64)
    at = (long * (H + 2 * G) + head) * K
    at_q = (long * H + head) * K
    at_k = (long * G + head - H) * K
    return is_q, is_k, is_v, at, at_q, at_k, at_k - G * K


@triton.jit  # type: ignore[untyped-decorator]
def _angles(cos, sin, token, turns, positions, K: tl.constexpr, R: tl.constexpr):  # type: ignore[no-untyped-def]
    """Other half of each dimension's pair, its cosine, and its sine with the sign for turning."""
    lane = tl.arange(0, K)
    partner = tl.where(lane < R, lane + R, tl.where(lane < 2 * R, lane - R, lane))
    turns = (lane < 2 * R)[None, :] & turns[:, None]
    spot = (token % positions)[:, None] * R + (lane % R)[None, :]
    c = tl.load(cos + spot, mask=turns, other=1.0)
    s = tl.load(sin + spot, mask=turns, other=0.0)
    return partner, c, tl.where((lane < R)[None, :], s, -s)


@triton.jit  # type: ignore[untyped-decorator]
def _split_kernel(  # type: ignore[no-untyped-def]
    qkv, cos, sin, gain, q, k, v, tokens, positions, eps,
    H: tl.constexpr, G: tl.constexpr, K: tl.constexpr, R: tl.constexpr,
    N: tl.constexpr, M: tl.constexpr,
):  # fmt: skip
    row = tl.arange(0, M * N)
    token, head = tl.program_id(0) * M + row // N, row % N
    keep = (token < tokens) & (head < H + 2 * G)
    is_q, is_k, is_v, at, at_q, at_k, at_v = _placed(token, head, keep, H, G, K)
    lane = tl.arange(0, K)[None, :]
    partner, c, s = _angles(cos, sin, token, is_q | is_k, positions, K, R)
    mine = tl.load(qkv + at[:, None] + lane, mask=keep[:, None], other=0)
    other = tl.load(qkv + at[:, None] + partner[None, :], mask=(is_q | is_k)[:, None], other=0)
    wide = mine.to(tl.float32)
    root = tl.rsqrt(tl.sum(wide * wide, 1) / K + eps) * tl.load(gain + head, mask=is_q, other=1.0)
    turned = ((wide * c + other.to(tl.float32) * s) * root[:, None]).to(q.dtype.element_ty)
    tl.store(q + at_q[:, None] + lane, turned, mask=is_q[:, None])
    tl.store(k + at_k[:, None] + lane, turned, mask=is_k[:, None])
    tl.store(v + at_v[:, None] + lane, mine, mask=is_v[:, None])


@triton.jit  # type: ignore[untyped-decorator]
def _split_backward_kernel(  # type: ignore[no-untyped-def]
    qkv, cos, sin, gain, gq, gk, gv, dqkv, dgain, tokens, positions, eps,
    H: tl.constexpr, G: tl.constexpr, K: tl.constexpr, R: tl.constexpr,
    N: tl.constexpr, M: tl.constexpr,
):  # fmt: skip
    row = tl.arange(0, M * N)
    token, head = tl.program_id(0) * M + row // N, row % N
    keep = (token < tokens) & (head < H + 2 * G)
    is_q, is_k, is_v, at, at_q, at_k, at_v = _placed(token, head, keep, H, G, K)
    lane = tl.arange(0, K)[None, :]
    partner, c, s = _angles(cos, sin, token, is_q | is_k, positions, K, R)
    partner = partner[None, :]
    mine = tl.load(qkv + at[:, None] + lane, mask=(is_q | is_k)[:, None], other=0).to(tl.float32)
    g = tl.load(gq + at_q[:, None] + lane, mask=is_q[:, None], other=0).to(tl.float32)
    g += tl.load(gk + at_k[:, None] + lane, mask=is_k[:, None], other=0).to(tl.float32)
    turned = tl.load(gq + at_q[:, None] + partner, mask=is_q[:, None], other=0).to(tl.float32)
    turned += tl.load(gk + at_k[:, None] + partner, mask=is_k[:, None], other=0).to(tl.float32)
    root = tl.rsqrt(tl.sum(mine * mine, 1) / K + eps)
    unit = mine * root[:, None]
    back = g * c - turned * s
    along = tl.sum(back * unit, 1)  # also the gain's gradient: turning keeps products
    column = tl.arange(0, N)
    heads = tl.sum(tl.reshape(along, (M, N)), 0)
    tl.store(dgain + tl.program_id(0) * H + column, heads, mask=column < H)
    root *= tl.load(gain + head, mask=is_q, other=1.0)
    d = (root[:, None] * (back - unit * (along / K)[:, None])).to(dqkv.dtype.element_ty)
    passed = tl.load(gv + at_v[:, None] + lane, mask=is_v[:, None], other=0)
    d = tl.where(is_v[:, None], passed, d)
    tl.store(dqkv + at[:, None] + lane, d, mask=keep[:, None])


@torch.library.custom_op("flyweight::split", mutates_args=())
def _split(
    qkv: Tensor, cos: Tensor, sin: Tensor, gain: Tensor, width: int
) -> tuple[Tensor, Tensor, Tensor]:
    qkv = qkv.contiguous()
    q, k, v = _split_shapes(qkv, gain, width)
    tokens, positions, *sizes = _split_sizes(qkv, cos, gain, width)
    _split_kernel[(triton.cdiv(tokens, sizes[-1]),)](
        qkv, cos, sin, gain, q, k, v, tokens, positions, NORM_EPS, *sizes, num_warps=2
    )
    return q, k, v


def _split_shapes(qkv: Tensor, gain: Tensor, width: int) -> tuple[Tensor, Tensor, Tensor]:
    heads, rows = gain.numel(), qkv.shape[:2]
    groups = (qkv.shape[2] // width - heads) // 2
    q, k = (qkv.new_empty(*rows, n, width) for n in (heads, groups))
    return q, k, qkv.new_empty(*rows, groups * width)


def _split_sizes(qkv: Tensor, cos: Tensor, gain: Tensor, width: int) -> list[int]:
    """Tokens and positions; query heads, groups, width, turning pairs, heads and tokens at once."""
    heads, columns = gain.numel(), qkv.shape[2] // width
    at_once = triton.next_power_of_2(columns)
    tokens, positions = qkv.shape[:2].numel(), cos.shape[:-1].numel()
    share = max(1, _HEADS // at_once)
    return [tokens, positions, heads, (columns - heads) // 2, width, cos.shape[-1], at_once, share]


@_split.register_fake
def _(
    qkv: Tensor, cos: Tensor, sin: Tensor, gain: Tensor, width: int
) -> tuple[Tensor, Tensor, Tensor]:
    return _split_shapes(qkv, gain, width)


@torch.library.custom_op("flyweight::split_backward", mutates_args=())
def _split_backward(
    qkv: Tensor, cos: Tensor, sin: Tensor, gain: Tensor, gq: Tensor, gk: Tensor, gv: Tensor
) -> tuple[Tensor, Tensor]:
    qkv, gq, gk, gv = (t.contiguous() for t in (qkv, gq, gk, gv))
    tokens, positions, *sizes = _split_sizes(qkv, cos, gain, gq.shape[-1])
    programs = triton.cdiv(tokens, sizes[-1])
    dqkv = torch.empty_like(qkv)
    dgain = gain.new_empty(programs, gain.numel())
    _split_backward_kernel[(programs,)](
        qkv, cos, sin, gain, gq, gk, gv, dqkv, dgain, tokens, positions, NORM_EPS, *sizes,
        num_warps=1,
    )  # fmt: skip
    return dqkv, dgain.sum(0)


@_split_backward.register_fake
def _(
    qkv: Tensor, cos: Tensor, sin: Tensor, gain: Tensor, gq: Tensor, gk: Tensor, gv: Tensor
) -> tuple[Tensor, Tensor]:
    return qkv.new_empty(qkv.shape), torch.empty_like(gain)


def _keep_whole(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    ctx.save_for_backward(*inputs[:4])


def _splitting_backward(ctx, gq, gk, gv):  # type: ignore[no-untyped-def]
    dqkv, dgain = _split_backward(*ctx.saved_tensors, gq, gk, gv)
    return dqkv, None, None, dgain, None


_split.register_autograd(_splitting_backward, setup_context=_keep_whole)


def project(
    x_BTD: Tensor,
    c_q: nn.Linear,
    c_k: nn.Linear,
    c_v: nn.Linear,
    rope: Positions,
    gain_H: Tensor,
    head_dim: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """As :func:`flyweight.model.blocks.project`, in one product; the gain is float32."""
    weight = torch.cat((c_q.weight, c_k.weight, c_v.weight))
    qkv_BTC = nn.functional.linear(x_BTD, weight)
    cos, sin = rope.cos.contiguous(), rope.sin.contiguous()
    q_BTHK, k_BTGK, v_BTC = _split(qkv_BTC, cos, sin, gain_H, head_dim)
    return q_BTHK, k_BTGK, v_BTC


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

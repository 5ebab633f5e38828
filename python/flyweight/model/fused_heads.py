"""Triton kernels around attention: queries, keys, values and gates from one product; XSA.

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

__all__ = ["exclude_own_value", "gate_heads", "project"]

_HEADS = 16
"""Heads that a program takes at once, if those of one token are not more."""


@triton.jit  # type: ignore[untyped-decorator]
def _placed(token, head, keep, H: tl.constexpr, G: tl.constexpr, K: tl.constexpr, E: tl.constexpr):  # type: ignore[no-untyped-def]
    """Which rows are queries, keys and values, and where each begins in those three and before."""
    is_q = keep & (head < H)
    is_k = keep & (head >= H) & (head < H + G)
    is_v = keep & (head >= H + G)
    long = token.to(tl.int64)
    at = long * ((H + 2 * G) * K + E) + head * K
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
    qkv, cos, sin, gain, q, k, v, extra, roots, tokens, positions, eps,
    H: tl.constexpr, G: tl.constexpr, K: tl.constexpr, E: tl.constexpr, R: tl.constexpr,
    N: tl.constexpr, M: tl.constexpr,
):  # fmt: skip
    row = tl.arange(0, M * N)
    token, head = tl.program_id(0) * M + row // N, row % N
    keep = (token < tokens) & (head < H + 2 * G)
    is_q, is_k, is_v, at, at_q, at_k, at_v = _placed(token, head, keep, H, G, K, E)
    lane = tl.arange(0, K)[None, :]
    partner, c, s = _angles(cos, sin, token, is_q | is_k, positions, K, R)
    mine = tl.load(qkv + at[:, None] + lane, mask=keep[:, None], other=0)
    other = tl.load(qkv + at[:, None] + partner[None, :], mask=(is_q | is_k)[:, None], other=0)
    wide = mine.to(tl.float32)
    root = tl.rsqrt(tl.sum(wide * wide, 1) / K + eps)
    tl.store(roots + token * (H + G) + head, root, mask=is_q | is_k)
    root *= tl.load(gain + head, mask=is_q, other=1.0)
    turned = ((wide * c + other.to(tl.float32) * s) * root[:, None]).to(q.dtype.element_ty)
    tl.store(q + at_q[:, None] + lane, turned, mask=is_q[:, None])
    tl.store(k + at_k[:, None] + lane, turned, mask=is_k[:, None])
    tl.store(v + at_v[:, None] + lane, mine, mask=is_v[:, None])
    if E:  # as many as there are query heads
        is_extra = keep & (head < E)
        behind = at + (H + 2 * G - head) * K + head
        passed = tl.load(qkv + behind, mask=is_extra, other=0)
        tl.store(extra + token * E + head, passed, mask=is_extra)


@triton.jit  # type: ignore[untyped-decorator]
def _split_backward_kernel(  # type: ignore[no-untyped-def]
    q, k, roots, cos, sin, gain, gq, gk, gv, gextra, dqkv, dgain, tokens, positions,
    H: tl.constexpr, G: tl.constexpr, K: tl.constexpr, E: tl.constexpr, R: tl.constexpr,
    N: tl.constexpr, M: tl.constexpr,
):  # fmt: skip
    row = tl.arange(0, M * N)
    token, head = tl.program_id(0) * M + row // N, row % N
    keep = (token < tokens) & (head < H + 2 * G)
    is_q, is_k, is_v, at, at_q, at_k, at_v = _placed(token, head, keep, H, G, K, E)
    lane = tl.arange(0, K)[None, :]
    partner, c, s = _angles(cos, sin, token, is_q | is_k, positions, K, R)
    here_q, there_q = at_q[:, None] + lane, at_q[:, None] + partner[None, :]
    here_k, there_k = at_k[:, None] + lane, at_k[:, None] + partner[None, :]
    is_q2, is_k2 = is_q[:, None], is_k[:, None]
    own_gain = tl.load(gain + head, mask=is_q, other=1.0)
    # What came out, without its gain, is the unit vector turned.
    is_zero = own_gain == 0
    inverse = tl.where(is_zero, 0.0, 1.0 / tl.where(is_zero, 1.0, own_gain))[:, None]
    y = tl.load(q + here_q, mask=is_q2, other=0) + tl.load(k + here_k, mask=is_k2, other=0)
    y_there = tl.load(q + there_q, mask=is_q2, other=0) + tl.load(k + there_k, mask=is_k2, other=0)
    g = tl.load(gq + here_q, mask=is_q2, other=0) + tl.load(gk + here_k, mask=is_k2, other=0)
    g_there = tl.load(gq + there_q, mask=is_q2, other=0)
    g_there += tl.load(gk + there_k, mask=is_k2, other=0)
    y, y_there = y.to(tl.float32) * inverse, y_there.to(tl.float32) * inverse
    g, g_there = g.to(tl.float32), g_there.to(tl.float32)
    along = tl.sum(g * y, 1)  # also the gain's gradient
    column = tl.arange(0, N)
    heads = tl.sum(tl.reshape(along, (M, N)), 0)
    tl.store(dgain + tl.program_id(0) * H + column, heads, mask=column < H)
    root = tl.load(roots + token * (H + G) + head, mask=is_q | is_k, other=0) * own_gain
    back, unit = g * c - g_there * s, y * c - y_there * s
    d = (root[:, None] * (back - unit * (along / K)[:, None])).to(dqkv.dtype.element_ty)
    passed = tl.load(gv + at_v[:, None] + lane, mask=is_v[:, None], other=0)
    d = tl.where(is_v[:, None], passed, d)
    tl.store(dqkv + at[:, None] + lane, d, mask=keep[:, None])
    if E:
        is_extra = keep & (head < E)
        behind = at + (H + 2 * G - head) * K + head
        opened = tl.load(gextra + token * E + head, mask=is_extra, other=0)
        tl.store(dqkv + behind, opened, mask=is_extra)


@torch.library.custom_op("flyweight::split", mutates_args=())
def _split(
    qkv: Tensor, cos: Tensor, sin: Tensor, gain: Tensor, width: int, gates: int
) -> list[Tensor]:
    qkv = qkv.contiguous()
    q, k, v, extra, roots = _split_shapes(qkv, gain, width, gates)
    tokens, positions, *sizes = _split_sizes(q, k, cos, gates)
    _split_kernel[(triton.cdiv(tokens, sizes[-1]),)](
        qkv, cos, sin, gain, q, k, v, extra, roots, tokens, positions, NORM_EPS, *sizes,
        num_warps=2,
    )  # fmt: skip
    return [q, k, v, extra, roots]


def _split_shapes(qkv: Tensor, gain: Tensor, width: int, gates: int) -> list[Tensor]:
    """Queries, keys, values, gates; for each head of the first two 1 / its root mean square."""
    heads, rows = gain.numel(), qkv.shape[:2]
    groups = (qkv.shape[2] // width - heads) // 2
    q, k = (qkv.new_empty(*rows, n, width) for n in (heads, groups))
    v, extra = (qkv.new_empty(*rows, columns) for columns in (groups * width, gates))
    return [q, k, v, extra, qkv.new_empty(*rows, heads + groups, dtype=torch.float32)]


def _split_sizes(q: Tensor, k: Tensor, cos: Tensor, gates: int) -> list[int]:
    """Tokens and positions; what the kernels take as constants."""
    heads, groups, width = q.shape[2], k.shape[2], q.shape[3]
    at_once = triton.next_power_of_2(heads + 2 * groups)
    tokens, positions = q.shape[:2].numel(), cos.shape[:-1].numel()
    share = max(1, _HEADS // at_once)
    return [tokens, positions, heads, groups, width, gates, cos.shape[-1], at_once, share]


@_split.register_fake
def _(qkv: Tensor, cos: Tensor, sin: Tensor, gain: Tensor, width: int, gates: int) -> list[Tensor]:
    return _split_shapes(qkv, gain, width, gates)


@torch.library.custom_op("flyweight::split_backward", mutates_args=())
def _split_backward(
    kept: list[Tensor], cos: Tensor, sin: Tensor, gain: Tensor, grads: list[Tensor]
) -> tuple[Tensor, Tensor]:
    q, k, roots, gq, gk, gv, gextra = (t.contiguous() for t in (*kept, *grads))
    tokens, positions, *sizes = _split_sizes(q, k, cos, gextra.shape[-1])
    programs = triton.cdiv(tokens, sizes[-1])
    dqkv = _whole(q, k, gextra)
    dgain = gain.new_empty(programs, gain.numel())
    _split_backward_kernel[(programs,)](
        q, k, roots, cos, sin, gain, gq, gk, gv, gextra, dqkv, dgain, tokens, positions, *sizes,
        num_warps=1,
    )  # fmt: skip
    return dqkv, dgain.sum(0)


def _whole(q: Tensor, k: Tensor, extra: Tensor) -> Tensor:
    columns = (q.shape[2] + 2 * k.shape[2]) * q.shape[3] + extra.shape[-1]
    return q.new_empty(*q.shape[:2], columns)


@_split_backward.register_fake
def _(
    kept: list[Tensor], cos: Tensor, sin: Tensor, gain: Tensor, grads: list[Tensor]
) -> tuple[Tensor, Tensor]:
    return _whole(kept[0], kept[1], grads[3]), torch.empty_like(gain)


def _keep_turned(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    q, k, _, _, roots = output
    ctx.save_for_backward(q, k, roots, *inputs[1:4])


def _splitting_backward(ctx, grads):  # type: ignore[no-untyped-def]
    *kept, cos, sin, gain = ctx.saved_tensors
    dqkv, dgain = _split_backward(kept, cos, sin, gain, grads[:4])
    return dqkv, None, None, dgain, None, None


_split.register_autograd(_splitting_backward, setup_context=_keep_turned)


def project(
    x_BTD: Tensor,
    c_q: nn.Linear,
    c_k: nn.Linear,
    c_v: nn.Linear,
    gate: tuple[Tensor, Tensor] | None,
    rope: Positions,
    gain_H: Tensor,
    head_dim: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """As :func:`flyweight.model.blocks.project`, in one product; the gain is float32."""
    weights = [c_q.weight, c_k.weight, c_v.weight, *(() if gate is None else gate[:1])]
    qkv_BTC = nn.functional.linear(x_BTD, torch.cat(weights))
    cos, sin = rope.cos.contiguous(), rope.sin.contiguous()
    gates = 0 if gate is None else len(gate[0])
    q_BTHK, k_BTGK, v_BTC, gate_BTH, _ = _split(qkv_BTC, cos, sin, gain_H, head_dim, gates)
    return q_BTHK, k_BTGK, v_BTC, None if gate is None else gate_BTH + gate[1]


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


def _keep_inputs(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    ctx.save_for_backward(*inputs)


def _excluded_backward(ctx, g):  # type: ignore[no-untyped-def]
    return _exclude_backward(*ctx.saved_tensors, g)


_exclude.register_autograd(_excluded_backward, setup_context=_keep_inputs)


def exclude_own_value(y_BTHK: Tensor, v_BTGK: Tensor) -> Tensor:
    """As :func:`flyweight.model.blocks.exclude_own_value`."""
    out_BTHK: Tensor = _exclude(y_BTHK, v_BTGK)
    return out_BTHK


@triton.jit  # type: ignore[untyped-decorator]
def _gate_kernel(y, gate, out, rows, K: tl.constexpr, M: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0) * M + tl.arange(0, M)
    keep = row < rows
    at = row[:, None].to(tl.int64) * K + tl.arange(0, K)[None, :]
    share = tl.sigmoid(tl.load(gate + row, mask=keep, other=0).to(tl.float32))
    mine = tl.load(y + at, mask=keep[:, None], other=0).to(tl.float32)
    tl.store(out + at, (mine * share[:, None]).to(out.dtype.element_ty), mask=keep[:, None])


@triton.jit  # type: ignore[untyped-decorator]
def _gate_backward_kernel(  # type: ignore[no-untyped-def]
    y, gate, g, dy, dgate, rows, K: tl.constexpr, M: tl.constexpr
):
    row = tl.program_id(0) * M + tl.arange(0, M)
    keep = row < rows
    at = row[:, None].to(tl.int64) * K + tl.arange(0, K)[None, :]
    share = tl.sigmoid(tl.load(gate + row, mask=keep, other=0).to(tl.float32))
    mine = tl.load(y + at, mask=keep[:, None], other=0).to(tl.float32)
    back = tl.load(g + at, mask=keep[:, None], other=0).to(tl.float32)
    tl.store(dy + at, (back * share[:, None]).to(dy.dtype.element_ty), mask=keep[:, None])
    slope = tl.sum(mine * back, 1) * share * (1 - share)
    tl.store(dgate + row, slope.to(dgate.dtype.element_ty), mask=keep)


@torch.library.custom_op("flyweight::gate_heads", mutates_args=())
def _gate(y: Tensor, gate: Tensor) -> Tensor:
    y, gate = y.contiguous(), gate.contiguous()
    out = torch.empty_like(y)
    rows = gate.numel()
    _gate_kernel[(triton.cdiv(rows, _HEADS),)](y, gate, out, rows, y.shape[-1], _HEADS)
    return out


@_gate.register_fake
def _(y: Tensor, gate: Tensor) -> Tensor:
    return y.new_empty(y.shape)


@torch.library.custom_op("flyweight::gate_heads_backward", mutates_args=())
def _gate_backward(y: Tensor, gate: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    y, gate, g = y.contiguous(), gate.contiguous(), g.contiguous()
    dy, dgate = torch.empty_like(y), torch.empty_like(gate)
    rows = gate.numel()
    _gate_backward_kernel[(triton.cdiv(rows, _HEADS),)](
        y, gate, g, dy, dgate, rows, y.shape[-1], _HEADS
    )
    return dy, dgate


@_gate_backward.register_fake
def _(y: Tensor, gate: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    return y.new_empty(y.shape), gate.new_empty(gate.shape)


def _gated_backward(ctx, g):  # type: ignore[no-untyped-def]
    return _gate_backward(*ctx.saved_tensors, g)


_gate.register_autograd(_gated_backward, setup_context=_keep_inputs)


def gate_heads(y_BTHK: Tensor, gate_BTH: Tensor) -> Tensor:
    """As :func:`flyweight.model.blocks.gate_heads`."""
    out_BTHK: Tensor = _gate(y_BTHK, gate_BTH)
    return out_BTHK

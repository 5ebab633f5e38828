"""Attention and MLP, and the block that adds both to the residual stream.

Shapes: B sequences, T tokens, D model_dim, H query heads, G key and value heads, K head_dim,
R half of rope_dims, C width of the values (G times K), F mlp_hidden, S positions in a cache.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from flyweight.model.attention import Positions, attend
from flyweight.model.config import ModelConfig

__all__ = ["Block", "Extend", "rms_norm", "scaled"]

Extend = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Takes keys and values (B, G, T, K) of new positions, gives those of all positions so far."""

NORM_EPS = 2.0**-23  # that of float32, whatever the dtype: the default differs between versions


def rms_norm(x: Tensor) -> Tensor:
    """Divide by the root mean square over the last axis, which has no learned weight here."""
    return nn.functional.rms_norm(x, x.shape[-1:], eps=NORM_EPS).to(x.dtype)


def scaled(x: Tensor, scale: Tensor | float | None) -> Tensor:
    """Multiply in the dtype of ``x``; None is a feature that is off."""
    if scale is None:
        return x
    return x * (scale.to(x.dtype) if isinstance(scale, Tensor) else scale)


def add_norm(
    x_BTD: Tensor, y_BTD: Tensor, mix_2D: Tensor | None, scale: float | None
) -> tuple[Tensor, Tensor]:
    """``mix[0] x + mix[1] y``, and that normalized and scaled; None is 1."""
    a_D, b_D = (None, None) if mix_2D is None else mix_2D
    sum_BTD = scaled(x_BTD, a_D) + scaled(y_BTD, b_D)
    return sum_BTD, scaled(rms_norm(sum_BTD), scale)


def norm_rotate(x_BTNK: Tensor, cos: Tensor, sin: Tensor, gain_N: Tensor | None) -> Tensor:
    """Normalize each head, turn its first 2R dimensions, pairs (i, i + R), and scale it.

    Parameters
    ----------
    cos, sin : (T, R), or (B, T, R) where positions differ between sequences
    """
    cos, sin = (table.to(x_BTNK.dtype).unsqueeze(-2) for table in (cos, sin))
    half = cos.shape[-1]
    sizes = [half, half, x_BTNK.shape[-1] - 2 * half]
    a, b, rest = torch.split(rms_norm(x_BTNK), sizes, dim=-1)
    turned_BTNK = torch.cat((a * cos + b * sin, b * cos - a * sin, rest), dim=-1)
    return scaled(turned_BTNK, None if gain_N is None else gain_N[:, None])


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
    """Queries (B, T, H, K) and keys (B, T, G, K) as attention takes them, values (B, T, C), gates.

    Parameters
    ----------
    gate : weight (H, D) and bias (H,) of what opens the gates (B, T, H), if there are any
    """
    q_BTHK, k_BTGK = (torch.unflatten(c(x_BTD), 2, (-1, head_dim)) for c in (c_q, c_k))
    q_BTHK = norm_rotate(q_BTHK, rope.cos, rope.sin, gain_H)
    k_BTGK = norm_rotate(k_BTGK, rope.cos, rope.sin, None)
    gate_BTH = None if gate is None else nn.functional.linear(x_BTD, *gate)
    return q_BTHK, k_BTGK, c_v(x_BTD), gate_BTH


def gate_heads(y_BTHK: Tensor, gate_BTH: Tensor) -> Tensor:
    """Each head's output times the sigmoid of its gate."""
    return y_BTHK * torch.sigmoid(gate_BTH).to(y_BTHK.dtype).unsqueeze(-1)


def scaled_linear(x: Tensor, linear: nn.Linear, scale_D: Tensor | None) -> Tensor:
    """Output of a linear, times a factor for each of its columns."""
    return scaled(linear(x), scale_D)


def squared_linear(
    hidden_BTF: Tensor, linear: nn.Linear, slope: float, scale_D: Tensor | None
) -> Tensor:
    """:func:`scaled_linear` of the squared leaky relu; a slope of 0 is the relu."""
    return scaled_linear(leaky_square(hidden_BTF, slope), linear, scale_D)


def leaky_square(hidden: Tensor, slope: float) -> Tensor:
    """Squared leaky relu, in its dtype: under autocast a power would be float32."""
    active = nn.functional.leaky_relu(hidden, slope)
    return active * active


def exclude_own_value(y_BTHK: Tensor, v_BTGK: Tensor) -> Tensor:
    """Take from each head's output its part along the value of the same position (XSA)."""
    unit_BTG1K = nn.functional.normalize(v_BTGK, dim=-1).to(y_BTHK.dtype).unsqueeze(3)
    y_BTGxK = torch.unflatten(y_BTHK, 2, (v_BTGK.shape[2], -1))
    along = (y_BTGxK * unit_BTG1K).sum(-1, keepdim=True)
    return (y_BTGxK - along * unit_BTG1K).flatten(2, 3)


@dataclass(frozen=True, slots=True, kw_only=True)
class Operations:
    """What surrounds the matrix products of a block; training on CUDA takes faster ones."""

    add_norm: Callable[..., tuple[Tensor, Tensor]]
    """As :func:`add_norm`."""
    project: Callable[..., tuple[Tensor, Tensor, Tensor, Tensor | None]]
    """As :func:`project`."""
    scaled_linear: Callable[..., Tensor]
    """As :func:`scaled_linear`."""
    squared_linear: Callable[..., Tensor]
    """As :func:`squared_linear`."""
    exclude_own_value: Callable[..., Tensor]
    """As :func:`exclude_own_value`."""
    gate_heads: Callable[..., Tensor]
    """As :func:`gate_heads`."""


PLAIN = Operations(
    add_norm=add_norm,
    project=project,
    scaled_linear=scaled_linear,
    squared_linear=squared_linear,
    exclude_own_value=exclude_own_value,
    gate_heads=gate_heads,
)


class Attention(nn.Module):
    """Causal attention with grouped queries, QK norm, partial rotation and a gain per head."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.operations = PLAIN
        self.is_exclusive = layer >= config.num_layers - config.xsa_layers
        self.adds_behind = config.ve_own_proj
        self.head_dim = config.head_dim
        kv_dim = config.num_kv_heads * config.head_dim
        self.c_q = nn.Linear(config.model_dim, config.model_dim, bias=False)
        self.c_k = nn.Linear(config.model_dim, kv_dim, bias=False)
        self.c_v = nn.Linear(config.model_dim, kv_dim, bias=False)
        self.proj = nn.Linear(config.model_dim, config.model_dim, bias=False)
        self.q_gain = nn.Parameter(torch.full((config.num_heads,), config.qk_gain_init))
        self.value_mix = nn.Parameter(torch.full((2,), 0.5)) if config.value_residual else None
        # Not an nn.Linear, whose weight is a matrix for Muon.
        gate = torch.zeros(config.num_heads, config.model_dim)
        bias = torch.full((config.num_heads,), 4.0)
        self.gate_weight = nn.Parameter(gate) if config.gated_attention else None
        self.gate_bias = nn.Parameter(bias) if config.gated_attention else None

    def forward(
        self,
        x_BTD: Tensor,
        rope: Positions,
        scale_D: Tensor | None = None,
        first_BTC: Tensor | None = None,
        value_BTC: Tensor | None = None,
        extend: Extend | None = None,
        tail: int = 0,
    ) -> tuple[Tensor, Tensor]:
        """Output (B, T, D), and values (B, T, C) before they are mixed with those of ``first_BTC``.

        Parameters
        ----------
        scale_D : of the output
        first_BTC : values that the first block gave, None in that block itself
        value_BTC : value embeddings
        tail : outputs of that many last positions alone; 0 is all
        """
        weight, bias = self.gate_weight, self.gate_bias
        gate = None if weight is None or bias is None else (weight, bias)
        linears = (self.c_q, self.c_k, self.c_v)
        q_BTHK, k_BTGK, raw_BTC, gate_BTH = self.operations.project(
            x_BTD, *linears, gate, rope, self.q_gain, self.head_dim
        )
        v_BTC, raw_BTC = self._values(raw_BTC, first_BTC, value_BTC)
        v_BTGK = torch.unflatten(v_BTC, 2, (-1, self.head_dim))
        q_BHTK, k_BGSK, v_BGSK = (x.transpose(1, 2) for x in (q_BTHK, k_BTGK, v_BTGK))
        if extend is not None:
            k_BGSK, v_BGSK = extend(k_BGSK, v_BGSK)
        if tail:
            q_BHTK = q_BHTK[:, :, -tail:]
            v_BTGK = v_BTGK[:, -tail:]
            gate_BTH = None if gate_BTH is None else gate_BTH[:, -tail:]
        y_BHTK = attend(q_BHTK, k_BGSK, v_BGSK, is_causal=extend is None, documents=rope.documents)
        y_BTHK = y_BHTK.transpose(1, 2)
        if self.is_exclusive:
            y_BTHK = self.operations.exclude_own_value(y_BTHK, v_BTGK)
        if gate_BTH is not None:
            y_BTHK = self.operations.gate_heads(y_BTHK, gate_BTH)
        return self.operations.scaled_linear(y_BTHK.flatten(2), self.proj, scale_D), raw_BTC

    def _values(
        self, raw_BTC: Tensor, first_BTC: Tensor | None, value_BTC: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Values, and as they were before the value residual.

        The first block mixes its values with themselves, so that its pair learns.
        """
        if value_BTC is not None and not self.adds_behind:
            raw_BTC = raw_BTC + value_BTC
        v_BTC = raw_BTC
        if self.value_mix is not None:
            first_BTC = raw_BTC if first_BTC is None else first_BTC
            v_BTC = scaled(first_BTC, self.value_mix[0]) + scaled(raw_BTC, self.value_mix[1])
        if value_BTC is not None and self.adds_behind:
            v_BTC = v_BTC + value_BTC
        return v_BTC, raw_BTC


class MLP(nn.Module):
    """Two linears around a squared (leaky) relu."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.operations = PLAIN
        self.fc = nn.Linear(config.model_dim, config.mlp_hidden, bias=False)
        self.proj = nn.Linear(config.mlp_hidden, config.model_dim, bias=False)
        self.slope = config.leaky_slope

    def forward(self, x_BTD: Tensor, scale_D: Tensor | None) -> Tensor:
        return self.operations.squared_linear(self.fc(x_BTD), self.proj, self.slope, scale_D)


class Block(nn.Module):
    """Attention and MLP, each on the normalized stream and added back to it."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.operations = PLAIN
        self.attn = Attention(config, layer)
        self.mlp = MLP(config)
        self.norm_scale = (layer + 1) ** -0.5 if config.ln_scale else None
        ones = torch.ones(config.model_dim)
        branch = config.branch_scales
        self.attn_scale = nn.Parameter(ones.clone()) if branch else None
        self.mlp_scale = nn.Parameter(ones.clone()) if branch else None
        mix = torch.stack((ones, torch.zeros_like(ones)))
        self.resid_mix = nn.Parameter(mix) if config.resid_mix else None

    def forward(
        self,
        x_BTD: Tensor,
        lane_BTD: Tensor | None,
        x0_BTD: Tensor,
        rope: Positions,
        first_BTC: Tensor | None = None,
        value_BTC: Tensor | None = None,
        extend: Extend | None = None,
        tail: int = 0,
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """Both lanes behind this block, and the values as :class:`Attention` gives them.

        Parameters
        ----------
        lane_BTD : the stream of the MLPs where it is apart from that of the attentions, else None
        tail : lanes of that many last positions alone; 0 is all
        """
        operations, scale = self.operations, self.norm_scale
        if self.resid_mix is None:
            normed_BTD = scaled(rms_norm(x_BTD), scale)
        else:
            x_BTD, normed_BTD = operations.add_norm(x_BTD, x0_BTD, self.resid_mix, scale)
        attended_BTD, raw_BTC = self.attn(
            normed_BTD, rope, self.attn_scale, first_BTC, value_BTC, extend, tail
        )
        if tail:
            x_BTD = x_BTD[:, -tail:]
            lane_BTD = None if lane_BTD is None else lane_BTD[:, -tail:]
        if lane_BTD is None:
            x_BTD, normed_BTD = operations.add_norm(x_BTD, attended_BTD, None, scale)
            return x_BTD + self.mlp(normed_BTD, self.mlp_scale), None, raw_BTC
        fed_BTD = self.mlp(scaled(rms_norm(lane_BTD), scale), self.mlp_scale)
        return x_BTD + attended_BTD, lane_BTD + fed_BTD, raw_BTC

"""Attention and MLP, and the block that adds both to the residual stream.

Shapes: B sequences, T tokens, D model_dim, H query heads, G key and value heads, K head_dim,
R half of rope_dims, C width of the values (G times K), S positions in a cache.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from flyweight.model.attention import Positions, attend
from flyweight.model.config import ModelConfig

__all__ = ["Block", "Extend", "rms_norm", "scaled"]

Extend = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Takes keys and values (B, G, T, K) of new positions, gives those of all positions so far."""

_NORM_EPS = 2.0**-23  # that of float32, whatever the dtype: the default differs between versions


def rms_norm(x: Tensor) -> Tensor:
    """Divide by the root mean square over the last axis, which has no learned weight here."""
    return nn.functional.rms_norm(x, x.shape[-1:], eps=_NORM_EPS).to(x.dtype)


def scaled(x: Tensor, scale: Tensor | float | None) -> Tensor:
    """Multiply in the dtype of ``x``; None is a feature that is off."""
    if scale is None:
        return x
    return x * (scale.to(x.dtype) if isinstance(scale, Tensor) else scale)


def rotate(x_BHTK: Tensor, cos_TR: Tensor, sin_TR: Tensor) -> Tensor:
    """Turn the first 2R dimensions of each head, pairs (i, i + R); the others stay."""
    half = cos_TR.shape[-1]
    a, b, rest = torch.split(x_BHTK, [half, half, x_BHTK.shape[-1] - 2 * half], dim=-1)
    return torch.cat((a * cos_TR + b * sin_TR, b * cos_TR - a * sin_TR, rest), dim=-1)


def without_own_value(y_BHTK: Tensor, v_BGTK: Tensor) -> Tensor:
    """Take from each head's output its part along the value of the same position (XSA)."""
    unit_BGTK = nn.functional.normalize(v_BGTK, dim=-1).to(y_BHTK.dtype)
    unit_BGxTK = unit_BGTK.unsqueeze(2)
    y_BGxTK = y_BHTK.view(*v_BGTK.shape[:2], -1, *y_BHTK.shape[2:])
    along = (y_BGxTK * unit_BGxTK).sum(-1, keepdim=True)
    return (y_BGxTK - along * unit_BGxTK).flatten(1, 2)


class Attention(nn.Module):
    """Causal attention with grouped queries, QK norm, partial rotation and a gain per head."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
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
        first_BTC: Tensor | None = None,
        value_BTC: Tensor | None = None,
        extend: Extend | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Output (B, T, D), and values (B, T, C) before they are mixed with those of ``first_BTC``.

        Parameters
        ----------
        first_BTC : values that the first block gave, None in that block itself
        value_BTC : value embeddings
        """
        cos_TR, sin_TR = (table.to(x_BTD.dtype) for table in rope[:2])
        q_BHTK = rotate(rms_norm(self._heads(self.c_q(x_BTD))), cos_TR, sin_TR)
        k_BGTK = rotate(rms_norm(self._heads(self.c_k(x_BTD))), cos_TR, sin_TR)
        v_BTC, raw_BTC = self._values(x_BTD, first_BTC, value_BTC)
        v_BGTK = self._heads(v_BTC)
        q_BHTK = scaled(q_BHTK, self.q_gain[:, None, None])
        k_BGSK, v_BGSK = (k_BGTK, v_BGTK) if extend is None else extend(k_BGTK, v_BGTK)
        y_BHTK = attend(q_BHTK, k_BGSK, v_BGSK, is_causal=extend is None, documents=rope.documents)
        if self.is_exclusive:
            y_BHTK = without_own_value(y_BHTK, v_BGTK)
        y_BTHK = y_BHTK.transpose(1, 2)
        if self.gate_weight is not None:
            gate_BTH = nn.functional.linear(x_BTD, self.gate_weight, self.gate_bias)
            y_BTHK = y_BTHK * torch.sigmoid(gate_BTH).to(y_BTHK.dtype).unsqueeze(-1)
        return self.proj(y_BTHK.flatten(2)), raw_BTC

    def _values(
        self, x_BTD: Tensor, first_BTC: Tensor | None, value_BTC: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Values, and as they were before the value residual.

        The first block mixes its values with themselves, so that its pair learns.
        """
        raw_BTC = self.c_v(x_BTD)
        if value_BTC is not None and not self.adds_behind:
            raw_BTC = raw_BTC + value_BTC
        v_BTC = raw_BTC
        if self.value_mix is not None:
            first_BTC = raw_BTC if first_BTC is None else first_BTC
            v_BTC = scaled(first_BTC, self.value_mix[0]) + scaled(raw_BTC, self.value_mix[1])
        if value_BTC is not None and self.adds_behind:
            v_BTC = v_BTC + value_BTC
        return v_BTC, raw_BTC

    def _heads(self, x_BTC: Tensor) -> Tensor:
        return x_BTC.view(*x_BTC.shape[:2], -1, self.head_dim).transpose(1, 2)


class MLP(nn.Module):
    """Two linears around a squared (leaky) relu."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.fc = nn.Linear(config.model_dim, config.mlp_hidden, bias=False)
        self.proj = nn.Linear(config.mlp_hidden, config.model_dim, bias=False)
        self.slope = config.leaky_slope

    def forward(self, x_BTD: Tensor) -> Tensor:
        hidden = self.fc(x_BTD)
        hidden = (
            nn.functional.leaky_relu(hidden, self.slope)
            if self.slope
            else nn.functional.relu(hidden)
        )
        out_BTD: Tensor = self.proj(hidden.square())
        return out_BTD


class Block(nn.Module):
    """Attention and MLP, each on the normalized stream and added back to it."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
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
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """Both lanes behind this block, and the values as :class:`Attention` gives them.

        Parameters
        ----------
        lane_BTD : the stream of the MLPs where it is apart from that of the attentions, else None
        """
        if self.resid_mix is not None:
            x_BTD = scaled(x_BTD, self.resid_mix[0]) + scaled(x0_BTD, self.resid_mix[1])
        normed_BTD = scaled(rms_norm(x_BTD), self.norm_scale)
        attended_BTD, raw_BTC = self.attn(normed_BTD, rope, first_BTC, value_BTC, extend)
        x_BTD = x_BTD + scaled(attended_BTD, self.attn_scale)
        if lane_BTD is None:
            return self._fed(x_BTD), None, raw_BTC
        return x_BTD, self._fed(lane_BTD), raw_BTC

    def _fed(self, x_BTD: Tensor) -> Tensor:
        return x_BTD + scaled(self.mlp(scaled(rms_norm(x_BTD), self.norm_scale)), self.mlp_scale)

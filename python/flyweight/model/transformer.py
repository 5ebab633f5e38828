"""The transformer: every feature is a field of ``ModelConfig``, and one that is off costs nothing.

Shapes: B sequences, T tokens, D model_dim, H query heads, G key and value heads, K head_dim,
R half of rope_dims, V vocab_size, C width of the values (G times K), S positions in a cache.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from flyweight.model.config import BOS_TOKEN, ModelConfig
from flyweight.model.embeddings import BigramHash, ValueEmbedding

__all__ = ["Transformer"]

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


class SmearGate(nn.Module):
    """Mix each position with the one before: ``(1 - g) x[t] + g x[t-1]``, ``g = sigmoid(gate)``."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.zeros(config.model_dim))
        self.document_mask = config.smear_document_mask

    def forward(self, x_BTD: Tensor, tokens_BT: Tensor) -> Tensor:
        gate = torch.sigmoid(self.gate).to(x_BTD.dtype)
        previous_BTD = nn.functional.pad(x_BTD, (0, 0, 1, -1))
        if self.document_mask:
            previous_BTD = previous_BTD * (tokens_BT != BOS_TOKEN).to(x_BTD.dtype).unsqueeze(-1)
        return (1 - gate) * x_BTD + gate * previous_BTD


class Attention(nn.Module):
    """Causal attention with grouped queries, QK norm, partial rotation and a gain per head."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.is_exclusive = layer >= config.num_layers - config.xsa_layers
        self.head_dim = config.head_dim
        self.grouped = config.num_kv_heads != config.num_heads
        kv_dim = config.num_kv_heads * config.head_dim
        self.c_q = nn.Linear(config.model_dim, config.model_dim, bias=False)
        self.c_k = nn.Linear(config.model_dim, kv_dim, bias=False)
        self.c_v = nn.Linear(config.model_dim, kv_dim, bias=False)
        self.proj = nn.Linear(config.model_dim, config.model_dim, bias=False)
        self.q_gain = nn.Parameter(torch.full((config.num_heads,), config.qk_gain_init))

    def forward(
        self,
        x_BTD: Tensor,
        rope: tuple[Tensor, Tensor],
        value_BTC: Tensor | None = None,
        extend: Extend | None = None,
    ) -> Tensor:
        cos_TR, sin_TR = (table.to(x_BTD.dtype) for table in rope)
        q_BHTK = rotate(rms_norm(self._heads(self.c_q(x_BTD))), cos_TR, sin_TR)
        k_BGTK = rotate(rms_norm(self._heads(self.c_k(x_BTD))), cos_TR, sin_TR)
        v_BTC = self.c_v(x_BTD)
        v_BGTK = self._heads(v_BTC if value_BTC is None else v_BTC + value_BTC)
        q_BHTK = scaled(q_BHTK, self.q_gain[:, None, None])
        k_BGSK, v_BGSK = (k_BGTK, v_BGTK) if extend is None else extend(k_BGTK, v_BGTK)
        y_BHTK = nn.functional.scaled_dot_product_attention(
            q_BHTK, k_BGSK, v_BGSK, is_causal=extend is None, enable_gqa=self.grouped
        )
        if self.is_exclusive:
            y_BHTK = without_own_value(y_BHTK, v_BGTK)
        out_BTD: Tensor = self.proj(y_BHTK.transpose(1, 2).flatten(2))
        return out_BTD

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
    """Attention, then MLP, each on the normalized stream and added back to it."""

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
        x0_BTD: Tensor,
        rope: tuple[Tensor, Tensor],
        value_BTC: Tensor | None = None,
        extend: Extend | None = None,
    ) -> Tensor:
        if self.resid_mix is not None:
            x_BTD = scaled(x_BTD, self.resid_mix[0]) + scaled(x0_BTD, self.resid_mix[1])
        attended = self.attn(scaled(rms_norm(x_BTD), self.norm_scale), rope, value_BTC, extend)
        x_BTD = x_BTD + scaled(attended, self.attn_scale)
        return x_BTD + scaled(self.mlp(scaled(rms_norm(x_BTD), self.norm_scale)), self.mlp_scale)


class Transformer(nn.Module):
    """Decoder-only language model; names of its parameters are the artifact's tensor names.

    Notes
    -----
    Weights mean nothing before :meth:`init_weights` or ``load_state_dict``. Under autocast the
    residual stream has the autocast dtype; without, that of the parameters.

    References
    ----------
    Features and initial values follow pull requests #585 and #1539 of openai/parameter-golf.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.tok_emb = nn.Embedding(config.vocab_size, config.model_dim)
        self.bigram = BigramHash(config) if config.bigram_buckets else None
        self.smear = SmearGate(config) if config.smear_gate else None
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.num_layers))
        skips = torch.ones(config.num_skips, config.model_dim)
        self.skip_weights = nn.Parameter(skips) if config.num_skips else None
        self.ve_shared = ValueEmbedding(config) if config.ve_layers else None
        self.ve_layer_scales = nn.ParameterList(torch.ones(1) for _ in range(config.ve_layers))
        tied = config.tied_embeddings
        self.lm_head = None if tied else nn.Linear(config.model_dim, config.vocab_size, bias=False)
        powers_R = torch.arange(0, config.rope_dims, 2) / max(config.rope_dims, 1)
        frequencies_R = config.stretched_rope_base**-powers_R
        self.register_buffer("rope_frequencies", frequencies_R, persistent=False)

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator) -> None:
        """Initial weights for training: orthogonal linears, zero output projections."""
        std = self.config.embed_init_std
        nn.init.normal_(self.tok_emb.weight, std=std, generator=generator)
        if self.lm_head is not None:
            nn.init.normal_(self.lm_head.weight, std=std, generator=generator)
        for name, module in self.blocks.named_modules():
            if isinstance(module, nn.Linear) and name.endswith("proj"):
                nn.init.zeros_(module.weight)
            elif isinstance(module, nn.Linear):
                nn.init.orthogonal_(module.weight, generator=generator)
        gain = (2 * self.config.num_layers) ** -0.5
        if self.bigram is not None:
            nn.init.zeros_(self.bigram.embed.weight)
            nn.init.orthogonal_(self.bigram.proj.weight, gain, generator=generator)
        if self.ve_shared is not None:
            nn.init.normal_(self.ve_shared.embed.weight, std=0.01, generator=generator)
            nn.init.orthogonal_(self.ve_shared.proj.weight, gain, generator=generator)

    def embed(self, tokens_BT: Tensor) -> Tensor:
        """What the first block meets, (B, T, D); it depends on a token and the two before it."""
        x_BTD = self.tok_emb(tokens_BT)
        if self.bigram is not None:
            x_BTD = x_BTD + self.bigram(tokens_BT)
        x_BTD = rms_norm(x_BTD)
        if torch.is_autocast_enabled(x_BTD.device.type):
            x_BTD = x_BTD.to(torch.get_autocast_dtype(x_BTD.device.type))
        return x_BTD if self.smear is None else self.smear(x_BTD, tokens_BT)

    def hidden(self, tokens_BT: Tensor) -> Tensor:
        """Normalized input of the output head, (B, T, D)."""
        rope = self.rope_tables(tokens_BT.shape[1])
        return self.run_blocks(self.embed(tokens_BT), tokens_BT, rope)

    def run_blocks(
        self,
        x_BTD: Tensor,
        tokens_BT: Tensor,
        rope: tuple[Tensor, Tensor],
        extends: Sequence[Extend] | None = None,
    ) -> Tensor:
        """What :meth:`hidden` does behind the embedding.

        Parameters
        ----------
        x_BTD : what :meth:`embed` gave for the tokens
        rope : cosines and sines (T, R) of the tokens' positions
        extends : by layer, keys and values of the positions before; with them T must be 1
        """
        x0_BTD = x_BTD
        value_BTC = None if self.ve_shared is None else self.ve_shared(tokens_BT)
        half, ve_start = self.config.num_skips, self.config.num_layers - self.config.ve_layers
        skips: list[Tensor] = []
        for layer, block in enumerate(self.blocks):
            if self.skip_weights is not None and layer >= half and skips:
                x_BTD = x_BTD + scaled(skips.pop(), self.skip_weights[layer - half])
            own_BTC = None
            if value_BTC is not None and layer >= ve_start:
                own_BTC = scaled(value_BTC, self.ve_layer_scales[layer - ve_start])
            x_BTD = block(x_BTD, x0_BTD, rope, own_BTC, extends[layer] if extends else None)
            if layer < half:
                skips.append(x_BTD)
        return rms_norm(x_BTD)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """Logits of the next token.

        Parameters
        ----------
        tokens_BT : (B, T) int64, ids below vocab_size

        Returns
        -------
        (B, T, V) float32, soft-capped; position t depends on tokens 0 to t alone
        """
        return self.logits(self.hidden(tokens_BT))

    def logits(self, hidden_BTD: Tensor) -> Tensor:
        """Soft-capped logits (B, T, V) float32 of what :meth:`hidden` gave."""
        head_VD = self.tok_emb.weight if self.lm_head is None else self.lm_head.weight
        logits_BTV = nn.functional.linear(hidden_BTD, head_VD).float()
        cap = self.config.softcap
        return cap * torch.tanh(logits_BTV / cap) if cap else logits_BTV

    def loss(self, tokens_BT: Tensor, targets_BT: Tensor) -> Tensor:
        """Mean cross-entropy of the targets in nats, a float32 scalar."""
        return nn.functional.cross_entropy(self(tokens_BT).flatten(0, 1), targets_BT.flatten())

    def rope_tables(self, length: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines (length, R) of the rotary angles."""
        frequencies_R = self.get_buffer("rope_frequencies")
        positions_T = torch.arange(length, device=frequencies_R.device)
        angles_TR = positions_T[:, None] * frequencies_R
        return angles_TR.cos(), angles_TR.sin()

"""The transformer: every feature is a field of ``ModelConfig``, and one that is off costs nothing.

Shapes: B sequences, T tokens, D model_dim, R half of rope_dims, V vocab_size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from flyweight.model.attention import Positions, document_mask, positions_in_documents
from flyweight.model.blocks import (
    MLP,
    PLAIN,
    Attention,
    Block,
    Extend,
    Operations,
    rms_norm,
    scaled,
)
from flyweight.model.config import ModelConfig
from flyweight.model.cross_entropy import softcapped_cross_entropy
from flyweight.model.embeddings import BigramHash, SmearGate, ValueEmbedding

__all__ = ["Transformer"]


class Transformer(nn.Module):
    """Decoder-only language model; names of its parameters are the artifact's tensor names.

    Notes
    -----
    Weights mean nothing before :meth:`init_weights` or ``load_state_dict``. Under autocast the
    residual stream has the autocast dtype; without, that of the parameters.

    References
    ----------
    Features and initial values follow pull requests #578, #585, #1123, #1539 and #1683 of
    openai/parameter-golf; gated skips #1855.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.operations = PLAIN
        self.tok_emb = nn.Embedding(config.vocab_size, config.model_dim)
        self.bigram = BigramHash(config) if config.bigram_buckets else None
        self.smear = SmearGate(config) if config.smear_gate else None
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.num_layers))
        skips = torch.full((config.num_skips, config.model_dim), config.skip_init)
        self.skip_weights = nn.Parameter(skips) if config.num_skips else None
        self.skip_gates = nn.Parameter(torch.zeros_like(skips)) if config.skip_gates else None
        self.lane_merge = nn.Parameter(torch.tensor(0.5)) if config.lanes_from else None
        self.ve_shared = ValueEmbedding(config) if config.ve_layers else None
        start = 0.0 if config.ve_own_proj else 1.0
        scales = (torch.full((1,), start) for _ in range(config.ve_layers))
        self.ve_layer_scales = nn.ParameterList(scales)
        tied = config.tied_embeddings
        self.lm_head = None if tied else nn.Linear(config.model_dim, config.vocab_size, bias=False)
        # Made once: compiled code would take the cosines anew for every head and layer.
        angles_TR = self._angles(config.seq_len)
        self.register_buffer("cosines_TR", angles_TR.cos().float(), persistent=False)
        self.register_buffer("sines_TR", angles_TR.sin().float(), persistent=False)

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
            self._init_values(self.ve_shared, gain, generator)

    def _init_values(self, values: ValueEmbedding, gain: float, generator: torch.Generator) -> None:
        std = 1.0 if self.config.ve_own_proj else 0.01
        nn.init.normal_(values.embed.weight, std=std, generator=generator)
        bound = self.config.ve_dim**-0.5  # of a linear by default
        for weight in values.projs.parameters():
            nn.init.uniform_(weight, -bound, bound, generator=generator)
        if values.proj is not None and self.config.ve_zero_init:
            nn.init.zeros_(values.proj.weight)
        elif values.proj is not None:
            nn.init.orthogonal_(values.proj.weight, gain, generator=generator)

    def embed(self, tokens_BT: Tensor) -> Tensor:
        """What the first block meets, (B, T, D); it depends on a token and the two before it."""
        x_BTD = self.tok_emb(tokens_BT)
        smears_first = self.config.smear_first
        if self.smear is not None and smears_first:
            x_BTD = self.smear(x_BTD, tokens_BT)
        if self.bigram is not None:
            x_BTD = x_BTD + self.bigram(tokens_BT)
        x_BTD = rms_norm(x_BTD)
        if torch.is_autocast_enabled(x_BTD.device.type):
            x_BTD = x_BTD.to(torch.get_autocast_dtype(x_BTD.device.type))
        return x_BTD if self.smear is None or smears_first else self.smear(x_BTD, tokens_BT)

    def hidden(self, tokens_BT: Tensor, *, recur: bool = True, tail: int = 0) -> Tensor:
        """Normalized input of the output head, (B, T, D); for ``recur`` see :meth:`loss`.

        Parameters
        ----------
        tail : of that many last positions alone, which spares most of the last block; 0 is all
        """
        rope = self.positions(tokens_BT)
        return self.run_blocks(self.embed(tokens_BT), tokens_BT, rope, recur=recur, tail=tail)

    def run_blocks(
        self,
        x_BTD: Tensor,
        tokens_BT: Tensor,
        rope: Positions,
        extends: Sequence[Extend] | None = None,
        *,
        recur: bool = True,
        tail: int = 0,
    ) -> Tensor:
        """What :meth:`hidden` does behind the embedding.

        Parameters
        ----------
        x_BTD : what :meth:`embed` gave for the tokens
        rope : where the tokens stand
        extends : by step of ``layer_order``, keys and values of the positions before; with them T
            is 1, or ``rope.documents`` says who sees whom
        recur : see :meth:`loss`
        tail : see :meth:`hidden`
        """
        x0_BTD = x_BTD
        lane_BTD, first_BTC = None, None
        values = [] if self.ve_shared is None else self.ve_shared(tokens_BT)
        order = self.config.layer_order(recur=recur)
        half, ve_start = len(order) // 2, self.config.num_layers - self.config.ve_layers
        skips: list[Tensor] = []
        for step, layer in enumerate(order):
            if half <= step < half + self.config.num_skips:
                x_BTD = self._with_skip(x_BTD, skips.pop(), step - half)
            if self.lane_merge is not None and layer == self.config.lanes_from:
                lane_BTD = x_BTD
            own_BTC = None
            if layer >= ve_start:
                own_BTC = scaled(values[layer - ve_start], self.ve_layer_scales[layer - ve_start])
            extend = extends[step] if extends else None
            x_BTD, lane_BTD, raw_BTC = self.blocks[layer](
                x_BTD,
                lane_BTD,
                x0_BTD,
                rope,
                first_BTC,
                own_BTC,
                extend,
                tail if step == len(order) - 1 else 0,
            )
            first_BTC = raw_BTC if first_BTC is None else first_BTC
            if self.skip_weights is not None and step < half:
                skips.append(x_BTD)
        if self.lane_merge is not None and lane_BTD is not None:
            x_BTD = scaled(x_BTD, self.lane_merge) + scaled(lane_BTD, 1 - self.lane_merge)
        return rms_norm(x_BTD)

    def _with_skip(self, x_BTD: Tensor, skip_BTD: Tensor, index: int) -> Tensor:
        assert self.skip_weights is not None
        skip_BTD = scaled(skip_BTD, self.skip_weights[index])
        if self.skip_gates is None:
            return x_BTD + skip_BTD
        gate = torch.sigmoid(self.skip_gates[index])
        return scaled(x_BTD, gate) + scaled(skip_BTD, 1 - gate)

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
        logits_BTV, cap = self._raw_logits(hidden_BTD).float(), self.config.softcap
        return cap * torch.tanh(logits_BTV / cap) if cap else logits_BTV

    def loss(self, tokens_BT: Tensor, targets_BT: Tensor, *, recur: bool = True) -> Tensor:
        """Mean cross-entropy of the targets in nats, a float32 scalar.

        Parameters
        ----------
        recur : False runs every block once, as training does before recurrence starts; the model
            as it is scored, calibrated and generated from always recurs
        """
        logits_BTV = self._raw_logits(self.hidden(tokens_BT, recur=recur))
        return softcapped_cross_entropy(logits_BTV, targets_BT, self.config.softcap)

    def loss_once(self, tokens_BT: Tensor, targets_BT: Tensor) -> Tensor:
        """:meth:`loss` of the model before its recurrence starts: every block runs once."""
        return self.loss(tokens_BT, targets_BT, recur=False)

    def _raw_logits(self, hidden_BTD: Tensor) -> Tensor:
        head_VD = self.tok_emb.weight if self.lm_head is None else self.lm_head.weight
        return nn.functional.linear(hidden_BTD, head_VD)

    def positions(self, tokens_BT: Tensor) -> Positions:
        """Where the tokens of whole rows stand."""
        cos_TR, sin_TR = self.rope_tables(tokens_BT.shape[1])
        if not self.config.document_mask:
            return Positions(cos_TR, sin_TR)
        places_BT = positions_in_documents(tokens_BT)
        return Positions(cos_TR[places_BT], sin_TR[places_BT], document_mask(tokens_BT))

    def rope_tables(self, length: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines (length, R) of the rotary angles."""
        cosines_TR, sines_TR = self.get_buffer("cosines_TR"), self.get_buffer("sines_TR")
        if length > len(cosines_TR):
            angles_TR = self._angles(length).to(cosines_TR.device)
            return angles_TR.cos().float(), angles_TR.sin().float()
        return cosines_TR[:length], sines_TR[:length]

    def _angles(self, length: int) -> Tensor:
        dims = self.config.rope_dims
        powers_R = torch.arange(0, dims, 2, dtype=torch.float64) / max(dims, 1)
        return torch.arange(length)[:, None] * self.config.stretched_rope_base**-powers_R

    def use(self, operations: Operations) -> Operations:
        """Take these for what each block computes around its products; returns those before."""
        before = self.operations
        self.operations = operations
        for module in self.modules():
            if isinstance(module, (Attention, MLP, Block)):
                module.operations = operations
        return before

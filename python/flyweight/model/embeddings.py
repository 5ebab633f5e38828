"""What is looked up and mixed before and beside the blocks: pairs of tokens, neighbours, values.

Shapes: B sequences, T tokens, D model_dim, C width of the values (``num_kv_heads * head_dim``),
E width of a table of values.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from flyweight.model.config import BOS_TOKEN, ModelConfig

__all__ = ["BigramHash", "SmearGate", "ValueEmbedding", "bigram_ids"]

_HASH_THIS = 36313
_HASH_BEFORE = 27191


def bigram_ids(tokens_BT: Tensor, buckets: int) -> Tensor:
    """Bucket of each token and the one before it.

    Parameters
    ----------
    tokens_BT : (B, T) int64, ids below 65536
    buckets : 2 or more; the last one belongs to the first position alone

    Returns
    -------
    (B, T) int64: ``((36313 x[t]) xor (27191 x[t-1])) mod (buckets - 1)``, and ``buckets - 1`` where
    ``t`` is 0. No product overflows, so ids below 59,000 meet the int32 hash of the reference.

    References
    ----------
    Pull requests #414 and #585 of openai/parameter-golf.
    """
    this, before = tokens_BT[:, 1:] * _HASH_THIS, tokens_BT[:, :-1] * _HASH_BEFORE
    hashed = torch.bitwise_xor(this, before) % (buckets - 1)
    return nn.functional.pad(hashed, (1, 0), value=buckets - 1)


class BigramHash(nn.Module):
    """``scale * proj(embed[hash of the token and the one before])``, added to the embedding."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.embed = nn.Embedding(config.bigram_buckets, config.bigram_dim)
        self.proj = nn.Linear(config.bigram_dim, config.model_dim, bias=False)
        self.scale = nn.Parameter(torch.tensor(0.05))

    def forward(self, tokens_BT: Tensor) -> Tensor:
        ids_BT = bigram_ids(tokens_BT, self.embed.num_embeddings)
        out_BTD: Tensor = self.proj(self.embed(ids_BT))
        return out_BTD * self.scale.to(out_BTD.dtype)


class SmearGate(nn.Module):
    """Mix each position with the one before: ``(1 - g) x[t] + g x[t-1]``, ``g = sigmoid(gate)``.

    What has none before it, or none in its document, meets zeros; with ``smear_first`` itself.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.zeros(config.model_dim))
        self.document_mask = config.smear_document_mask
        self.meets_itself = config.smear_first

    def forward(self, x_BTD: Tensor, tokens_BT: Tensor) -> Tensor:
        gate = torch.sigmoid(self.gate).to(x_BTD.dtype)
        alone_BTD = x_BTD if self.meets_itself else torch.zeros_like(x_BTD)
        previous_BTD = torch.cat((alone_BTD[:, :1], x_BTD[:, :-1]), dim=1)
        if self.document_mask:
            opens_BT1 = (tokens_BT == BOS_TOKEN).unsqueeze(-1)
            previous_BTD = torch.where(opens_BT1, alone_BTD, previous_BTD)
        return (1 - gate) * x_BTD + gate * previous_BTD


class ValueEmbedding(nn.Module):
    """What the last layers add to their values: ``scale * proj(embed[token])``, shared by them.

    With ``ve_own_proj`` every layer has a projection of its own, and there is no shared scale.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.embed = nn.Embedding(config.vocab_size, config.ve_dim)
        self.layers = config.ve_layers
        shape, own = (config.ve_dim, config.num_kv_heads * config.head_dim), config.ve_own_proj
        self.proj = None if own else nn.Linear(*shape, bias=False)
        self.scale = None if own else nn.Parameter(torch.tensor(0.1))
        own_layers = config.ve_layers if own else 0
        self.projs = nn.ModuleList(nn.Linear(*shape, bias=False) for _ in range(own_layers))

    def forward(self, tokens_BT: Tensor) -> list[Tensor]:
        """By layer, (B, T, C)."""
        x_BTE = self.embed(tokens_BT)
        if self.proj is None or self.scale is None:
            return [proj(x_BTE) for proj in self.projs]
        out_BTC = self.proj(x_BTE)
        return [out_BTC * self.scale.to(out_BTC.dtype)] * self.layers

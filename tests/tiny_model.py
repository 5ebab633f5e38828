"""A causal language model small enough to run in milliseconds; has ``blocks`` like the real one."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

VOCAB = 48


class TinyBlock(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.ReLU(), nn.Linear(2 * dim, dim))
        self.dropout = nn.Dropout(0.5)  # scores that repeat show that evaluation mode is on

    def forward(self, x_BTD: Tensor) -> Tensor:
        q, k, v = self.qkv(functional.layer_norm(x_BTD, x_BTD.shape[-1:])).chunk(3, dim=-1)
        attended = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x_BTD = x_BTD + self.dropout(self.out(attended))
        return x_BTD + self.mlp(functional.layer_norm(x_BTD, x_BTD.shape[-1:]))


class TinyModel(nn.Module):
    def __init__(self, *, dim: int = 16, depth: int = 3, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embedding = nn.Embedding(VOCAB, dim)
        self.blocks = nn.ModuleList(TinyBlock(dim) for _ in range(depth))
        self.head = nn.Linear(dim, VOCAB)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        x_BTD = self.embedding(tokens_BT)
        for block in self.blocks:
            x_BTD = block(x_BTD)
        return self.head(x_BTD).float()

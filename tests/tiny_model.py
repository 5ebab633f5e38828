"""Causal language models small enough to run in milliseconds, one of them the real one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from flyweight.model.config import ModelConfig
from flyweight.model.transformer import Transformer

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


def tiny_transformer(**changes: Any) -> Transformer:
    """All that the last block can have, or what changes say."""
    features: dict[str, Any] = {
        "num_layers": 4,
        "rope_dims": 4,
        "xsa_layers": 2,
        "value_residual": True,
        "gated_attention": True,
        "unet_skips": True,
        "resid_mix": True,
        "branch_scales": True,
        "ve_layers": 2,
        "ve_dim": 8,
        "smear_gate": True,
    }
    config = ModelConfig(
        **{
            "vocab_size": VOCAB,
            "model_dim": 32,
            "num_heads": 4,
            "num_kv_heads": 2,
            "mlp_hidden": 48,
            "seq_len": 16,
            **features,
            **changes,
        }
    )
    model = Transformer(config)
    generator = torch.Generator().manual_seed(2)
    model.init_weights(generator)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(("proj.weight", "gate_weight")):
                weight.normal_(std=0.2, generator=generator)
    return model

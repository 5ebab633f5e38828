"""Where a model's parameters are."""

from __future__ import annotations

import re
from collections import Counter

import torch

from flyweight.model.config import ModelConfig
from flyweight.model.transformer import Transformer

__all__ = ["parameter_counts"]


def parameter_counts(config: ModelConfig) -> dict[str, int]:
    """Number of parameters by component, blocks added up; no memory is allocated for them.

    Returns
    -------
    tensor name without its block number (``blocks.attn.c_q.weight``) to count, model order
    """
    with torch.device("meta"):
        model = Transformer(config)
    counts: Counter[str] = Counter()
    for name, parameter in model.named_parameters():
        counts[re.sub(r"\.\d+(?=\.|$)", "", name)] += parameter.numel()
    return dict(counts)

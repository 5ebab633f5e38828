"""What a training loss and a speed come to: bits per byte, and the share of the device in use."""

from __future__ import annotations

import functools
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch

from flyweight.data.facts import DATA_FILE, DataInfo
from flyweight.model.config import ModelConfig
from flyweight.model.parameters import parameter_counts
from flyweight.train.distributed import World
from flyweight.train.losses import Phase

__all__ = ["Speedometer", "flops_per_token", "tokens_per_second"]

PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}
"""Dense bfloat16 products a second that data sheets name, by a part of the device's name."""
_LOOKUPS = ("tok_emb.weight", "bigram.embed.weight", "ve_shared.embed.weight")


@functools.cache
def flops_per_token(
    config: ModelConfig, *, recur: bool = True, seq_len: int | None = None
) -> float:
    """Operations of a forward and backward pass, per token.

    Parameters
    ----------
    recur : False counts those of a training that has not begun to recur
    seq_len : of the sequences, if it is not that of the config

    Notes
    -----
    Six for each weight that is multiplied, repeated layers as often as they run, and twelve for
    each channel, key and layer of attention, of which a causal mask leaves half (Chowdhery et al.,
    arXiv:2204.02311, appendix B). Lookups are free, a tied head is not.
    """
    counts = parameter_counts(config)
    blocks = sum(count for name, count in counts.items() if name.startswith("blocks."))
    rest = sum(
        count
        for name, count in counts.items()
        if not name.startswith("blocks.") and name not in _LOOKUPS
    )
    head = config.vocab_size * config.model_dim if config.tied_embeddings else 0
    passes = len(config.layer_order(recur=recur))
    attention = 6 * (seq_len or config.seq_len) * config.model_dim * passes
    return 6 * (blocks * passes / config.num_layers + rest + head) + attention


def tokens_per_second(tokens: int, seconds: float) -> float:
    """Of a whole run; 0 before its clock has moved."""
    return tokens / seconds if seconds else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Speedometer:
    """Puts numbers about a run into words; what is not known is left out."""

    bytes_per_token: float | None
    """Of the text that is trained on, or else of the validation text."""
    model: ModelConfig
    """What is trained."""
    peak_flops: float | None
    """Of all devices together, a second."""

    @classmethod
    def of(cls, model: ModelConfig, data: str | os.PathLike[str], world: World) -> Self:
        """For a model, on the shards of a folder, on the devices of a run."""
        ratio = None
        if (Path(data) / DATA_FILE).exists():
            info = DataInfo.read(Path(data))
            known = [s for s in (info.train, info.val) if s.scored_bytes and s.scored_targets]
            ratio = known[0].scored_bytes / known[0].scored_targets if known else None  # type: ignore[operator]
        is_cuda = world.device.type == "cuda"
        name = torch.cuda.get_device_name(world.device) if is_cuda else ""
        peak = next((flops for part, flops in PEAKS.items() if part in name), None)
        return cls(
            bytes_per_token=ratio,
            model=model,
            peak_flops=peak and peak * world.size,
        )

    def flops(self, tokens: int, phase: Phase) -> float:
        """Operations of training on so many tokens, as the model runs in a phase."""
        return tokens * flops_per_token(self.model, recur=phase.recurs, seq_len=phase.seq_len)

    def bpb(self, loss: float) -> float | None:
        """Estimate of the bits per byte that a loss in nats per token comes to."""
        if self.bytes_per_token is None:
            return None
        return loss / math.log(2) / self.bytes_per_token

    def text(self, loss: float, tokens: int, seconds: float, flops_per_second: float) -> str:
        """One line: loss in nats per token, bits per byte, tokens a second, share of the peak.

        Parameters
        ----------
        tokens, seconds : of the whole run
        flops_per_second : that all devices together came to
        """
        parts = [f"loss {loss:.3f}"]
        if (bpb := self.bpb(loss)) is not None:
            parts.append(f"~{bpb:.3f} bpb")
        parts.append(f"{tokens_per_second(tokens, seconds):,.0f} tokens/s")
        if self.peak_flops is not None:
            parts.append(f"MFU {flops_per_second / self.peak_flops:.0%}")
        return " ".join(parts)

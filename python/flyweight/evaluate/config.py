"""How a stream is scored; no torch is needed to read or check it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from flyweight.errors import InvalidArgumentError

__all__ = ["ScoreConfig"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreConfig:
    """One scoring protocol, complete: the same config and model give the same scores.

    Raises
    ------
    InvalidArgumentError
        A value is out of its range.
    """

    protocol: Literal["plain", "sliding", "score-first"] = "sliding"
    """Blocks without overlap; windows that overlap; windows with training on what was scored."""
    seq_len: int = 1024
    """Tokens that the model sees at once."""
    stride: int = 64
    """Targets that a window adds, 1 to ``seq_len``; plain blocks add ``seq_len``."""
    batch_windows: int = 16
    """Windows in one forward pass."""
    chunk_targets: int = 32768
    """Targets scored under one frozen state and written to the ledger at once."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the matrix products; losses are float32 and their sums float64 in either case."""
    last_blocks: int = 2
    """score-first: blocks that learn, counted from the last; everything else is frozen."""
    epochs: int = 3
    """score-first: passes over a scored chunk."""
    learning_rate: float = 1e-4
    """score-first: AdamW's at the first chunk; a cosine over the chunks takes it to zero."""
    clip_norm: float = 1.0
    """score-first: largest norm of a gradient."""
    adapt_sequences: int = 64
    """score-first: sequences of ``seq_len`` in one optimizer step."""

    def __post_init__(self) -> None:
        _check_choice("protocol", self.protocol, ("plain", "sliding", "score-first"))
        _check_choice("precision", self.precision, ("float32", "bfloat16"))
        counts = ("seq_len", "stride", "batch_windows", "chunk_targets")
        adapting = ("last_blocks", "epochs", "learning_rate", "clip_norm", "adapt_sequences")
        for name in counts + adapting:
            value = getattr(self, name)
            if not (value > 0 and math.isfinite(value)):
                raise InvalidArgumentError(f"score: {name}={value}, expected more than 0")
        if self.protocol != "plain" and self.stride > self.seq_len:
            raise InvalidArgumentError(
                f"score: stride={self.stride} would skip targets, expected at most "
                f"seq_len={self.seq_len}"
            )


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise InvalidArgumentError(f"score: {name}={value!r}, expected {' or '.join(choices)}")

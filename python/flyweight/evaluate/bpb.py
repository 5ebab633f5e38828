"""Bits per byte: two sums over the same targets, divided once.

``bpb = (sum of -ln p over the targets / ln 2) / (bytes of text of the same targets)``. The sum of
nats is rounded once (`math.fsum`), so no order of targets, split into chunks or stride changes it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flyweight.data.byte_counts import ByteSidecar, ByteTable
from flyweight.errors import InvalidArgumentError

__all__ = ["Score", "score_targets"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """What a stream costs a model; scores of disjoint targets can be added."""

    nats: float
    """Sum of ``-ln p`` over the targets, float64."""
    targets: int
    """Tokens predicted."""
    text_bytes: int
    """Bytes of original text that these targets stand for."""

    @property
    def bits(self) -> float:
        """Numerator of `bpb`."""
        return self.nats / math.log(2.0)

    @property
    def bpb(self) -> float:
        """Bits per byte of the original text."""
        if self.text_bytes <= 0:
            raise InvalidArgumentError(
                f"bits per byte: {self.targets} targets have {self.text_bytes} bytes of text"
            )
        return self.bits / self.text_bytes

    @property
    def nats_per_token(self) -> float:
        """Mean loss of a target; comparable only under one tokenizer."""
        if self.targets <= 0:
            raise InvalidArgumentError("nats per token: there are no targets")
        return self.nats / self.targets

    def __add__(self, other: Score) -> Score:
        return Score(
            nats=self.nats + other.nats,
            targets=self.targets + other.targets,
            text_bytes=self.text_bytes + other.text_bytes,
        )

    def __str__(self) -> str:
        return (
            f"{self.bpb:.8f} bpb = {self.bits:.3f} bits / {self.text_bytes} bytes "
            f"({self.targets} targets, {self.nats_per_token:.8f} nats per token)"
        )


def score_targets(
    nats: NDArray[np.float64], tokens: NDArray[Any], counter: ByteTable | ByteSidecar
) -> Score:
    """Score of a whole stream from its final entries, one per target.

    Parameters
    ----------
    nats : (n,) float64, ``-ln p`` of ``tokens[1:]``
    tokens : (n + 1,) integers, the stream; its first token is context only
    counter : bytes of each token id, or of each token of the stream

    Raises
    ------
    InvalidArgumentError
        Lengths that do not match, a target without a finite score, an id outside of the table, a
        sidecar of another stream.
    """
    if nats.size != tokens.size - 1:
        raise InvalidArgumentError(
            f"score: {nats.size} scores for {tokens.size} tokens, expected {tokens.size - 1}"
        )
    if not np.isfinite(nats).all():
        raise InvalidArgumentError(
            f"score: target {int(np.argmin(np.isfinite(nats)))} has no finite score"
        )
    exact = np.ascontiguousarray(nats, dtype=np.float64)
    chunks = np.array_split(tokens, 1 + tokens.size // (1 << 20))
    return Score(nats=math.fsum(exact.data), targets=nats.size, text_bytes=counter.total(chunks))

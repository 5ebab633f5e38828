"""Causal n-gram hints: what followed the last tokens before, as a tilt of the whole distribution.

For each target a context of the longest known order names one token h, and the model's distribution
p becomes ``p'(v) = p(v) exp(b [v = h]) / Z`` with ``Z = 1 + p(h) (e^b - 1)``: normalized over the
vocabulary, and fixed before the target is looked at. h comes from counts and b from hits, both of
chunks whose scores are final.

Shapes: n targets of a chunk, K buckets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from flyweight.errors import DataError
from flyweight.evaluate.adapters import ScoreFirst
from flyweight.evaluate.config import NgramConfig, ScoreConfig
from flyweight.evaluate.engine import Alone, ScoredChunk, ScoringEngine, Sliding
from flyweight.evaluate.ledger import Entries
from flyweight.evaluate.scorer import Tilt
from flyweight.evaluate.window import Windows

__all__ = ["Hints", "NgramScoreFirst", "NgramSliding", "NgramTable", "Tilts"]

_MIX = np.uint64(0x9E3779B97F4A7C15)  # 2^64 over the golden ratio: spreads its products
_PURITIES, _COUNTS = 4, 5
"""Levels of how often a context went on with its hint, and of how often it was seen."""


class NgramTable:
    """The most frequent token behind each context of one length, by vote, in fixed memory.

    Parameters
    ----------
    order : tokens of a context
    bits : log2 of the number of slots; two contexts of one slot compete for it

    References
    ----------
    R. S. Boyer and J S. Moore, "MJRTY, a fast majority vote algorithm", 1981: here per chunk.
    """

    def __init__(self, order: int, bits: int) -> None:
        self.order, self._shift = order, np.uint64(64 - bits)
        self._keys = np.zeros(1 << bits, dtype=np.uint64)
        self._tokens, self._votes, self._seen = (
            np.zeros(1 << bits, dtype=np.int32) for _ in range(3)
        )

    def keys(self, tokens: NDArray[np.int64], start: int, stop: int) -> NDArray[np.uint64]:
        """Hashes of the contexts of a run of targets.

        Parameters
        ----------
        tokens : (T,) int64, the stream; the context of target i ends with token i
        start, stop : the targets ``start .. stop - 1``

        Returns
        -------
        (stop - start,) uint64; 0, which no table holds, where a context would begin before the
        stream
        """
        hashed = np.full(stop - start, np.uint64(self.order))
        with np.errstate(over="ignore"):
            for back in range(self.order):
                places = np.arange(start, stop) - back
                token = tokens[np.maximum(places, 0)].astype(np.uint64) + np.uint64(1)
                hashed = (hashed ^ token) * _MIX
                hashed ^= hashed >> np.uint64(29)
        hashed |= np.uint64(1)
        hashed[: max(self.order - 1 - start, 0)] = 0
        return hashed

    def look_up(self, keys: NDArray[np.uint64]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Hint of each context, and how sure it is.

        Parameters
        ----------
        keys : (n,) uint64, from `keys`

        Returns
        -------
        (n,) int32, token ids; and (n,) int64, 0 to ``_PURITIES * _COUNTS - 1``, -1 where the
        context is not known and the id means nothing
        """
        slots = keys >> self._shift
        votes, seen = self._votes[slots], np.maximum(self._seen[slots], 1)
        purity = np.minimum(_PURITIES * votes // seen, _PURITIES - 1)
        count = np.minimum(np.log2(seen).astype(np.int64), _COUNTS - 1)
        known = (self._keys[slots] == keys) & (keys != 0)
        return self._tokens[slots], np.where(known, purity * _COUNTS + count, -1)

    def add(self, keys: NDArray[np.uint64], following: NDArray[np.int64]) -> None:
        """Count tokens behind contexts, all of a scored chunk at once.

        Parameters
        ----------
        keys : (n,) uint64, from `keys`; those that are 0 are left out
        following : (n,) int64, the token behind each context
        """
        kept = keys != 0
        keys, following = keys[kept], following[kept]
        if not keys.size:
            return
        order = np.lexsort((following, keys))
        keys, following = keys[order], following[order]
        starts = np.flatnonzero(np.r_[True, (np.diff(keys) != 0) | (np.diff(following) != 0)])
        counts = np.diff(np.r_[starts, keys.size])
        pair_keys, pair_tokens = keys[starts], following[starts]
        groups, group_of = np.unique(pair_keys, return_inverse=True)
        totals = np.bincount(group_of, counts).astype(np.int64)
        by_count = np.lexsort((-pair_tokens, counts, group_of))
        best = by_count[np.r_[np.flatnonzero(np.diff(group_of[by_count])), by_count.size - 1]]
        slots = groups >> self._shift
        is_own = (self._keys[slots] == groups) & (self._seen[slots] > 0)
        current = self._tokens[slots]
        agreed = np.bincount(group_of, counts * (pair_tokens == current[group_of]))
        votes = self._votes[slots] + 2 * agreed.astype(np.int64) - totals
        stays = is_own & (votes >= 0)
        fresh = np.maximum(2 * counts[best] - totals, 0)
        seen = np.where(is_own, self._seen[slots] + totals, totals)
        weaker = ~is_own & (self._seen[slots] > totals)  # the slot is another's, who only ages
        self._seen[slots[weaker]] -= totals[weaker].astype(np.int32)
        taken = ~weaker
        self._keys[slots[taken]] = groups[taken]
        self._seen[slots[taken]] = seen[taken]
        self._tokens[slots[taken]] = np.where(stays, current, pair_tokens[best])[taken]
        self._votes[slots[taken]] = np.where(stays, votes, fresh)[taken]


@dataclass(frozen=True, slots=True, eq=False)
class Hints:
    """What is known of the targets of a chunk before any of them is looked at."""

    tokens: NDArray[np.int32]
    """``(n,)``, the token that each context names."""
    buckets: NDArray[np.int64]
    """``(n,)``, how sure it is; -1 where no context is known."""


class Tilts:
    """How much a hint of each bucket is believed: maximum likelihood over what was scored.

    Parameters
    ----------
    buckets : K
    certainty : of the first belief, which is no tilt: as so many hints that are half right

    Notes
    -----
    After each chunk the tilt b of a bucket maximizes the likelihood of the chunk's hits, less
    ``(b - b_before)^2 / 2`` times the curvature of all chunks before.
    """

    def __init__(self, buckets: int, certainty: float = 4.0) -> None:
        self.values = np.zeros(buckets)
        self.curvatures = np.full(buckets, certainty)

    def of(self, buckets: NDArray[np.int64]) -> NDArray[np.float32]:
        """Tilt of each hint, ``(n,)``; 0 where there is none."""
        tilts = self.values[np.maximum(buckets, 0)]
        return np.where(buckets >= 0, tilts, 0.0).astype(np.float32)

    def after(
        self, buckets: NDArray[np.int64], hits: NDArray[np.bool_], nats: NDArray[np.float64]
    ) -> Tilts:
        """Beliefs that also know a chunk.

        Parameters
        ----------
        buckets : (n,), of its hints
        hits : (n,), where the target was the hint
        nats : (n,), ``-ln p'`` of the hints
        """
        known = buckets >= 0
        buckets, hits = buckets[known], hits[known]
        share = np.clip(np.exp(-nats[known]), 1e-9, 1 - 1e-9)
        untilted = np.log(share) - np.log1p(-share) - self.values[buckets]
        count, found = self.values.size, Tilts(self.values.size)
        values, curve = self.values.copy(), np.zeros(count)
        for _ in range(12):
            share = 1 / (1 + np.exp(-untilted - values[buckets]))
            slope = np.bincount(buckets, hits - share, count) + self.curvatures * (
                self.values - values
            )
            curve = np.bincount(buckets, share * (1 - share), count).astype(np.float64)
            values += np.clip(slope / (curve + self.curvatures), -1, 1)
        found.values, found.curvatures = values, self.curvatures + curve
        return found


class _WithHints(ScoringEngine):
    """Scores of a model whose distribution is tilted toward hints."""

    def __init__(
        self,
        model: nn.Module,
        tokens: NDArray[Any],
        ledger: Entries,
        config: ScoreConfig,
        peers: Alone | None = None,
    ) -> None:
        super().__init__(model, tokens, ledger, config, peers)
        ngram = config.ngram or NgramConfig()
        self._stream = tokens.astype(np.int64)
        self._tables = [NgramTable(order, ngram.table_bits) for order in ngram.orders]
        self._levels = _PURITIES * _COUNTS
        self._tilts = Tilts(self._levels * len(self._tables))
        self._pending = self._tilts
        self.scorer.is_tilted = True

    def _hints(self, start: int, stop: int) -> Hints:
        """The longest context that is known decides."""
        tokens = np.zeros(stop - start, dtype=np.int32)
        buckets = np.full(stop - start, -1, dtype=np.int64)
        by_length = sorted(enumerate(self._tables), key=lambda pair: pair[1].order)
        for index, table in by_length:
            hint, sureness = table.look_up(table.keys(self._stream, start, stop))
            tokens = np.where(sureness >= 0, hint, tokens)
            buckets = np.where(sureness >= 0, index * self._levels + sureness, buckets)
        return Hints(tokens, buckets)

    def _score(self, windows: Windows) -> NDArray[np.float64]:
        start, stop = windows.start, windows.stop
        hints = self._hints(start, stop)
        device = self.tokens_T.device
        tilt = Tilt(
            start,
            torch.from_numpy(hints.tokens.astype(np.int64)).to(device),
            torch.from_numpy(self._tilts.of(hints.buckets)).to(device),
        )
        found = self.peers.score(self.scorer, windows, tilt)
        hits = self._stream[start + 1 : stop + 1] == hints.tokens
        self._pending = self._tilts.after(hints.buckets, hits, found[:, 1])
        return found[:, 0]

    def _facts(self) -> dict[str, Any]:
        beliefs = (self._pending.values.tolist(), self._pending.curvatures.tolist())
        return {**super()._facts(), "tilts": beliefs}

    def tokens_to_learn(self, index: int) -> int:
        """At least one: counting is quick, and always worth its time."""
        return max(super().tokens_to_learn(index), 1)

    def _learn(self, scored: ScoredChunk) -> None:
        super()._learn(scored)
        if scored.was_recorded:
            self._recall(scored.index)
        self._tilts = self._pending
        following = self._stream[scored.start + 1 : scored.stop + 1]
        for table in self._tables:
            table.add(table.keys(self._stream, scored.start, scored.stop), following)

    def _recall(self, index: int) -> None:
        """Beliefs as they were in an earlier life, which alone knew the hints' probabilities."""
        beliefs: Sequence[Sequence[float]] = self.journal.read(index, "tilts") or ()
        if [len(part) for part in beliefs] != 2 * [self._tilts.values.size]:
            raise DataError(
                f"{self.ledger.path}: the journal beside it has no beliefs of chunk {index}, so "
                "that scoring cannot go on where it stopped; remove the ledger to score anew"
            )
        self._pending = Tilts(self._tilts.values.size)
        self._pending.values, self._pending.curvatures = (np.array(part) for part in beliefs)


class NgramSliding(_WithHints, Sliding):
    """Sliding windows with hints; the weights stay as they are."""


class NgramScoreFirst(_WithHints, ScoreFirst):
    """Score-first training with hints."""

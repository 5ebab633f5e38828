"""Scores in a context that rolls: each token is read once, and attends to those before it.

In every layer a position attends to the last ``seq_len`` positions, itself included, as in
sliding-window attention (Beltagy et al., "Longformer", arXiv:2004.05150): no window has an edge, so
no token has to be read again for a context of full length. A pass takes rows that lie one behind
the other, ``seq_len`` tokens each, whose keys and values the next row attends to. What a row gives
depends on as many rows before it as attention runs in a pass; these are in each pass too.

Shapes: R rows of a pass, L tokens of one, K keys that a row sees (2 L), D model_dim.
"""

from __future__ import annotations

from types import MappingProxyType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from flyweight.errors import InvalidArgumentError
from flyweight.evaluate.adapters import ScoreFirst
from flyweight.evaluate.config import ScoreConfig
from flyweight.evaluate.engine import ScoringEngine, Sliding
from flyweight.evaluate.scorer import Tilt, WindowScorer, autocast, nats_of
from flyweight.evaluate.window import Windows, plain_windows
from flyweight.model.attention import Positions, document_ids
from flyweight.model.transformer import Transformer

__all__ = ["Rolling", "RollingScoreFirst", "RollingScorer"]

_BEFORE = 2
"""Tokens before a row that its embeddings depend on."""


class RollingScorer(WindowScorer):
    """Nats of targets, each of which has the context of ``seq_len`` tokens in every layer.

    Notes
    -----
    Passes have one shape and depend on nothing but weights and tokens, so that processes may share
    them out. They are not compiled: a text is read in a few of them.

    Raises
    ------
    InvalidArgumentError
        The model is no `Transformer`.
    """

    most_windows = MappingProxyType({"cpu": 96, "cuda": 128})

    def __init__(
        self, model: nn.Module, tokens_T: Tensor, config: ScoreConfig, *, compiles: bool = True
    ) -> None:
        super().__init__(model, tokens_T, config, compiles=compiles)
        if not isinstance(model, Transformer):
            raise InvalidArgumentError(
                f"score: a rolling context needs a Transformer, got {type(model).__name__}"
            )
        self._transformer = model
        self._depth = len(model.config.layer_order())
        if not config.batch_windows:  # a pass that is longer than a chunk would be filled up
            own = max(self.batch_windows - self._depth, self._depth)
            self.batch_windows = min(own, -(-config.chunk_targets // config.seq_len))
        self.plainly = WindowScorer(model, tokens_T, config, compiles=compiles)

    def warm_up(self, *, plainly: bool = False) -> int:
        """Run one pass over zeros and wait; how many tokens it scores."""
        if plainly:
            return self.plainly.warm_up(plainly=True)
        rows = self._depth + self.batch_windows
        tokens = self._tokens_T.new_zeros(_BEFORE + rows * self._length + 1)
        with torch.inference_mode(), autocast(tokens.device, self._precision):
            self._nats(tokens, 0, rows, is_start=True).sum().item()
        return self.batch_windows * self._length

    def _score_batch(self, batch: Windows, begin_B: Tensor, tilt: Tilt | None) -> Tensor:
        row = int(batch.first[0]) // self._length
        known = min(row, self._depth)
        first = (row - known) * self._length - _BEFORE
        last = first + _BEFORE + (self._depth + self.batch_windows) * self._length
        places_N = torch.arange(first, last + 1, device=begin_B.device)
        # What lies behind the stream is behind all that is scored; before it there is nothing.
        tokens_N = self._tokens_T[places_N.clamp(0, len(self._tokens_T) - 1)]
        nats_BL = self._nats(tokens_N, known, known + len(batch), is_start=first < 0)
        return nats_BL[:, : int(batch.end[0] - batch.first[0])].flatten()

    def _nats(self, tokens_N: Tensor, begin: int, end: int, *, is_start: bool) -> Tensor:
        """Nats (end - begin, L) of some rows of a pass.

        Parameters
        ----------
        tokens_N : (2 + R L + 1,) the two tokens before the pass, its own, and the last target
        begin, end : the rows that are scored
        is_start : whether the pass begins with the stream, so that nothing is before its first row
        """
        model, size = self._transformer, self._length
        tokens_RN = tokens_N.long().unfold(0, _BEFORE + size + 1, size)
        x_RLD = model.embed(tokens_RN[:, :-1])[:, _BEFORE:]
        rows_RL = tokens_RN[:, _BEFORE:-1]
        if is_start:
            x_RLD = torch.cat((model.embed(rows_RL[:1]), x_RLD[1:]))
        tables = model.rope_tables(rows_RL.numel())
        cos, sin = (table.view(*rows_RL.shape, -1) for table in tables)
        mask = self._mask(rows_RL, is_start=is_start)
        hidden_RLD = model.run_blocks(
            x_RLD, rows_RL, Positions(cos, sin, mask), [_with_row_before] * self._depth
        )
        logits = model.logits(hidden_RLD[begin:end])
        return nats_of(logits, tokens_RN[begin:end, _BEFORE + 1 :])

    def _mask(self, rows_RL: Tensor, *, is_start: bool) -> Tensor:
        """Who sees whom, (1 or R, 1, L, K) bool: the last L keys up to one's own place."""
        size, device = rows_RL.shape[1], rows_RL.device
        places_L1 = torch.arange(size, device=device)[:, None]
        keys_K = torch.arange(2 * size, device=device)
        sees = ((keys_K > places_L1) & (keys_K <= places_L1 + size))[None, None]
        if is_start:
            sees = sees.repeat(len(rows_RL), 1, 1, 1)
            sees[0] &= keys_K >= size
        if self._transformer.config.document_mask:
            ids_RL = document_ids(rows_RL.reshape(1, -1)).view(rows_RL.shape)
            ids_RK = torch.cat((functional.pad(ids_RL, (0, 0, 1, 0))[:-1], ids_RL), dim=1)
            sees = sees & (ids_RL[:, None, :, None] == ids_RK[:, None, None, :])
        return sees


def _with_row_before(k_RGLK: Tensor, v_RGLK: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values of each row behind those of the row before; zeros before the first one."""
    k, v = (
        torch.cat((functional.pad(x, (0, 0, 0, 0, 0, 0, 1, 0))[:-1], x), dim=2)
        for x in (k_RGLK, v_RGLK)
    )
    return k, v


class _Rolls(ScoringEngine):
    """An engine whose scores have a context that rolls on."""

    scorer_type = RollingScorer

    def _plan(self, targets: int) -> Windows:
        return plain_windows(targets, seq_len=self.config.seq_len)

    def _score_plainly(self, index: int) -> NDArray[np.float64]:
        assert isinstance(self.scorer, RollingScorer)
        return self.peers.score(self.scorer.plainly, self._blocks(index))


class Rolling(_Rolls, Sliding):
    """A context that rolls on, under a frozen model."""


class RollingScoreFirst(_Rolls, ScoreFirst):
    """Score-first training, each chunk scored in a context that the newest weights give."""

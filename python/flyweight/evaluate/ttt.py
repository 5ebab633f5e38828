"""Scoring protocols: score a chunk, then and only then learn from it.

All protocols share one engine, which goes through a stream chunk by chunk, left to right. `score`
enters the chunk in the ledger and hands out a `ScoredChunk`; `adapt` takes nothing else, and only
the newest one, once. Training on a token before its score is final cannot be written.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from flyweight.errors import InvalidArgumentError
from flyweight.evaluate.config import ScoreConfig
from flyweight.evaluate.ledger import Ledger
from flyweight.evaluate.window import (
    Windows,
    autocast,
    plain_windows,
    score_windows,
    sliding_windows,
    split_chunks,
)

__all__ = [
    "Alone",
    "Plain",
    "ScoreFirst",
    "ScoredChunk",
    "ScoringEngine",
    "Sliding",
    "StreamResult",
    "score_binding",
    "score_stream",
]

_SEAL = object()


@dataclass(frozen=True, slots=True, eq=False)
class ScoredChunk:
    """A chunk whose scores are final and in the ledger; only an engine can make one."""

    index: int
    """Number of the chunk in its stream."""
    start: int
    """First target."""
    stop: int
    """One past the last target."""
    nats: NDArray[np.float64]
    """``(stop - start,)``, ``-ln p`` of each target."""
    was_recorded: bool
    """True if an earlier run scored it, so that the ledger was read instead of the model run."""
    seal: object = field(repr=False)
    """What only the engine has."""

    def __post_init__(self) -> None:
        if self.seal is not _SEAL:
            raise InvalidArgumentError("a ScoredChunk comes from score(), it cannot be made")


class Alone:
    """One process: it scores all windows of a chunk and learns from all of its sequences.

    What several processes do instead is in `flyweight.evaluate.sharded`.
    """

    def score(
        self,
        model: nn.Module,
        tokens_T: Tensor,
        windows: Windows,
        *,
        batch_windows: int,
        precision: str,
    ) -> NDArray[np.float64]:
        """Scores of all targets of the windows; see `score_windows`."""
        return score_windows(
            model, tokens_T, windows, batch_windows=batch_windows, precision=precision
        )

    def rows(self, rows_BL: Tensor) -> Tensor:
        """The sequences of an optimizer step that this process learns from."""
        return rows_BL

    def sum_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Sum the gradients of all processes."""


class ScoringEngine(ABC):
    """One pass of a model over a stream, chunk by chunk.

    Parameters
    ----------
    model : maps tokens (B, L) int64 to logits (B, L, V), causal; put into evaluation mode, its
        weights are never changed
    tokens : (T,) integers, the stream; all but the first are targets
    ledger : takes the ``T - 1`` scores; chunks that it already has are not scored again
    config : sizes
    peers : the processes that share the work

    Raises
    ------
    InvalidArgumentError
        The ledger is of another number of targets.
    """

    def __init__(
        self,
        model: nn.Module,
        tokens: NDArray[Any],
        ledger: Ledger,
        config: ScoreConfig,
        peers: Alone | None = None,
    ) -> None:
        if ledger.targets != tokens.size - 1:
            raise InvalidArgumentError(
                f"score: a ledger of {ledger.targets} targets for {tokens.size} tokens"
            )
        self.model, self.ledger, self.config = model.eval(), ledger, config
        self.peers = peers or Alone()
        device = next(model.parameters()).device
        self.tokens_T = torch.from_numpy(tokens.astype(np.int32)).to(device)
        windows = self._plan(ledger.targets)
        self.chunks = tuple(split_chunks(windows, chunk_targets=config.chunk_targets))
        self._next = 0
        self._newest: ScoredChunk | None = None

    @abstractmethod
    def _plan(self, targets: int) -> Windows:
        """All windows of the stream."""

    def score(self, index: int) -> ScoredChunk:
        """Final scores of the next chunk, under the state that the chunks before it left.

        Parameters
        ----------
        index : number of the chunk, one more than in the call before

        Raises
        ------
        InvalidArgumentError
            The chunk is not the next one.
        DataError
            The model gives no finite score for a token, or the ledger has a part of the chunk.

        References
        ----------
        openai/parameter-golf issue 1017, conditions 3 and 4: score before update, one pass.
        """
        if index != self._next or index >= len(self.chunks):
            raise InvalidArgumentError(
                f"score: got chunk {index} of {len(self.chunks)}, expected chunk {self._next}: "
                "each is scored once, left to right"
            )
        windows = self.chunks[index]
        recorded = self.ledger.recorded(windows.start, windows.stop)
        nats = self._score(windows) if recorded is None else recorded
        self._next = index + 1
        self._newest = ScoredChunk(
            index, windows.start, windows.stop, nats, recorded is not None, _SEAL
        )
        return self._newest

    def _score(self, windows: Windows) -> NDArray[np.float64]:
        nats = self.peers.score(
            self.model,
            self.tokens_T,
            windows,
            batch_windows=self.config.batch_windows,
            precision=self.config.precision,
        )
        self.ledger.append(windows.start, nats)
        return nats

    def adapt(self, scored: ScoredChunk) -> None:
        """Learn from a chunk that was just scored; at most once.

        Raises
        ------
        InvalidArgumentError
            Not the object that the newest `score` of this engine returned, or already used.
        """
        if scored is not self._newest or not isinstance(scored, ScoredChunk):
            raise InvalidArgumentError(
                "adapt: expected the ScoredChunk that the newest score() of this engine returned, "
                f"not yet used; got {type(scored).__name__}"
            )
        self._newest = None
        self._learn(scored)

    def _learn(self, scored: ScoredChunk) -> None:  # noqa: B027 - a hook, not a duty
        """Nothing: most protocols leave the weights as they are."""


class Plain(ScoringEngine):
    """Blocks without overlap."""

    def _plan(self, targets: int) -> Windows:
        return plain_windows(targets, seq_len=self.config.seq_len)


class Sliding(ScoringEngine):
    """Overlapping windows: nearly every target has a context of almost ``seq_len``."""

    def _plan(self, targets: int) -> Windows:
        return sliding_windows(targets, seq_len=self.config.seq_len, stride=self.config.stride)


class ScoreFirst(Sliding):
    """Sliding windows, and AdamW on the last blocks of a copy of the model after each chunk.

    The learning rate follows a cosine over the chunks; the optimizer's state is kept between them.
    The model must have ``blocks``, a sequence of modules.

    Notes
    -----
    On resume the chunks in the ledger are learned from again, in order. On the CPU the state, and
    so every later score, is then bit-identical; on a GPU as far as its kernels are deterministic.

    References
    ----------
    openai/parameter-golf, PR #461 (chunked form) and PR #585 (AdamW on the last blocks).
    """

    def __init__(
        self,
        model: nn.Module,
        tokens: NDArray[Any],
        ledger: Ledger,
        config: ScoreConfig,
        peers: Alone | None = None,
    ) -> None:
        super().__init__(copy.deepcopy(model), tokens, ledger, config, peers)
        blocks = list(self.model.get_submodule("blocks").children())
        if config.last_blocks > len(blocks):
            raise InvalidArgumentError(
                f"score: last_blocks={config.last_blocks}, the model has {len(blocks)}"
            )
        self.model.requires_grad_(False)
        learning = nn.ModuleList(blocks[-config.last_blocks :]).requires_grad_(True)
        self._parameters = list(learning.parameters())
        self._optimizer = torch.optim.AdamW(
            self._parameters, lr=config.learning_rate, weight_decay=0.0
        )

    def _learn(self, scored: ScoredChunk) -> None:
        progress = scored.index / max(len(self.chunks) - 1, 1)
        for group in self._optimizer.param_groups:
            group["lr"] = self.config.learning_rate * 0.5 * (1.0 + math.cos(math.pi * progress))
        rows_BL = self._sequences(scored.start, scored.stop)
        for _ in range(self.config.epochs):
            for batch_BL in torch.split(rows_BL, self.config.adapt_sequences):
                self._step(batch_BL)

    def _sequences(self, start: int, stop: int) -> Tensor:
        """The chunk's own tokens, rows without overlap; a rest shorter than a row is left out."""
        length = min(self.config.seq_len, stop - start)
        tokens_T = self.tokens_T[start : stop + 1].long()
        return tokens_T.unfold(0, length + 1, length)

    def _step(self, rows_BL: Tensor) -> None:
        self._optimizer.zero_grad()
        own_BL, targets = self.peers.rows(rows_BL), rows_BL[:, 1:].numel()
        if len(own_BL):
            self._backward(own_BL, targets)
        self.peers.sum_gradients(self._parameters)
        nn.utils.clip_grad_norm_(self._parameters, self.config.clip_norm)
        self._optimizer.step()

    def _backward(self, rows_BL: Tensor, targets: int) -> None:
        """Gradients of the part of the mean loss over so many targets that these rows have."""
        with torch.enable_grad():
            with autocast(rows_BL.device, self.config.precision):
                logits_BLV = self.model(rows_BL[:, :-1])
            nats = functional.cross_entropy(
                logits_BLV.flatten(0, 1).float(), rows_BL[:, 1:].flatten(), reduction="sum"
            )
            torch.autograd.backward(nats / targets)


_PROTOCOLS: dict[str, type[ScoringEngine]] = {
    "plain": Plain,
    "sliding": Sliding,
    "score-first": ScoreFirst,
}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StreamResult:
    """A stream scored to its end."""

    nats: NDArray[np.float64]
    """``(targets,)``, ``-ln p`` of each target."""
    new_chunks: int
    """Chunks scored now."""
    recorded_chunks: int
    """Chunks that the ledger already had."""
    chain: str
    """Hash over the whole ledger, hexadecimal."""


def score_stream(
    model: nn.Module,
    tokens: NDArray[Any],
    ledger: Ledger,
    config: ScoreConfig,
    *,
    progress: Callable[[ScoredChunk], None] | None = None,
    peers: Alone | None = None,
) -> StreamResult:
    """Score every target of a stream once, or finish what an earlier run began.

    Parameters
    ----------
    model, tokens, ledger : as for `ScoringEngine`; the weights stay as they were found
    config : the protocol and its sizes
    progress : called after each chunk, recorded ones included
    peers : the processes that share the work; each makes the same call with its own copy of the
        ledger

    Raises
    ------
    InvalidArgumentError, DataError
        As `ScoringEngine.score`; what is in the ledger by then stays there.
    """
    engine = _PROTOCOLS[config.protocol](model, tokens, ledger, config, peers)
    last, new = len(engine.chunks) - 1, 0
    learns = ledger.scored < ledger.targets
    for index in range(len(engine.chunks)):
        scored = engine.score(index)
        new += not scored.was_recorded
        if learns and index < last:  # after the last there is nothing left to score
            engine.adapt(scored)
        if progress is not None:
            progress(scored)
    return StreamResult(
        nats=ledger.complete(),
        new_chunks=new,
        recorded_chunks=len(engine.chunks) - new,
        chain=ledger.chain,
    )


def score_binding(tokens: NDArray[Any], config: ScoreConfig, *, model_sha256: str) -> bytes:
    """What a ledger is of: 32 bytes that change with the tokens, the config or the model.

    Parameters
    ----------
    tokens : (T,) integers, the stream
    config : protocol and sizes
    model_sha256 : hash of the file that holds the weights, hexadecimal
    """
    facts = json.dumps({"config": asdict(config), "model": model_sha256}, sort_keys=True)
    digest = hashlib.sha256(facts.encode())
    digest.update(np.ascontiguousarray(tokens, dtype="<u4").data)
    return digest.digest()

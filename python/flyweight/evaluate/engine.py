"""The engine of all scoring protocols: score a chunk, then and only then learn from it.

It goes through a stream chunk by chunk, left to right. `score` enters the chunk in the ledger and
hands out a `ScoredChunk`; `adapt` takes nothing else, and only the newest one, once. Training on a
token before its score is final cannot be written.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from flyweight.errors import InvalidArgumentError
from flyweight.evaluate.config import ScoreConfig
from flyweight.evaluate.ledger import Entries
from flyweight.evaluate.pace import Journal
from flyweight.evaluate.scorer import Tilt, WindowScorer, compiling_pays
from flyweight.evaluate.window import Windows, plain_windows, sliding_windows, split_chunks

__all__ = ["Alone", "Plain", "ScoredChunk", "ScoringEngine", "Sliding"]

Item = TypeVar("Item")
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

    is_first = True
    """Whether this process writes."""

    def score(
        self, scorer: WindowScorer, windows: Windows, tilt: Tilt | None = None
    ) -> NDArray[np.float64]:
        """Scores of all targets of the windows; see `WindowScorer.score`."""
        return scorer.score(windows, tilt)

    def decide(self, answer: bool) -> bool:
        """The answer of the first process, in each of them."""
        return answer

    def fewest(self, count: int) -> int:
        """The smallest count of all processes."""
        return count

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        """The items that this process works on."""
        return items

    def sum_scores(self, nats: NDArray[np.float64]) -> NDArray[np.float64]:
        """Scores of all processes, where each has zeros for what others scored."""
        return nats

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

    adapts_within = False
    """Whether a chunk is learned from while it is scored, each token behind its score."""
    scorer_type: type[WindowScorer] = WindowScorer
    """What the windows of the plan are scored by."""

    def __init__(
        self,
        model: nn.Module,
        tokens: NDArray[Any],
        ledger: Entries,
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
        self.compiles = self._should_compile()
        self.scorer = self.scorer_type(model, self.tokens_T, config, compiles=self.compiles)
        self.scorer.batch_windows = self.peers.fewest(self.scorer.batch_windows)
        path = ledger.path.with_name(ledger.path.name + ".journal")
        self.journal = Journal(path, is_new=ledger.scored == 0, writes=self.peers.is_first)
        self._next = 0
        self._has_learned = False
        self._newest: ScoredChunk | None = None

    def _should_compile(self) -> bool:
        if self.config.compile != "auto":
            return self.config.compile
        own = sum(windows.tokens for windows in self.peers.share(self.chunks))
        return self.peers.decide(compiling_pays(self.model, own))

    @abstractmethod
    def _plan(self, targets: int) -> Windows:
        """All windows of the stream."""

    def score(self, index: int, *, plainly: bool = False) -> ScoredChunk:
        """Final scores of the next chunk, under the state that the chunks before it left.

        Parameters
        ----------
        index : of the chunk
        plainly : in blocks without overlap, which takes the least time, whatever the protocol

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
        if recorded is None:
            nats = self._score_plainly(index) if plainly else self._score(windows)
            self.journal.write(index, plain=plainly, **self._facts())
            self.ledger.append(windows.start, nats)
        else:
            nats = recorded
        self._next, self._has_learned = index + 1, False
        self._newest = ScoredChunk(
            index, windows.start, windows.stop, nats, recorded is not None, _SEAL
        )
        return self._newest

    def _blocks(self, index: int) -> Windows:
        windows = self.chunks[index]
        return plain_windows(windows.stop, seq_len=self.config.seq_len, start=windows.start)

    def _score_plainly(self, index: int) -> NDArray[np.float64]:
        return self._score(self._blocks(index))

    def _facts(self) -> dict[str, Any]:
        """What a resumed run must know of the chunk that was just scored."""
        return {"learned": self._has_learned}

    def _score(self, windows: Windows) -> NDArray[np.float64]:
        return self.peers.score(self.scorer, windows)

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
        self._newest, self._has_learned = None, True
        self._learn(scored)

    def _learn(self, scored: ScoredChunk) -> None:  # noqa: B027 - a hook, not a duty
        """Nothing: most protocols leave the weights as they are."""

    def is_recorded(self, index: int) -> bool:
        """Whether the ledger has the scores of a chunk."""
        windows = self.chunks[index]
        return self.ledger.recorded(windows.start, windows.stop) is not None

    def tokens_to_score(self, index: int, *, plainly: bool = False) -> int:
        """Tokens that the model goes over in `score`."""
        return (self._blocks(index) if plainly else self.chunks[index]).tokens

    def tokens_to_learn(self, index: int) -> int:
        """Tokens that the model goes over in `adapt`; 0 where there is nothing to learn."""
        return 0

    def wait(self) -> None:
        """Wait until the device has done all that it was given."""
        if self.tokens_T.is_cuda:
            torch.cuda.synchronize(self.tokens_T.device)

    def warm_up(self) -> None:
        """Run what the stream will meet on tokens that are not the stream's, which compiles it."""
        self.scorer.warm_up()


class Plain(ScoringEngine):
    """Blocks without overlap."""

    def _plan(self, targets: int) -> Windows:
        return plain_windows(targets, seq_len=self.config.seq_len)


class Sliding(ScoringEngine):
    """Overlapping windows: nearly every target has a context of almost ``seq_len``."""

    def _plan(self, targets: int) -> Windows:
        return sliding_windows(targets, seq_len=self.config.seq_len, stride=self.config.stride)

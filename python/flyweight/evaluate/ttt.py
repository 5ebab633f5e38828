"""All scoring protocols by name; a run picks one, a submitted script carries its own alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numpy.typing import NDArray
from torch import nn

from flyweight.evaluate.adapters import ScoreFirst
from flyweight.evaluate.config import ScoreConfig
from flyweight.evaluate.engine import Alone, Plain, ScoredChunk, ScoringEngine, Sliding
from flyweight.evaluate.ledger import Entries
from flyweight.evaluate.lora import PerDocument
from flyweight.evaluate.ngram import NgramScoreFirst, NgramSliding
from flyweight.evaluate.rolling import Rolling, RollingScoreFirst
from flyweight.evaluate.stream import StreamResult, run_engine

__all__ = ["ENGINES", "score_stream"]

ENGINES: dict[str, type[ScoringEngine]] = {
    "plain": Plain,
    "sliding": Sliding,
    "score-first": ScoreFirst,
    "per-document": PerDocument,
    "sliding with hints": NgramSliding,
    "score-first with hints": NgramScoreFirst,
    "sliding with rolling context": Rolling,
    "score-first with rolling context": RollingScoreFirst,
}


def score_stream(
    model: nn.Module,
    tokens: NDArray[Any],
    ledger: Entries,
    config: ScoreConfig,
    *,
    deadline: float | None = None,
    progress: Callable[[ScoredChunk], None] | None = None,
    peers: Alone | None = None,
) -> StreamResult:
    """Score every target of a stream once, or finish what an earlier run began.

    Parameters
    ----------
    model, tokens, ledger : as for `ScoringEngine`; the weights stay as they were found
    config : the protocol and its sizes
    deadline : seconds that it may take; see `run_engine`
    progress : called after each chunk, recorded ones included
    peers : the processes that share the work; each makes the same call with its own copy of the
        ledger

    Raises
    ------
    InvalidArgumentError, DataError
        As `ScoringEngine.score`; what is in the ledger by then stays there.
    """
    engine = ENGINES[config.method](model, tokens, ledger, config, peers)
    return run_engine(engine, deadline=deadline, progress=progress)

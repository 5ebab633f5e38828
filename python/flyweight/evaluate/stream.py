"""A stream from its first chunk to its last, and what fixes its scores."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flyweight.evaluate.config import ScoreConfig
from flyweight.evaluate.engine import ScoredChunk, ScoringEngine

__all__ = ["StreamResult", "run_engine", "score_binding"]


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


def run_engine(
    engine: ScoringEngine, *, progress: Callable[[ScoredChunk], None] | None = None
) -> StreamResult:
    """Score every target of a stream once, or finish what an earlier run began.

    Parameters
    ----------
    engine : new; one that scored chunks already is refused
    progress : called after each chunk, recorded ones included

    Raises
    ------
    InvalidArgumentError, DataError
        As `ScoringEngine.score`; what is in the ledger by then stays there.
    """
    ledger = engine.ledger
    last, new = len(engine.chunks) - 1, 0
    is_open = ledger.scored < ledger.targets
    if is_open and engine.config.compile:
        engine.warm_up()
    for index in range(len(engine.chunks)):
        scored = engine.score(index)
        new += not scored.was_recorded
        if is_open and index < last:  # after the last there is nothing left to score
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

"""A stream from its first chunk to its last, and what fixes its scores."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch._dynamo.utils import counters

from flyweight.evaluate.config import ScoreConfig
from flyweight.evaluate.engine import ScoredChunk, ScoringEngine
from flyweight.evaluate.pace import Pace

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
    adapted_chunks: int
    """Chunks that were learned from, in this run or an earlier one."""
    plain_chunks: int
    """Chunks that were scored in plain blocks because of a deadline."""
    seconds: dict[str, float]
    """Of this run, by phase: ``compile``, ``score``, ``plain``, ``adapt``."""
    former_seconds: float
    """Of earlier runs that were killed, each up to its last chunk, compilation apart."""
    recompilations: int
    """Graphs compiled behind the phase ``compile``; there should be none."""
    chain: str
    """Hash over the whole ledger, hexadecimal."""


def run_engine(
    engine: ScoringEngine,
    *,
    deadline: float | None = None,
    progress: Callable[[ScoredChunk], None] | None = None,
) -> StreamResult:
    """Score every target of a stream once, or finish what an earlier run began.

    Parameters
    ----------
    engine : new; one that scored chunks already is refused
    deadline : seconds that it may take, earlier runs included and compilation apart; None is no end
    progress : called after each chunk, recorded ones included

    Raises
    ------
    InvalidArgumentError, DataError
        As `ScoringEngine.score`; what is in the ledger by then stays there.

    Notes
    -----
    Before each chunk the plan is made anew from measured seconds. A chunk is learned from if all
    that is left can still be scored under the protocol, and scored under the protocol if the rest
    behind it can still be scored in plain blocks. Either is begun only where it and plain blocks
    for the rest would be in time even if the machine became `SLOWDOWN` times slower. Coverage is
    complete whatever the deadline; one that plain blocks alone do not keep is overrun.
    """
    ledger, chunks = engine.ledger, range(len(engine.chunks))
    is_open = ledger.scored < ledger.targets
    compile_seconds, graphs, pace = _prepare(engine, deadline if is_open else None, is_open)
    costs = [engine.tokens_to_score(k) for k in chunks]
    plain_costs = [engine.tokens_to_score(k, plainly=True) for k in chunks]
    new, learned, plain = 0, 0, 0
    scored: ScoredChunk | None = None
    for index in chunks:
        recorded = engine.is_recorded(index)
        if scored is not None and engine.tokens_to_learn(scored.index):
            left = {"score": sum(costs[index:]), "plain": sum(plain_costs[index:])}
            learns = _should_learn(engine, pace, scored.index, left, recorded)
            learned += learns
            if learns and is_open:  # where all is scored there is nothing to learn for
                with pace.measure("adapt", engine.tokens_to_learn(scored.index)):
                    engine.adapt(scored)
                    engine.wait()
        plainly = bool(engine.journal.read(index, "plain"))
        if not recorded:
            is_safe = pace.is_safe(score=costs[index], plain=sum(plain_costs[index + 1 :]))
            plainly = not engine.peers.decide(is_safe)
        cost = (plain_costs if plainly else costs)[index]
        with pace.measure("plain" if plainly else "score", 0 if recorded else cost):
            scored = engine.score(index, plainly=plainly)
        new, plain = new + (not recorded), plain + plainly
        learned += engine.adapts_within and not plainly
        if progress is not None:
            progress(scored)
    return StreamResult(
        nats=ledger.complete(),
        new_chunks=new,
        recorded_chunks=len(chunks) - new,
        adapted_chunks=learned,
        plain_chunks=plain,
        seconds={"compile": compile_seconds, **pace.seconds},
        former_seconds=engine.journal.former_seconds,
        recompilations=int(counters["stats"]["unique_graphs"] - graphs),
        chain=ledger.chain,
    )


def _prepare(
    engine: ScoringEngine, deadline: float | None, is_open: bool
) -> tuple[float, int, Pace]:
    """Warm up, and look how fast a usual batch is; the clock starts behind that."""
    begin, rates = time.perf_counter(), {}
    if is_open and engine.config.compile:
        engine.warm_up()
    for phase in ("score", "plain") if deadline else ():
        engine.scorer.warm_up(plainly=phase == "plain")
        probe = time.perf_counter()
        tokens = engine.scorer.warm_up(plainly=phase == "plain")
        rates[phase] = (time.perf_counter() - probe) / tokens
    seconds = time.perf_counter() - begin
    engine.journal.start()
    left = None if deadline is None else deadline - engine.journal.former_seconds
    return seconds, counters["stats"]["unique_graphs"], Pace(left, rates)


def _should_learn(
    engine: ScoringEngine, pace: Pace, index: int, left: dict[str, int], is_past: bool
) -> bool:
    """As an earlier life did, where the next chunk was scored in one; else what the clock says."""
    if is_past:
        answer = engine.journal.read(index + 1, "learned") is not False
    else:
        cost = engine.tokens_to_learn(index)
        answer = pace.fits(adapt=cost, score=left["score"])
        answer = answer and pace.is_safe(adapt=cost, plain=left["plain"])
    return engine.peers.decide(answer)


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

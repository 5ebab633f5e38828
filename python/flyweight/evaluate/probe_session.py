"""Probes of sessions, which score a chunk and then learn from it."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from flyweight.errors import InvalidArgumentError
from flyweight.evaluate.ledger import read_ledger
from flyweight.evaluate.probes import (
    Scorer,
    Verdict,
    probe_mass,
    probe_one_pass,
)

__all__ = [
    "Session",
    "entries_of",
    "probe_ledger",
    "probe_score_before_update",
    "session_scorer",
]


class Scored(Protocol):
    """What `Session.score` returns; a `flyweight.evaluate.ttt.ScoredChunk` is one."""

    @property
    def start(self) -> int:
        """First target."""

    @property
    def nats(self) -> NDArray[np.float64]:
        """``(n,)``, ``-ln p`` of the targets from `start` on."""


class Session(Protocol):
    """One pass over one stream; a `flyweight.evaluate.ttt.ScoringEngine` is one."""

    @property
    def chunks(self) -> Any:
        """Has as many items as there are chunks."""

    def score(self, index: int) -> Any:
        """Final scores of a chunk (`Scored`)."""

    def adapt(self, scored: Any) -> None:
        """Learn from what `score` returned."""


def entries_of(session: Session) -> list[tuple[int, NDArray[np.float64]]]:
    """Go through a stream in order: first target and nats of each chunk, as they were entered."""
    entries = []
    for index in range(len(session.chunks)):
        scored = session.score(index)
        entries.append((int(scored.start), np.array(scored.nats, dtype=np.float64)))
        session.adapt(scored)
    return entries


def session_scorer(make: Callable[[NDArray[Any]], Session]) -> Scorer:
    """A scorer, for the other probes, out of what makes a session for given tokens."""

    def score(tokens: NDArray[Any]) -> NDArray[np.float64]:
        nats = np.full(tokens.size - 1, np.nan)
        for first, scores in entries_of(make(tokens)):
            nats[first : first + len(scores)] = scores
        return nats

    return score


def probe_score_before_update(
    make: Callable[[NDArray[Any]], Session],
    tokens: NDArray[Any],
    *,
    vocab_size: int,
    seed: int = 0,
    samples: int = 4,
    try_all_answers: bool = True,
) -> Verdict:
    """Whether a chunk's scores come from a state that has not seen it.

    The session is replayed beside twins that never see the rest of a chunk: after a sampled target
    all tokens are others. The scores up to it must keep every bit, which they lose when the chunk,
    or anything later, was learned from first. That leaves the target itself: at the end of the last
    sampled chunk all answers are tried, and what they get must sum to 1.

    Parameters
    ----------
    make : a new session for given tokens; equal tokens must give equal scores
    tokens : (T,) integers below ``vocab_size``, two chunks or more
    vocab_size : of the replacements
    seed, samples : of the targets looked at
    try_all_answers : run the session ``vocab_size`` times for the last part

    References
    ----------
    openai/parameter-golf issue 1017, condition 3; PR #1240 (240 of 240 flipped targets moved other
    scores).
    """
    name, rng = "C3 score before update", np.random.default_rng(seed)
    entries = entries_of(make(tokens))
    before = _joined(entries, tokens.size - 1)
    if not np.array_equal(before, session_scorer(make)(tokens)):
        evidence = "two replays of the same tokens differ, so that nothing can be shown"
        return Verdict(name=name, passed=False, evidence=evidence)
    chunks = rng.choice(len(entries), size=min(samples, len(entries)), replace=False)
    for chunk in sorted(map(int, chunks)):
        first, scores = entries[chunk]
        target = first + int(rng.integers(len(scores)))
        twin = tokens.copy()
        shift = rng.integers(1, vocab_size, size=tokens.size - target - 2)
        twin[target + 2 :] = (tokens[target + 2 :].astype(np.int64) + shift) % vocab_size
        same = before[: target + 1] == session_scorer(make)(twin)[: target + 1]
        if not same.all():
            evidence = (
                f"chunk {chunk}: the score of target {int(np.argmin(same))} is another for a twin "
                f"that never sees what follows target {target}"
            )
            return Verdict(name=name, passed=False, evidence=evidence)
    if try_all_answers:
        first, scores = entries[max(chunks)]
        at = [first + len(scores) - 1]
        found = probe_mass(session_scorer(make), tokens, vocab_size=vocab_size, targets=at)
        if not found.passed:
            return Verdict(name=name, passed=False, evidence=f"{found.evidence}: learned first")
    evidence = (
        f"bit-identical to twins that never see the rest of {len(chunks)} of {len(entries)} chunks"
    )
    return Verdict(name=name, passed=True, evidence=evidence)


def probe_ledger(
    path: str | os.PathLike[str], *, expected: int, reported_nats: float | None = None
) -> Verdict:
    """`probe_one_pass` on a ledger on disk, after its hashes.

    Raises
    ------
    DataError
        As `read_ledger`: a ledger that was changed or is of another number of targets.
    """
    ledger = read_ledger(path, targets=expected)
    entries = [(first, ledger.nats[first : first + count]) for first, count in ledger.records]
    return probe_one_pass(entries, expected=expected, reported_nats=reported_nats)


def _joined(entries: list[tuple[int, NDArray[np.float64]]], targets: int) -> NDArray[np.float64]:
    nats = np.full(targets, np.nan)
    for first, scores in entries:
        nats[first : first + len(scores)] = scores
    if np.isnan(nats).any():
        missing = int(np.argmax(np.isnan(nats)))
        raise InvalidArgumentError(f"probe: the session gives target {missing} no score")
    return nats

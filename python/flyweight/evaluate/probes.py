"""Probes: run a model on changed tokens and see whether its scores follow the rules.

A probe takes callables, so that it works on any model, also on one of a foreign script:

* a *predictor* maps tokens ``(T,)`` to natural log-probabilities ``(T - 1, V)``; row ``i`` is the
  distribution of ``tokens[i + 1]``, which is *target* ``i``;
* a *scorer* maps tokens ``(T,)`` to nats ``(T - 1,)``, ``-ln p`` of each target, whatever happened
  inside: adaptation, caches, mixtures;
* a *session* scores and adapts chunk by chunk (`flyweight.evaluate.probe_session`).

All get the whole stream, answers included: what they may not do is use them. A probe samples, so it
can prove a violation, not the absence of one.

References
----------
openai/parameter-golf issue 1017, conditions 1 (causal), 2 (full normalised distribution), 3 (score
before update) and 4 (one pass); the probes of PR #1240 and PR #1642 are the models of these.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from flyweight.errors import InvalidArgumentError

__all__ = [
    "MASS_TOLERANCE",
    "Predictor",
    "Scorer",
    "Verdict",
    "probe_bos_reset",
    "probe_causality",
    "probe_mass",
    "probe_normalization",
    "probe_one_pass",
    "probe_permutation",
]

Tokens: TypeAlias = NDArray[Any]
Predictor: TypeAlias = Callable[[Tokens], NDArray[Any]]
Scorer: TypeAlias = Callable[[Tokens], NDArray[Any]]

MASS_TOLERANCE = 1e-5
"""How far probabilities may sum from 1; float32 softmax over 8,192 ids is about ten times closer.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What one probe found."""

    name: str
    """Condition and probe, as ``C1 causality``."""
    passed: bool
    """False where a violation was shown."""
    evidence: str
    """What was done and seen, with the first target that shows a violation."""

    def __str__(self) -> str:
        return f"{self.name} {'holds' if self.passed else 'VIOLATED'}: {self.evidence}"


def probe_causality(
    predict: Predictor, tokens: Tokens, *, vocab_size: int, seed: int = 0, samples: int = 8
) -> Verdict:
    """Whether predictions change with the answer or with what comes after it.

    At sampled targets ``i`` first the answer alone and then all tokens from it on are replaced by
    others; rows ``0 .. i`` must keep every bit.

    Parameters
    ----------
    predict : predictor; for a scorer see `probe_permutation` and `probe_mass`
    tokens : (T,) integers below ``vocab_size``, the stream to change
    vocab_size : of the replacements
    seed, samples : of the targets looked at; the last one is always among them

    References
    ----------
    openai/parameter-golf issue 1017, condition 1.
    """
    name, rng = "C1 causality", np.random.default_rng(seed)
    before = _predicted(predict, tokens)
    targets = _sampled(tokens.size - 1, samples, rng)
    for target in targets:
        for stop, what in ((target + 2, "the answer"), (tokens.size, "the answer and all after")):
            twin = _replaced(tokens, target + 1, stop, vocab_size, rng)
            row = _first_change(before[: target + 1], _predicted(predict, twin)[: target + 1])
            if row is not None:
                evidence = f"the prediction of target {row} changed with {what} of target {target}"
                return Verdict(name=name, passed=False, evidence=evidence)
    evidence = (
        f"bit-identical under {2 * len(targets)} changes from {len(targets)} of {tokens.size - 1} "
        "targets on"
    )
    return Verdict(name=name, passed=True, evidence=evidence)


def probe_normalization(
    predict: Predictor, tokens: Tokens, *, vocab_size: int, seed: int = 0, samples: int = 8
) -> Verdict:
    """Whether each prediction is one distribution over the vocabulary, whatever the answer is.

    Parameters
    ----------
    predict, tokens, vocab_size, seed, samples : as for `probe_causality`

    Notes
    -----
    Sums in float64, within `MASS_TOLERANCE` of 1, at every target; at the sampled ones the whole
    vector is compared under another answer, bit for bit.

    References
    ----------
    openai/parameter-golf issue 1017, condition 2.
    """
    name, rng = "C2 normalization", np.random.default_rng(seed)
    rows = _predicted(predict, tokens)
    if rows.shape[1] != vocab_size:
        evidence = f"{rows.shape[1]} entries a target, the vocabulary has {vocab_size}"
        return Verdict(name=name, passed=False, evidence=evidence)
    masses = np.exp(rows.astype(np.float64)).sum(1)
    worst = int(np.argmax(np.where(np.isnan(masses), np.inf, np.abs(masses - 1.0))))
    if not abs(masses[worst] - 1.0) <= MASS_TOLERANCE:
        evidence = f"target {worst}: probabilities sum to {masses[worst]:.6g}"
        return Verdict(name=name, passed=False, evidence=evidence)
    for target in _sampled(tokens.size - 1, samples, rng):
        twin = _replaced(tokens, target + 1, target + 2, vocab_size, rng)
        if _first_change(rows[target], _predicted(predict, twin)[target]) is not None:
            evidence = f"target {target}: its distribution changed with its answer"
            return Verdict(name=name, passed=False, evidence=evidence)
    evidence = f"sums within {abs(masses[worst] - 1.0):.1e} of 1 at {masses.size} targets"
    return Verdict(name=name, passed=True, evidence=f"{evidence}, unchanged by the answer")


def probe_mass(
    score: Scorer,
    tokens: Tokens,
    *,
    vocab_size: int,
    targets: Iterable[int],
    name: str = "C2 mass",
) -> Verdict:
    """Whether the probabilities that the answers would get, one after the other, sum to 1.

    It needs no view into the scorer: a hash keyed by the answer, a gate that saw it, the better of
    two experts, training on the answer before it is scored all hand out more than there is (or
    less), since what is read off is no longer one vector.

    Parameters
    ----------
    score : scorer, run ``vocab_size`` times for each target
    tokens : (T,) integers below ``vocab_size``
    vocab_size : answers to try
    targets : which targets to try them at, one or more
    name : of the verdict

    Raises
    ------
    InvalidArgumentError
        There is no target to try, or one is outside of the stream.

    References
    ----------
    openai/parameter-golf issue 1017, condition 2; PR #886 measured 277 this way.
    """
    tried: list[str] = []
    chosen = list(targets)
    if not chosen or not 0 <= min(chosen) <= max(chosen) < tokens.size - 1:
        raise InvalidArgumentError(f"probe: targets {chosen} of {tokens.size - 1}")
    for target in chosen:
        mass = 0.0
        for answer in range(vocab_size):
            twin = tokens.copy()
            twin[target + 1] = answer
            mass += float(np.exp(-_scored(score, twin)[target]))
        if not abs(mass - 1.0) <= MASS_TOLERANCE:
            evidence = f"target {target}: the {vocab_size} possible answers get {mass:.6g} in sum"
            return Verdict(name=name, passed=False, evidence=evidence)
        tried.append(f"{mass:.8f}")
    evidence = f"{vocab_size} possible answers get {', '.join(tried)} in sum"
    return Verdict(name=name, passed=True, evidence=evidence)


def probe_one_pass(
    entries: Iterable[tuple[int, Sequence[float] | NDArray[Any]]],
    *,
    expected: int,
    reported_nats: float | None = None,
) -> Verdict:
    """Whether each target has exactly one score, entered left to right, and no other is reported.

    A score is a finite number of nats, 0 or more; anything else is no score of its target.

    Parameters
    ----------
    entries : first target and nats of each run of targets, in the order in which they were entered
    expected : targets of the stream
    reported_nats : the sum that was reported; it must be that of the entries, within 1e-9 of it

    References
    ----------
    openai/parameter-golf issue 1017, condition 4.
    """
    name, position = "C4 one pass", 0
    parts = [np.empty(0)]
    for first, nats in entries:
        if first != position:
            problem = "was scored again" if first < position else f"came before target {position}"
            evidence = f"target {first} {problem}; entries must go left to right, each target once"
            return Verdict(name=name, passed=False, evidence=evidence)
        parts.append(np.asarray(nats, dtype=np.float64))
        bad = ~(np.isfinite(parts[-1]) & (parts[-1] >= 0))
        if bad.any():
            where = int(np.argmax(bad))
            evidence = f"target {first + where} has {parts[-1][where]} nats, which is no score"
            return Verdict(name=name, passed=False, evidence=evidence)
        position += parts[-1].size
    if position != expected:
        evidence = f"{position} entries for {expected} targets"
        return Verdict(name=name, passed=False, evidence=evidence)
    nats_sum = math.fsum(np.concatenate(parts).data)
    if reported_nats is not None and not abs(reported_nats - nats_sum) <= 1e-9 * abs(nats_sum):
        evidence = f"reported are {reported_nats!r} nats, the entries sum to {nats_sum!r}"
        return Verdict(name=name, passed=False, evidence=evidence)
    evidence = f"{expected} targets, one entry each, {nats_sum!r} nats in sum"
    return Verdict(name=name, passed=True, evidence=evidence)


def probe_permutation(
    score: Scorer, tokens: Tokens, *, bos_id: int, seed: int = 0, samples: int = 4
) -> Verdict:
    """Whether scores change with the order of documents that come later.

    Parameters
    ----------
    score : scorer
    tokens : (T,) integers, at least three documents, each begins with ``bos_id``
    bos_id : the token that begins a document
    seed, samples : of the documents after which the rest is shuffled

    References
    ----------
    openai/parameter-golf issue 1017, condition 1, seen from outside of the scorer.
    """
    name, rng = "C1 permutation", np.random.default_rng(seed)
    starts = _documents(tokens, bos_id, at_least=3)
    before = _scored(score, tokens)
    documents = np.split(tokens, starts[1:])
    for last in _sampled(len(documents) - 2, samples, rng):
        # reversed, so that another document follows even where only two remain
        twin = np.concatenate(documents[: last + 1] + documents[:last:-1])
        known = int(starts[last + 1]) - 1  # targets whose tokens stay
        row = _first_change(before[:known], _scored(score, twin)[:known])
        if row is not None:
            evidence = f"the score of target {row} changed with the order after document {last}"
            return Verdict(name=name, passed=False, evidence=evidence)
    evidence = f"bit-identical under other orders of later documents, {len(documents)} documents"
    return Verdict(name=name, passed=True, evidence=evidence)


def probe_bos_reset(
    score: Scorer, tokens: Tokens, *, vocab_size: int, bos_id: int, seed: int = 0, samples: int = 4
) -> Verdict:
    """Whether scores inside of a document change with the documents before it.

    Only what claims to start afresh at each document (a document mask, an adapter that is reset)
    has to pass. Lengths and positions stay, so that rotations by position do.

    Parameters
    ----------
    score : scorer
    tokens : (T,) integers below ``vocab_size``, at least two documents
    vocab_size, bos_id : replacements come from the vocabulary without ``bos_id``
    seed, samples : of the documents whose predecessors are replaced

    References
    ----------
    openai/parameter-golf PR #1797 (a token-shift gate that mixed in the document before), #1851.
    """
    name, rng = "BOS reset", np.random.default_rng(seed)
    starts = _documents(tokens, bos_id, at_least=2)
    before = _scored(score, tokens)
    for number in _sampled(len(starts) - 1, samples, rng):
        start = int(starts[number + 1])
        twin = _replaced(tokens, 0, start, vocab_size, rng, keep=bos_id)
        stop = int(starts[number + 2]) - 1 if number + 2 < len(starts) else before.size
        # target start is the first token after the BOS; the BOS itself is predicted from before
        row = _first_change(before[start:stop], _scored(score, twin)[start:stop])
        if row is not None:
            evidence = f"the score of target {start + row} changed with documents before its own"
            return Verdict(name=name, passed=False, evidence=evidence)
    evidence = f"bit-identical under other documents before, {len(starts)} documents"
    return Verdict(name=name, passed=True, evidence=evidence)


def _predicted(predict: Predictor, tokens: Tokens) -> NDArray[Any]:
    rows = np.asarray(predict(tokens.copy()))
    if rows.ndim != 2 or len(rows) != tokens.size - 1:
        raise InvalidArgumentError(
            f"probe: predictions of shape {rows.shape} for {tokens.size} tokens, expected "
            f"({tokens.size - 1}, vocabulary)"
        )
    return rows


def _scored(score: Scorer, tokens: Tokens) -> NDArray[Any]:
    nats = np.asarray(score(tokens.copy()))
    if nats.shape != (tokens.size - 1,):
        raise InvalidArgumentError(
            f"probe: scores of shape {nats.shape} for {tokens.size} tokens, expected "
            f"({tokens.size - 1},)"
        )
    return nats


def _sampled(count: int, samples: int, rng: np.random.Generator) -> list[int]:
    """Numbers below a count, the last one among them, ascending."""
    if count < 1 or samples < 1:
        raise InvalidArgumentError(f"probe: {samples} samples of {count} places to look at")
    chosen = rng.choice(count, size=min(samples, count), replace=False)
    return sorted({count - 1, *map(int, chosen)})


def _replaced(
    tokens: Tokens,
    start: int,
    stop: int,
    vocab_size: int,
    rng: np.random.Generator,
    keep: int | None = None,
) -> Tokens:
    """A copy in which each token of a range is another one; ``keep`` stays and is not brought in.

    Without ``keep`` each new token differs from the old one for sure.
    """
    twin = tokens.copy()
    shift = rng.integers(1, vocab_size, size=stop - start)
    twin[start:stop] = (tokens[start:stop].astype(np.int64) + shift) % vocab_size
    if keep is not None:
        others = np.delete(np.arange(vocab_size), keep)
        clash = twin[start:stop] == keep
        twin[start:stop][clash] = rng.choice(others, size=int(clash.sum()))
        twin[start:stop][tokens[start:stop] == keep] = keep
    return twin


def _first_change(before: NDArray[Any], after: NDArray[Any]) -> int | None:
    """Number of the first row that is not the same, bit for bit; NaN equals nothing."""
    same = before == after
    rows = same.all(1) if same.ndim > 1 else same
    return None if rows.all() else int(np.argmin(rows))


def _documents(tokens: Tokens, bos_id: int, *, at_least: int) -> NDArray[np.int64]:
    """Where documents start, the first at 0."""
    starts = np.flatnonzero(tokens == bos_id)
    if starts.size < at_least or starts[0] != 0:
        raise InvalidArgumentError(
            f"probe: {starts.size} documents that begin with {bos_id}, expected {at_least} or "
            "more, the first at token 0"
        )
    return starts

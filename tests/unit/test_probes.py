"""The probes: each planted violation is caught by name, and honest models pass all of them."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest

from flyweight.errors import DataError, InvalidArgumentError
from flyweight.evaluate.ledger import Ledger
from flyweight.evaluate.probe_session import (
    entries_of,
    probe_ledger,
    probe_score_before_update,
    session_scorer,
)
from flyweight.evaluate.probes import (
    probe_bos_reset,
    probe_causality,
    probe_mass,
    probe_normalization,
    probe_one_pass,
    probe_permutation,
)

VOCAB, BOS, CHUNK = 12, 1, 8
TABLE = np.random.default_rng(5).normal(size=(2, VOCAB, VOCAB))


def stream(length=49, seed=3):
    """Documents of 12 tokens, each begins with the only BOS in it."""
    tokens = np.random.default_rng(seed).integers(2, VOCAB, size=length)
    tokens[::12] = BOS
    return tokens


def log_softmax(logits):
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def honest(tokens):
    """A bigram model that also looks one token further back, not across a BOS."""
    ids = np.asarray(tokens, dtype=np.int64)
    older = np.where(ids[:-1] == BOS, BOS, np.concatenate([[BOS], ids[:-2]]))
    return log_softmax(TABLE[0, ids[:-1]] + TABLE[1, older])


def read_off(rows, tokens):
    return -rows[np.arange(len(rows)), np.asarray(tokens, dtype=np.int64)[1:]]


def scorer_of(predict):
    return lambda tokens: read_off(predict(tokens), tokens)


# --- violations -----------------------------------------------------------------------------------


def peeks_at_the_answer(tokens):
    logits = honest(tokens).copy()
    logits[np.arange(len(logits)), np.asarray(tokens)[1:]] += 0.5
    return log_softmax(logits)


def peeks_further(tokens):
    """Normalised, blind to its answer, but it knows the token after it."""
    ids = np.asarray(tokens, dtype=np.int64)
    after = np.concatenate([ids[2:], [BOS]])
    return log_softmax(honest(tokens) + TABLE[1].T[after])


def unnormalized_mixture(tokens):
    """The larger of two experts for each token, as it is."""
    ids = np.asarray(tokens, dtype=np.int64)
    return np.maximum(honest(tokens), log_softmax(TABLE[1, ids[:-1]]))


def best_expert_after_the_answer(tokens):
    """Both experts are fine, the choice between them is not."""
    ids = np.asarray(tokens, dtype=np.int64)
    other = log_softmax(TABLE[1, ids[:-1]])
    return np.minimum(read_off(honest(tokens), tokens), read_off(other, tokens))


def hashed_cache_keyed_by_the_answer(tokens):
    """Counts in buckets of (context, answer), mixed in without renormalising."""
    ids, buckets = np.asarray(tokens, dtype=np.int64), np.zeros(16)
    contexts = np.zeros(16)
    p = np.exp(-read_off(honest(tokens), tokens))
    for i in range(len(p)):
        key, context = (ids[i] * 7 + ids[i + 1] * 3) % 16, ids[i] % 16
        if contexts[context] > 0:
            p[i] = 0.5 * p[i] + 0.5 * min(buckets[key] / contexts[context], 1.0)
        buckets[key] += 1
        contexts[context] += 1
    return -np.log(p)


def leaks_across_documents(tokens):
    """A token-shift gate without a mask at BOS."""
    ids = np.asarray(tokens, dtype=np.int64)
    older = np.concatenate([[BOS], ids[:-2]])
    return log_softmax(TABLE[0, ids[:-1]] + TABLE[1, older])


def calibrated_on_the_whole_stream(tokens):
    """A bias for the documents that follow each other, known before they are scored."""
    ids = np.asarray(tokens, dtype=np.int64)
    pairs = np.zeros((VOCAB, VOCAB))
    np.add.at(pairs, (ids[:-1], ids[1:]), np.arange(len(ids) - 1) + 1.0)
    return log_softmax(honest(tokens) + 0.01 * pairs[ids[:-1]])


@dataclass
class Session:
    """Unigram counts that are added to `honest`, and each way to do that wrong."""

    tokens: np.ndarray
    fault: str = ""

    def __post_init__(self):
        self.counts = np.zeros(VOCAB)
        self.chunks = range(0, self.tokens.size - 1, CHUNK)

    def learn(self, start, stop):
        np.add.at(self.counts, np.asarray(self.tokens[start + 1 : stop + 1], dtype=np.int64), 1.0)

    def score(self, index):
        start = self.chunks[index]
        stop = min(start + CHUNK, self.tokens.size - 1)
        if self.fault == "adapt before score":
            self.learn(start, stop)
        if self.fault == "learns the last answer first":
            self.learn(stop - 1, stop)
        if self.fault == "statistics of the whole stream":
            self.learn(0, self.tokens.size - 1)
        rows = log_softmax(honest(self.tokens)[start:stop] + 0.1 * self.counts)
        return SimpleNamespace(
            start=start, stop=stop, nats=read_off(rows, self.tokens[start : stop + 1])
        )

    def adapt(self, scored):
        if self.fault != "adapt before score":
            self.learn(scored.start, scored.stop)


def makes(fault=""):
    return lambda tokens: Session(tokens, fault)


# --- honest ones pass -----------------------------------------------------------------------------


def test_an_honest_model_passes_every_probe():
    tokens, score = stream(), scorer_of(honest)
    verdicts = [
        probe_causality(honest, tokens, vocab_size=VOCAB),
        probe_normalization(honest, tokens, vocab_size=VOCAB),
        probe_mass(score, tokens, vocab_size=VOCAB, targets=[0, 20, 47]),
        probe_permutation(score, tokens, bos_id=BOS),
        probe_bos_reset(score, tokens, vocab_size=VOCAB, bos_id=BOS),
        probe_score_before_update(makes(), tokens, vocab_size=VOCAB),
        probe_one_pass(entries_of(Session(tokens)), expected=48),
    ]
    assert all(verdict.passed for verdict in verdicts), [str(each) for each in verdicts]
    assert [verdict.name for verdict in verdicts] == [
        "C1 causality",
        "C2 normalization",
        "C2 mass",
        "C1 permutation",
        "BOS reset",
        "C3 score before update",
        "C4 one pass",
    ]


# --- each violation by name -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("predict", "evidence"),
    [
        (peeks_at_the_answer, "changed with the answer of target"),
        (peeks_further, "the answer and all after"),
        (calibrated_on_the_whole_stream, "changed with the answer"),
    ],
)
def test_peeking_breaks_causality(predict, evidence):
    verdict = probe_causality(predict, stream(), vocab_size=VOCAB)
    assert not verdict.passed
    assert verdict.name == "C1 causality"
    assert evidence in verdict.evidence
    assert str(verdict).startswith("C1 causality VIOLATED: ")


def test_peeking_at_the_answer_breaks_normalization_too():
    verdict = probe_normalization(peeks_at_the_answer, stream(), vocab_size=VOCAB)
    assert not verdict.passed
    assert "its distribution changed with its answer" in verdict.evidence


def test_an_unnormalized_mixture():
    verdict = probe_normalization(unnormalized_mixture, stream(), vocab_size=VOCAB)
    assert not verdict.passed
    assert verdict.name == "C2 normalization"
    assert "probabilities sum to 1." in verdict.evidence


@pytest.mark.parametrize(
    "fault", [lambda rows: rows[:, :-1], lambda rows: rows * np.nan, lambda rows: rows * np.inf]
)
def test_what_is_no_distribution_over_the_vocabulary(fault):
    with np.errstate(invalid="ignore"):
        verdict = probe_normalization(lambda t: fault(honest(t)), stream(), vocab_size=VOCAB)
    assert not verdict.passed


@pytest.mark.parametrize("score", [best_expert_after_the_answer, hashed_cache_keyed_by_the_answer])
def test_scores_that_are_not_read_off_one_vector(score):
    verdict = probe_mass(score, stream(), vocab_size=VOCAB, targets=[5, 30, 40])
    assert not verdict.passed
    assert verdict.name == "C2 mass"
    assert "12 possible answers get" in verdict.evidence


@pytest.mark.parametrize(
    "fault",
    ["adapt before score", "learns the last answer first", "statistics of the whole stream"],
)
def test_adapt_before_score(fault):
    verdict = probe_score_before_update(makes(fault), stream(), vocab_size=VOCAB)
    assert not verdict.passed
    assert verdict.name == "C3 score before update"


def test_later_documents_that_change_a_score():
    whole = session_scorer(makes("statistics of the whole stream"))
    assert probe_permutation(whole, stream(), bos_id=BOS).passed  # counts do not know an order
    verdict = probe_permutation(scorer_of(calibrated_on_the_whole_stream), stream(), bos_id=BOS)
    assert not verdict.passed
    assert "order after document" in verdict.evidence


def test_a_cross_document_leak():
    score = scorer_of(leaks_across_documents)
    verdict = probe_bos_reset(score, stream(), vocab_size=VOCAB, bos_id=BOS)
    assert not verdict.passed
    assert verdict.name == "BOS reset"
    assert "documents before its own" in verdict.evidence
    assert probe_causality(leaks_across_documents, stream(), vocab_size=VOCAB).passed


def test_a_state_that_is_not_reset():
    score = session_scorer(makes())
    assert not probe_bos_reset(score, stream(), vocab_size=VOCAB, bos_id=BOS).passed


@pytest.mark.parametrize(
    ("entries", "evidence"),
    [
        ([(0, [1.0] * 4), (0, [0.5] * 4)], "target 0 was scored again"),
        ([(0, [1.0] * 2), (1, [0.5] * 3)], "target 1 was scored again"),
        ([(2, [1.0] * 2), (0, [0.5] * 2)], "target 2 came before target 0"),
        ([(0, [1.0] * 3)], "3 entries for 4 targets"),
        ([(0, [1.0] * 5)], "5 entries for 4 targets"),
    ],
)
def test_a_rescoring_pass(entries, evidence):
    verdict = probe_one_pass(entries, expected=4)
    assert not verdict.passed
    assert verdict.name == "C4 one pass"
    assert evidence in verdict.evidence


def test_a_score_that_is_not_the_ledgers():
    entries = [(0, [1.0, 2.0]), (2, [3.0])]
    assert probe_one_pass(entries, expected=3, reported_nats=6.0).passed
    assert (
        "reported are 5.0 nats" in probe_one_pass(entries, expected=3, reported_nats=5.0).evidence
    )


def test_a_ledger_on_disk(tmp_path):
    path = tmp_path / "x.ledger"
    with Ledger(path, targets=5, binding=bytes(32)) as ledger:
        ledger.append(0, np.array([1.0, 2.0]))
        ledger.append(2, np.array([3.0, 0.5, 0.5]))
    assert probe_ledger(path, expected=5, reported_nats=7.0).passed
    assert not probe_ledger(path, expected=5, reported_nats=6.0).passed
    data = bytearray(path.read_bytes())
    data[-40] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match="do not match its hash"):
        probe_ledger(path, expected=5)


def test_a_session_that_is_not_repeatable():
    rng = np.random.default_rng(0)

    class Noisy(Session):
        def score(self, index):
            scored = super().score(index)
            return SimpleNamespace(
                start=scored.start, stop=scored.stop, nats=scored.nats + rng.random()
            )

    verdict = probe_score_before_update(Noisy, stream(), vocab_size=VOCAB)
    assert "two replays" in verdict.evidence


def test_wrong_use():
    with pytest.raises(InvalidArgumentError, match=r"shape \(49, 12\)"):
        probe_causality(lambda t: np.zeros((t.size, VOCAB)), stream(), vocab_size=VOCAB)
    with pytest.raises(InvalidArgumentError, match="scores of shape"):
        probe_mass(lambda t: np.zeros(3), stream(), vocab_size=VOCAB, targets=[0])
    with pytest.raises(InvalidArgumentError, match="1 documents"):
        probe_permutation(scorer_of(honest), stream(12), bos_id=BOS)
    with pytest.raises(InvalidArgumentError, match="0 samples"):
        probe_causality(honest, stream(), vocab_size=VOCAB, samples=0)


@pytest.mark.parametrize("value", [np.nan, np.inf, -0.5])
def test_what_is_no_number_of_nats_is_no_score(value):
    found = probe_one_pass([(0, [1.0, 2.0]), (2, [value])], expected=3)
    assert not found.passed
    assert "target 2 has" in found.evidence


@pytest.mark.parametrize("targets", [[], [-1], [3]])
def test_mass_of_no_target_is_refused(targets):
    tokens = np.arange(4)
    with pytest.raises(InvalidArgumentError, match="of 3"):
        probe_mass(lambda t: np.zeros(t.size - 1), tokens, vocab_size=4, targets=targets)

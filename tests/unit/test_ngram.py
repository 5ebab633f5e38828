"""Hints: counted after scoring, normalized over the vocabulary, the same after a kill."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

torch = pytest.importorskip("torch")

from flyweight.errors import DataError, InvalidArgumentError  # noqa: E402
from flyweight.evaluate.config import AdaptConfig, NgramConfig, ScoreConfig  # noqa: E402
from flyweight.evaluate.engine import ScoredChunk  # noqa: E402
from flyweight.evaluate.ledger import Ledger  # noqa: E402
from flyweight.evaluate.ngram import NgramSliding, NgramTable, Tilts  # noqa: E402
from flyweight.evaluate.stream import StreamResult  # noqa: E402
from flyweight.evaluate.ttt import ENGINES, score_stream  # noqa: E402
from tiny_model import VOCAB, TinyModel  # noqa: E402

RNG = np.random.default_rng(17)
PHRASES = [RNG.integers(0, VOCAB, 9) for _ in range(6)]
TOKENS = np.concatenate([PHRASES[k] for k in RNG.integers(0, 6, 60)]).astype(np.uint16)[:331]
CONFIG = ScoreConfig(
    protocol="sliding",
    seq_len=16,
    stride=8,
    batch_windows=4,
    chunk_targets=64,
    ngram=NgramConfig(orders=(1, 2, 3), table_bits=12),
)
LEARNING = replace(
    CONFIG, protocol="score-first", adapt=AdaptConfig(learning_rate=1e-2, sequences=2)
)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def run(
    path: Path,
    config: ScoreConfig = CONFIG,
    tokens: NDArray[Any] = TOKENS,
    progress: Callable[[ScoredChunk], None] | None = None,
) -> StreamResult:
    with Ledger(path, targets=tokens.size - 1, binding=bytes(32)) as ledger:
        return score_stream(TinyModel(), tokens, ledger, config, progress=progress)


def test_hints_lower_the_loss_of_text_that_repeats(tmp_path: Path) -> None:
    plain = run(tmp_path / "a", replace(CONFIG, ngram=None)).nats
    hinted = run(tmp_path / "b").nats
    np.testing.assert_allclose(hinted[:64], plain[:64], rtol=0, atol=1e-5)
    assert hinted[128:].mean() < plain[128:].mean() - 1
    both = run(tmp_path / "c", LEARNING).nats
    assert both[128:].mean() < plain[128:].mean() - 1


@pytest.mark.parametrize("target", [70, 150, 300])
def test_probabilities_of_all_tokens_sum_to_one(tmp_path: Path, target: int) -> None:
    total = 0.0
    for token in range(VOCAB):
        tokens = TOKENS.copy()
        tokens[target + 1] = token
        nats = run(tmp_path / f"{token}", tokens=tokens[: target + 2]).nats
        total += float(np.exp(-nats[target]))
    assert total == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("config", [CONFIG, LEARNING], ids=["sliding", "score-first"])
def test_a_later_token_changes_no_earlier_score(tmp_path: Path, config: ScoreConfig) -> None:
    before = run(tmp_path / "a", config).nats
    for position in (65, 100, 200, 330):
        tokens = TOKENS.copy()
        tokens[position] = (tokens[position] + 1) % VOCAB
        after = run(tmp_path / f"{position}", config, tokens).nats
        assert after[: position - 1].tobytes() == before[: position - 1].tobytes()


def test_the_tilt_is_the_published_formula(tmp_path: Path) -> None:
    with Ledger(tmp_path / "x", targets=TOKENS.size - 1, binding=bytes(32)) as ledger:
        engine = ENGINES[CONFIG.method](TinyModel(), TOKENS, ledger, CONFIG)
        assert isinstance(engine, NgramSliding)
        for index in range(3):
            engine.adapt(engine.score(index))
        windows = engine.chunks[3]
        hints = engine._hints(windows.start, windows.stop)
        tilts = engine._tilts.of(hints.buckets).astype(np.float64)
        scored = engine.score(3)
    model = TinyModel().eval()
    assert np.abs(tilts).max() > 1
    for begin, first, end in zip(windows.begin, windows.first, windows.end, strict=True):
        row = torch.from_numpy(TOKENS[begin:end].astype(np.int64))
        with torch.no_grad():
            logs = model(row[None])[0].double().log_softmax(-1).numpy()
        for i in range(first, end):
            h, b = hints.tokens[i - windows.start], tilts[i - windows.start]
            p = np.exp(logs[i - begin])
            tilted = p * np.exp(b * (np.arange(VOCAB) == h)) / (1 + p[h] * np.expm1(b))
            assert tilted.sum() == pytest.approx(1)
            found = scored.nats[i - windows.start]
            assert found == pytest.approx(-np.log(tilted[TOKENS[i + 1]]), abs=1e-4)


class KilledError(Exception):
    pass


@pytest.mark.parametrize("config", [CONFIG, LEARNING], ids=["sliding", "score-first"])
def test_a_killed_run_goes_on_with_the_same_numbers(tmp_path: Path, config: ScoreConfig) -> None:
    def kill(scored: ScoredChunk) -> None:
        if scored.index == 3:
            raise KilledError

    whole = run(tmp_path / "whole", config)
    with pytest.raises(KilledError):
        run(tmp_path / "x", config, progress=kill)
    again = run(tmp_path / "x", config)
    assert again.recorded_chunks == 4
    assert again.nats.tobytes() == whole.nats.tobytes()
    assert again.chain == whole.chain


def test_without_its_journal_a_run_cannot_go_on(tmp_path: Path) -> None:
    run(tmp_path / "x")
    (tmp_path / "x").write_bytes((tmp_path / "x").read_bytes()[:-700])
    (tmp_path / "x.journal").unlink()
    with pytest.raises(DataError, match="the journal beside it has no beliefs of chunk 0"):
        run(tmp_path / "x")


def test_a_table_names_the_most_frequent_follower() -> None:
    tokens = RNG.choice([1, 1, 1, 2, 3], 4000).astype(np.int64)
    table, counts = NgramTable(3, 16), defaultdict(Counter)
    for start in range(0, 3000, 500):
        keys = table.keys(tokens, start, start + 500)
        table.add(keys, tokens[start + 1 : start + 501])
    for i in range(2, 3000):
        counts[tuple(tokens[i - 2 : i + 1])][tokens[i + 1]] += 1
    hints, sureness = table.look_up(table.keys(tokens, 3000, 3990))
    assert (sureness >= 0).all()
    clear = 0
    for i, hint in zip(range(3000, 3990), hints, strict=True):
        seen = counts[tuple(tokens[i - 2 : i + 1])]
        token, count = seen.most_common(1)[0]
        if count > 0.6 * seen.total():  # a vote finds a majority, whatever the order
            clear += 1
            assert hint == token
    assert clear > 100
    unknown = NgramTable(3, 16).look_up(table.keys(tokens, 0, 10))[1]
    assert (unknown == -1).all()


def test_beliefs_become_those_of_maximum_likelihood() -> None:
    share, rate = 0.1, 0.7
    tilts, hits = Tilts(2), np.arange(20_000) < rate * 20_000
    for part in np.split(RNG.permutation(20_000), 10):
        belief = tilts.values[0]
        tilted = share * np.exp(belief) / (1 + share * np.expm1(belief))
        nats = np.full(part.size, -np.log(tilted))
        tilts = tilts.after(np.zeros(part.size, dtype=np.int64), hits[part], nats)
    expected = np.log(rate / (1 - rate)) - np.log(share / (1 - share))
    assert tilts.values[0] == pytest.approx(expected, abs=0.02)
    assert tilts.values[1] == 0


def test_half_a_million_targets_take_seconds() -> None:
    tokens = (np.random.default_rng(0).zipf(1.3, 507_853) % 1024).astype(np.int64)
    started = time.perf_counter()
    for order in NgramConfig().orders:
        table = NgramTable(order, 20)
        for start in range(0, tokens.size - 1, 32768):
            keys = table.keys(tokens, start, min(start + 32768, tokens.size - 1))
            table.look_up(keys)
            table.add(keys, tokens[start + 1 : start + 1 + keys.size])
    assert time.perf_counter() - started < 20


@pytest.mark.parametrize("change", [{"orders": ()}, {"orders": (0,)}, {"table_bits": 40}], ids=str)
def test_tables_that_cannot_be(change: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgumentError, match=f"ngram.{next(iter(change))}="):
        replace(NgramConfig(), **change)
    with pytest.raises(InvalidArgumentError, match="table ngram does not go with"):
        replace(CONFIG, protocol="plain")

"""A deadline drops training first, then overlap, and never a target; a resumed run remembers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from flyweight.evaluate import stream  # noqa: E402
from flyweight.evaluate.adapters import ScoreFirst  # noqa: E402
from flyweight.evaluate.config import AdaptConfig, ScoreConfig  # noqa: E402
from flyweight.evaluate.engine import Plain, ScoredChunk, ScoringEngine  # noqa: E402
from flyweight.evaluate.ledger import Ledger  # noqa: E402
from flyweight.evaluate.pace import Journal, Pace  # noqa: E402
from flyweight.evaluate.stream import StreamResult, run_engine  # noqa: E402
from tiny_model import VOCAB, TinyModel  # noqa: E402

TOKENS = np.random.default_rng(13).integers(0, VOCAB, 331).astype(np.uint16)
CHUNKS = 6
CONFIG = ScoreConfig(
    protocol="score-first",
    seq_len=16,
    stride=4,
    batch_windows=4,
    chunk_targets=64,
    adapt=AdaptConfig(epochs=2, learning_rate=1e-2, sequences=4),
)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


RATES = {"score": 1.0, "plain": 1.0}


class Clock:
    """Time that only work takes: a second a token forward, three a token learned from.

    From the time ``slow_from`` on the machine is ``slow`` times slower.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.slow, self.slow_from = 0.0, 1.0, math.inf
        score, adapt = ScoringEngine.score, ScoreFirst.adapt

        def timed_score(engine: Any, index: int, *, plainly: bool = False) -> ScoredChunk:
            if not engine.is_recorded(index):
                self.work(engine.tokens_to_score(index, plainly=plainly))
            return score(engine, index, plainly=plainly)

        def timed_adapt(engine: Any, scored: ScoredChunk) -> None:
            self.work(3 * engine.tokens_to_learn(scored.index))
            adapt(engine, scored)

        monkeypatch.setattr(ScoringEngine, "score", timed_score)
        monkeypatch.setattr(ScoreFirst, "adapt", timed_adapt)
        monkeypatch.setattr(stream, "Pace", lambda limit, _: Pace(limit, RATES, lambda: self.now))

    def work(self, seconds: float) -> None:
        fast = min(seconds, max(self.slow_from - self.now, 0.0))
        self.now += fast + self.slow * (seconds - fast)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def run(
    path: Path,
    deadline: float | None,
    progress: Callable[[ScoredChunk], None] | None = None,
    config: ScoreConfig = CONFIG,
) -> StreamResult:
    with Ledger(path, targets=TOKENS.size - 1, binding=bytes(32)) as ledger:
        engine = ScoreFirst(TinyModel(), TOKENS, ledger, config)
        return run_engine(engine, deadline=deadline, progress=progress)


def test_nothing_left_covers_everything_in_plain_blocks(tmp_path: Path) -> None:
    result = run(tmp_path / "x", 0.0)
    assert np.isfinite(result.nats).all()
    assert (result.plain_chunks, result.adapted_chunks) == (CHUNKS, 0)
    with Ledger(tmp_path / "y", targets=TOKENS.size - 1, binding=bytes(32)) as ledger:
        config = ScoreConfig(protocol="plain", seq_len=16, chunk_targets=64)
        expected = run_engine(Plain(TinyModel(), TOKENS, ledger, config)).nats
    np.testing.assert_allclose(result.nats, expected, rtol=0, atol=1e-5)


def test_what_is_given_up_first(tmp_path: Path, clock: Clock) -> None:
    whole = run(tmp_path / "whole", None)
    everything, clock.now = clock.now, 0.0
    assert (whole.plain_chunks, whole.adapted_chunks) == (0, CHUNKS - 1)
    found = []
    for part in (2.0, 0.8, 0.6, 0.3, 0.1, 0.01):
        clock.now = 0.0
        result = run(tmp_path / f"{part}", part * everything)
        assert np.isfinite(result.nats).all()
        assert clock.now <= max(part * everything, 330)
        found.append((result.adapted_chunks, result.plain_chunks))
    assert found[0] == (CHUNKS - 1, 0)
    assert found == sorted(found, key=lambda pair: (-pair[0], pair[1]))
    assert found[-1] == (0, CHUNKS)
    assert any(0 < adapted < CHUNKS - 1 and plain == 0 for adapted, plain in found)
    assert any(adapted == 0 and 0 < plain < CHUNKS for adapted, plain in found)


@pytest.mark.parametrize("slow", [1.0, 2.0, 2.9])
@pytest.mark.parametrize("at", [0.0, 0.1, 0.4, 0.6, 0.8, 0.95])
@pytest.mark.parametrize("part", [0.7, 0.9, 1.1])
def test_a_machine_that_slows_down_midway_ends_in_time(
    tmp_path: Path, clock: Clock, slow: float, at: float, part: float
) -> None:
    run(tmp_path / "whole", None)
    deadline, clock.now = part * clock.now, 0.0
    clock.slow, clock.slow_from = slow, at * deadline
    result = run(tmp_path / "x", deadline)
    assert np.isfinite(result.nats).all()
    assert clock.now <= deadline


def test_on_a_steady_machine_what_is_held_back_is_used_up(tmp_path: Path, clock: Clock) -> None:
    config = replace(CONFIG, chunk_targets=4)
    run(tmp_path / "whole", None, config=config)
    deadline, clock.now = 0.8 * clock.now, 0.0
    result = run(tmp_path / "x", deadline, config=config)
    assert 0.95 * deadline < clock.now <= deadline
    assert result.plain_chunks <= 2


class KilledError(Exception):
    pass


def test_a_resumed_run_decides_as_its_first_life(tmp_path: Path, clock: Clock) -> None:
    def kill(scored: ScoredChunk) -> None:
        if scored.index == 3:
            raise KilledError

    limit = 2200.0
    whole = run(tmp_path / "whole", limit)
    assert 0 < whole.adapted_chunks < 3
    clock.now = 0.0
    with pytest.raises(KilledError):
        run(tmp_path / "x", limit, kill)
    with (tmp_path / "x.journal").open("a") as file:
        file.write('{"chunk": 4, "lear')
    again = run(tmp_path / "x", 0.0)
    assert again.adapted_chunks == whole.adapted_chunks
    assert again.plain_chunks == 2
    assert again.recorded_chunks == 4
    stop = 4 * 64
    assert again.nats[:stop].tobytes() == whole.nats[:stop].tobytes()
    with Ledger(tmp_path / "twin", targets=TOKENS.size - 1, binding=bytes(32)) as ledger:
        twin = ScoreFirst(TinyModel(), TOKENS, ledger, CONFIG)
        for index in range(CHUNKS):
            scored = twin.score(index, plainly=index >= 4)
            if index < whole.adapted_chunks:
                twin.adapt(scored)
        assert again.nats.tobytes() == ledger.complete().tobytes()


def test_a_journal_of_an_earlier_ledger_is_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "x.journal"
    Journal(path, is_new=True).write(0, learned=False)
    assert Journal(path, is_new=False).read(0, "learned") is False
    assert Journal(path, is_new=True).read(0, "learned") is None
    assert not path.exists()


def test_the_seconds_of_all_lives_add_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("flyweight.evaluate.pace.time.perf_counter", lambda: now[0])
    first = Journal(tmp_path / "x.journal", is_new=True)
    now[0] = 5.0
    first.start()
    now[0] = 7.0
    first.write(0, plain=False)
    with (tmp_path / "x.journal").open("a") as file:
        file.write('{"chunk": 1, "sec')
    now[0] = 100.0
    second = Journal(tmp_path / "x.journal", is_new=False)
    assert second.former_seconds == 2.0
    now[0] = 103.0
    second.write(1, plain=True)
    third = Journal(tmp_path / "x.journal", is_new=False)
    assert third.former_seconds == 5.0
    assert third.read(1, "plain") is True  # the torn line before it is not in its way


def test_lines_that_are_no_text_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "x.journal"
    Journal(path, is_new=True).write(0, plain=True)
    with path.open("ab") as file:
        file.write(b'\xff\xfe{"chunk": 1\n')
    again = Journal(path, is_new=False)
    again.write(1, plain=False)
    assert again.read(0, "plain") is True
    assert Journal(path, is_new=False).read(1, "plain") is False


def test_a_deadline_counts_what_a_killed_run_took(tmp_path: Path) -> None:
    def kill(scored: ScoredChunk) -> None:
        raise KilledError

    with pytest.raises(KilledError):
        run(tmp_path / "x", None, kill)
    path = tmp_path / "x.journal"
    path.write_text(path.read_text().replace('"seconds": ', '"seconds": 100'))
    result = run(tmp_path / "x", 50.0)
    assert result.former_seconds >= 100
    assert (result.recorded_chunks, result.plain_chunks) == (1, CHUNKS - 1)


def test_rates_come_from_what_was_measured() -> None:
    now = [0.0]
    pace = Pace(100.0, {"score": 2.0, "plain": 5.0}, lambda: now[0])
    assert pace.fits(plain=19)
    assert not pace.fits(plain=20)
    assert pace.is_safe(score=16)
    assert not pace.is_safe(score=17)  # three times slower from now on
    assert pace.fits(score=47)
    assert not pace.fits(score=48)  # 5 % are kept back
    assert not pace.fits(adapt=16)
    with pace.measure("score", 10):
        now[0] += 5
    assert pace.fits(score=180)
    assert pace.fits(adapt=60)
    with pace.measure("adapt", 10):
        now[0] += 50
    assert not pace.fits(adapt=9)
    assert Pace(None).fits(score=10**12)
    assert pace.seconds == {"score": 5.0, "plain": 0.0, "adapt": 50.0}

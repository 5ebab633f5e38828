"""The probes on flyweight's own engines: all of them pass, and an engine out of order is caught."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

torch = pytest.importorskip("torch")

from flyweight.evaluate.adapters import ScoreFirst  # noqa: E402
from flyweight.evaluate.config import (  # noqa: E402
    AdaptConfig,
    LoraConfig,
    NgramConfig,
    ScoreConfig,
)
from flyweight.evaluate.engine import ScoredChunk  # noqa: E402
from flyweight.evaluate.ledger import Ledger  # noqa: E402
from flyweight.evaluate.probe_session import (  # noqa: E402
    entries_of,
    probe_ledger,
    probe_score_before_update,
)
from flyweight.evaluate.probes import probe_one_pass  # noqa: E402
from flyweight.evaluate.ttt import ENGINES  # noqa: E402
from tiny_model import VOCAB, TinyModel, tiny_transformer  # noqa: E402

TOKENS = np.random.default_rng(7).integers(0, VOCAB, 97).astype(np.uint16)
SIZES: dict[str, Any] = {"seq_len": 16, "stride": 8, "chunk_targets": 32}
ADAPT = AdaptConfig(learn=("blocks.*",), learning_rate=1e-2)
HINTS = NgramConfig(orders=(1, 2), table_bits=8)
LORA = LoraConfig(match=("blocks.*",), step_targets=8, documents=2, learning_rate=1e-2)
CONFIGS = [
    ScoreConfig(protocol="plain", **SIZES),
    ScoreConfig(protocol="sliding", **SIZES),
    ScoreConfig(protocol="sliding", ngram=HINTS, **SIZES),
    ScoreConfig(protocol="score-first", adapt=ADAPT, **SIZES),
    ScoreConfig(protocol="score-first", adapt=ADAPT, ngram=HINTS, **SIZES),
    ScoreConfig(protocol="per-document", lora=LORA, **SIZES),
    ScoreConfig(protocol="sliding", rolling=True, **SIZES),
    ScoreConfig(protocol="score-first", rolling=True, adapt=ADAPT, **SIZES),
]


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class AdaptsFirst(ScoreFirst):
    """Learns from a chunk before it scores it, which takes going behind the engine's back."""

    def score(self, index: int) -> ScoredChunk:
        windows = self.chunks[index]
        self._step(self._sequences(windows.start, windows.stop)[:1])
        return super().score(index)


def maker(
    config: ScoreConfig, folder: Path, engine: type[Any] | None = None
) -> Callable[[NDArray[Any]], Any]:
    numbers = count()
    model = tiny_transformer() if config.rolling else TinyModel(depth=1)
    engine = engine or ENGINES[config.method]

    def make(tokens: NDArray[Any]) -> Any:
        path = folder / f"{next(numbers)}.ledger"
        ledger = Ledger(path, targets=tokens.size - 1, binding=bytes(32))
        return engine(model, tokens, ledger, config, None)

    return make


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.method)
def test_engines_score_before_they_learn(config: ScoreConfig, tmp_path: Path) -> None:
    make = maker(config, tmp_path)
    verdict = probe_score_before_update(make, TOKENS, vocab_size=VOCAB)
    assert verdict.passed, str(verdict)
    session = make(TOKENS)
    assert probe_one_pass(entries_of(session), expected=96).passed
    assert probe_ledger(session.ledger.path, expected=96).passed


def test_an_engine_that_adapts_first(tmp_path: Path) -> None:
    make = maker(CONFIGS[3], tmp_path, AdaptsFirst)
    verdict = probe_score_before_update(make, TOKENS, vocab_size=VOCAB)
    assert not verdict.passed
    assert verdict.name == "C3 score before update"

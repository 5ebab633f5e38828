"""Each published way of learning from scored text, beside a transcription without the library."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from flyweight.evaluate.adapters import ScoreFirst, chosen_parameters  # noqa: E402
from flyweight.evaluate.config import AdaptConfig, ScoreConfig  # noqa: E402
from flyweight.evaluate.ledger import Ledger  # noqa: E402
from flyweight.evaluate.ttt import score_stream  # noqa: E402
from flyweight.model.transformer import Transformer  # noqa: E402
from flyweight.recipes.load import load_recipe  # noqa: E402
from tiny_model import VOCAB, TinyModel  # noqa: E402

TOKENS = np.random.default_rng(3).integers(0, VOCAB, 301).astype(np.uint16)
CHUNK, LENGTH, STRIDE = 64, 16, 8
CASES = {
    "pr578": AdaptConfig(
        freeze=("blocks.0.*", "embedding.*"),
        optimizer="sgd",
        learning_rate=0.5,
        epochs=3,
        sequences=4,
        ema_decay=0.6,
        max_chunks=3,
    ),
    "pr585": AdaptConfig(learn=("blocks.1.*", "blocks.2.*", "*bias"), learning_rate=1e-2),
    "pr1123": AdaptConfig(
        freeze=("blocks.0.*", "blocks.1.*"), optimizer="sgd", learning_rate=0.5, sequences=2
    ),
    "pr1683": AdaptConfig(
        learn=("blocks.2.qkv.weight",), learning_rate=0.02, second_beta=0.95, sequences=16
    ),
    "constant": AdaptConfig(optimizer="sgd", learning_rate=0.1, schedule="constant"),
}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def learns(name: str, case: str) -> bool:
    """What the published scripts unfreeze, in words of the tiny model."""
    return {
        "pr578": not name.startswith(("blocks.0.", "embedding.")),
        "pr585": name.startswith(("blocks.1.", "blocks.2.")) or name.endswith("bias"),
        "pr1123": not name.startswith(("blocks.0.", "blocks.1.")),
        "pr1683": name == "blocks.2.qkv.weight",
        "constant": True,
    }[case]


def transcribed(case: str) -> np.ndarray:
    """Scores of the published loop: plain tensors, windows one by one, optimizers by formula."""
    config, model = CASES[case], TinyModel().eval()
    weights = {n: w for n, w in model.named_parameters() if learns(n, case)}
    raw = {n: w.detach().clone() for n, w in weights.items()}
    ema = {n: w.clone() for n, w in raw.items()}
    first, second = ({n: torch.zeros_like(w) for n, w in raw.items()} for _ in range(2))
    targets, steps = TOKENS.size - 1, 0
    chunks = math.ceil(targets / CHUNK)
    limit = config.max_chunks or chunks
    nats = np.full(targets, np.nan)
    tokens = torch.from_numpy(TOKENS.astype(np.int64))
    for chunk in range(chunks):
        start, stop = CHUNK * chunk, min(CHUNK * (chunk + 1), targets)
        with torch.no_grad():
            for name, weight in weights.items():
                weight.copy_(ema[name] if config.ema_decay else raw[name])
            for i in range(start, stop):
                end = max(LENGTH, min(-(-(i + 1) // STRIDE) * STRIDE, targets))
                window = tokens[max(end - LENGTH, 0) : end]
                row = model(window[None])[0, i - max(end - LENGTH, 0)]
                nats[i] = float(torch.logsumexp(row, 0) - row[tokens[i + 1]])
            for name, weight in weights.items():
                weight.copy_(raw[name])
        if chunk >= limit or chunk == chunks - 1:
            continue
        rate = config.learning_rate
        if config.schedule == "cosine":
            rate *= 0.5 * (1 + math.cos(math.pi * chunk / (limit - 1)))
        rows = [tokens[a : a + LENGTH + 1] for a in range(start, stop - LENGTH + 1, LENGTH)]
        for _ in range(config.epochs):
            for at in range(0, len(rows), config.sequences):
                batch = torch.stack(rows[at : at + config.sequences])
                logits = model(batch[:, :-1]).log_softmax(-1)
                loss = -logits.gather(-1, batch[:, 1:, None]).mean()
                grads = torch.autograd.grad(loss, list(weights.values()))
                norm = math.sqrt(sum(float(g.square().sum()) for g in grads))
                grads = [g * min(1.0, config.clip_norm / (norm + 1e-6)) for g in grads]
                steps += 1
                for (name, weight), grad in zip(weights.items(), grads, strict=True):
                    if config.optimizer == "sgd":
                        first[name] = config.momentum * first[name] + grad
                        change = first[name]
                    else:
                        b1, b2 = config.momentum, config.second_beta
                        first[name] = b1 * first[name] + (1 - b1) * grad
                        second[name] = b2 * second[name] + (1 - b2) * grad**2
                        mean = first[name] / (1 - b1**steps)
                        change = mean / ((second[name] / (1 - b2**steps)).sqrt() + 1e-8)
                    weight.data -= rate * change
        for name, weight in weights.items():
            raw[name] = weight.detach().clone()
            ema[name] = config.ema_decay * ema[name] + (1 - config.ema_decay) * raw[name]
    return nats


def config_of(case: str) -> ScoreConfig:
    return ScoreConfig(
        protocol="score-first",
        seq_len=LENGTH,
        stride=STRIDE,
        batch_windows=4,
        chunk_targets=CHUNK,
        adapt=CASES[case],
    )


@pytest.mark.parametrize("case", CASES)
def test_scores_are_those_of_the_published_loop(tmp_path: Path, case: str) -> None:
    with Ledger(tmp_path / "x", targets=TOKENS.size - 1, binding=bytes(32)) as ledger:
        result = score_stream(TinyModel(), TOKENS, ledger, config_of(case))
    expected = transcribed(case)
    np.testing.assert_allclose(result.nats, expected, rtol=0, atol=2e-4)
    with Ledger(tmp_path / "frozen", targets=TOKENS.size - 1, binding=bytes(32)) as ledger:
        frozen = replace(config_of(case), protocol="sliding", adapt=None)
        plain = score_stream(TinyModel(), TOKENS, ledger, frozen).nats
    np.testing.assert_allclose(plain[:CHUNK], expected[:CHUNK], rtol=0, atol=1e-5)
    assert np.abs(plain[CHUNK:] - expected[CHUNK:]).max() > 0.01


def test_a_step_in_parts_is_the_whole_step(tmp_path: Path) -> None:
    scores = []
    for part in (16, 1):
        with Ledger(tmp_path / str(part), targets=TOKENS.size - 1, binding=bytes(32)) as ledger:
            engine = ScoreFirst(TinyModel(), TOKENS, ledger, config_of("pr585"))
            engine._part = part
            for index in range(len(engine.chunks) - 1):
                engine.adapt(engine.score(index))
            scores.append(engine.score(len(engine.chunks) - 1).nats)
    np.testing.assert_allclose(*scores, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("recipe", "count"),
    [("pr578", 21_255_242), ("pr585", 5_780_500), ("pr1123", 26_989_662), ("pr1683", 524_288)],
)
def test_the_recipes_learn_as_many_numbers_as_published(recipe: str, count: int) -> None:
    loaded = load_recipe(recipe)
    assert loaded.score.ttt is not None
    assert loaded.score.ttt.adapt is not None
    with torch.device("meta"):
        model = Transformer(loaded.model)
    chosen = chosen_parameters(model, loaded.score.ttt.adapt)
    assert sum(weight.numel() for weight in chosen.values()) == count

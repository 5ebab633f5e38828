"""Averages of weights against plain loops, and what a run does with them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flyweight.data.shards import write_shard
from flyweight.errors import InvalidArgumentError
from flyweight.interop import read_safetensors
from flyweight.model.config import ModelConfig
from flyweight.train.config import OptimConfig, TrainConfig

torch = pytest.importorskip("torch")

from flyweight.train import trainer  # noqa: E402
from flyweight.train.averaging import Average, Ema, Hma, Last, Swa, new_average  # noqa: E402
from flyweight.train.trainer import TrainResult, train  # noqa: E402

SHAPES = {"a": (3, 2), "b": (4,)}


def random_weights(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape) for name, shape in SHAPES.items()}


def feed(make: Callable[[Any], Average], steps: int) -> tuple[Average, list[dict[str, np.ndarray]]]:
    """An average after some steps of falling learning rates, and the weights it met."""
    history = [random_weights(seed) for seed in range(steps + 1)]
    params = {n: torch.nn.Parameter(torch.tensor(w).float()) for n, w in history[0].items()}
    average = make(params)
    for step in range(1, steps + 1):
        for name, param in params.items():
            param.data.copy_(torch.tensor(history[step][name]))
        average.update(step=step, lr_scale=1 - step / steps)
    return average, history


def check(average: Average, expected: dict[str, np.ndarray]) -> None:
    for name, value in average.weights().items():
        assert value.dtype == torch.float32
        np.testing.assert_allclose(value, expected[name], rtol=1e-5, atol=1e-6)


def test_ema_follows_quickly_at_first() -> None:
    average, history = feed(lambda weights: Ema(weights, 0.8), 60)
    expected = history[0]
    for n, weights in enumerate(history[1:], start=1):
        decay = min(0.8, n / (9 + n))
        expected = {k: decay * v + (1 - decay) * weights[k] for k, v in expected.items()}
    check(average, expected)


def test_swa_is_the_mean_of_late_snapshots() -> None:
    average, history = feed(lambda weights: Swa(weights, 5, 0.35), 40)
    taken = [30, 35, 40]  # at 25 the rates are still at 0.375
    check(average, {name: np.mean([history[i][name] for i in taken], axis=0) for name in SHAPES})


def test_swa_takes_no_snapshot_while_the_rates_rise() -> None:
    config = TrainConfig(
        batch_sequences=1, max_steps=20, warmup_steps=10, average="swa", swa_steps=1, swa_below=0.35
    )
    weights = {"a": torch.nn.Parameter(torch.zeros(()))}
    average = new_average(config, weights)
    for step in range(1, 21):
        weights["a"].data.fill_(step)
        average.update(step=step, lr_scale=min(step, 20 - step) / 10)
    assert float(average.weights()["a"]) == pytest.approx(np.mean([17, 18, 19, 20]))


def test_swa_without_a_snapshot_gives_the_last_weights() -> None:
    average, history = feed(lambda weights: Swa(weights, 50, 0.2), 40)
    check(average, history[-1])


def test_hma_is_that_of_pull_request_1123() -> None:
    average, history = feed(lambda weights: Hma(weights, 0.997), 30)
    fast = slow = smooth = history[0]
    for w in history[1:]:
        fast = {k: 0.994 * v + 0.006 * w[k] for k, v in fast.items()}
        slow = {k: 0.997 * v + 0.003 * w[k] for k, v in slow.items()}
        smooth = {k: v + (1 - 0.945228) * (2 * fast[k] - slow[k] - v) for k, v in smooth.items()}
    check(average, smooth)


@pytest.mark.parametrize(("name", "kept"), [("ema", 1), ("swa", 1), ("hma", 3), ("none", 0)])
def test_only_what_is_used_is_kept(name: str, kept: int) -> None:
    config = TrainConfig(batch_sequences=1, max_steps=1, average=name)
    weights = {n: torch.nn.Parameter(torch.zeros(s)) for n, s in SHAPES.items()}
    state = new_average(config, weights).state()
    elements = sum(v.numel() for k, v in state.items() if k != "snapshots")
    assert elements == kept * sum(p.numel() for p in weights.values())


def test_no_average_is_the_last_weights() -> None:
    average, history = feed(Last, 3)
    check(average, history[-1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"average": "mean"}, "average='mean', expected ema or swa or hma or none"),
        ({"swa_steps": 0}, "swa_steps=0"),
        ({"swa_below": 1.5}, "swa_below=1.5"),
        ({"average": "hma", "ema_decay": 0.3}, "ema_decay=0.3, expected from 0.5 to below 1"),
    ],
)
def test_impossible_averages_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        TrainConfig(batch_sequences=1, max_steps=1, **change)


# --- in a run -----------------------------------------------------------------------------------

MODEL = ModelConfig(
    vocab_size=32,
    num_layers=1,
    model_dim=16,
    num_heads=2,
    num_kv_heads=1,
    mlp_hidden=32,
    seq_len=16,
    rope_dims=4,
)
CONFIG = TrainConfig(
    batch_sequences=2,
    max_steps=12,
    warmdown_fraction=0.9,
    swa_steps=2,
    swa_below=0.7,
    device="cpu",
    checkpoint_seconds=0.0,
    optim=OptimConfig(momentum_warmup_steps=5),
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    tokens = np.random.default_rng(0).integers(3, 32, size=600).astype(np.uint16)
    write_shard(folder / "fineweb_train_000000.bin", tokens)
    return folder


def run(data: Path, out: Path, average: str) -> TrainResult:
    config = dataclasses.replace(CONFIG, average=average)
    return train(MODEL, config, data, out, seed=7, progress=False)


@pytest.mark.parametrize("name", ["ema", "swa", "hma", "none"])
def test_a_resumed_run_exports_the_same_average(
    name: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(data, tmp_path / "whole", name)
    real_step = trainer._step

    def power_cut(state: Any, *rest: Any) -> Any:
        if state.step == 7:
            raise RuntimeError("power cut")
        return real_step(state, *rest)

    monkeypatch.setattr(trainer, "_step", power_cut)
    with pytest.raises(RuntimeError, match="power cut"):
        run(data, tmp_path / "parts", name)
    monkeypatch.undo()
    parts = run(data, tmp_path / "parts", name)
    assert parts.model_path.read_bytes() == whole.model_path.read_bytes()
    exported, _ = read_safetensors(whole.model_path)
    last, _ = read_safetensors(whole.state_path)
    weight = "blocks.0.mlp.fc.weight"
    assert np.array_equal(exported[weight], last[f"model.{weight}"]) == (name == "none")


@pytest.mark.parametrize(
    ("change", "exported"),
    [
        ({"average": "swa"}, "swa"),
        ({"average": "swa", "swa_steps": 50}, "last"),
        ({"average": "ema"}, "ema"),
        ({"average": "hma"}, "hma"),
        ({"average": "none"}, "last"),
    ],
)
def test_a_run_says_what_it_exports(
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: dict[str, Any],
    exported: str,
) -> None:
    result = train(MODEL, dataclasses.replace(CONFIG, **change), data, tmp_path, seed=7)
    assert result.exported == exported
    said = "train: average='swa' took no snapshot: no step divisible by swa_steps=50 had"
    is_missed = exported == "last" and change["average"] == "swa"
    assert capsys.readouterr().err.count(said) == is_missed

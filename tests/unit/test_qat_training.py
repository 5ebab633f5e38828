"""Training runs that switch to quantized weights: when, at what cost, and to what end."""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flyweight.artifact import quantize
from flyweight.data.shards import write_shard
from flyweight.errors import InvalidArgumentError
from flyweight.interop import read_safetensors
from flyweight.model.config import ModelConfig
from flyweight.quant.config import QuantConfig, QuantRule
from flyweight.quant.grid import QuantizedTensor
from flyweight.train.config import OptimConfig, QatConfig, TrainConfig

torch = pytest.importorskip("torch")

from flyweight.model.checkpoint import load_model, load_weights  # noqa: E402
from flyweight.train import trainer  # noqa: E402
from flyweight.train.data import TokenStream  # noqa: E402
from flyweight.train.trainer import TrainResult, train  # noqa: E402

MODEL = ModelConfig(
    vocab_size=32,
    num_layers=2,
    model_dim=16,
    num_heads=2,
    num_kv_heads=1,
    mlp_hidden=32,
    seq_len=16,
    rope_dims=4,
    unet_skips=True,
)
CONFIG = TrainConfig(
    batch_sequences=4,
    max_steps=12,
    shuffle=True,
    warmup_steps=2,
    ema_decay=0.9,
    device="cpu",
    log_steps=1,
    checkpoint_seconds=0.0,
    optim=OptimConfig(momentum_warmup_steps=5),
)
INT4 = QuantConfig(rules=(QuantRule(match="*.weight", bits=4, k=5.0),), min_elements=0)
STE = QatConfig(start_fraction=0.5)
SOFT = QatConfig(method="soft-round", start_fraction=0.5, anneal_fraction=0.4)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A noisy walk through the vocabulary: easy to learn."""
    folder = tmp_path_factory.mktemp("data")
    steps = np.random.default_rng(0).integers(1, 3, size=1500)
    write_shard(folder / "fineweb_train_000000.bin", (np.cumsum(steps) % 29 + 3).astype(np.uint16))
    return folder


def run(
    data: Path, out: Path, qat: QatConfig | None, quant: QuantConfig = INT4, **changes: Any
) -> TrainResult:
    config = dataclasses.replace(CONFIG, qat=qat, **changes)
    return train(MODEL, config, data, out, seed=7, quantize=quant, progress=False)


def log_of(result: TrainResult) -> list[dict[str, float]]:
    return [json.loads(line) for line in result.log_path.read_text().splitlines()]


@pytest.fixture
def history(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Weights and averages after each step of a run."""
    steps: list[dict[str, Any]] = []
    real_step = trainer._step

    def noted(state: Any, *rest: Any) -> Any:
        metrics = real_step(state, *rest)
        weights = {n: p.detach().clone() for n, p in state.model.named_parameters()}
        average = {n: e.clone() for n, e in state.average.weights().items()}
        steps.append({"weights": weights, "ema": average})
        return metrics

    monkeypatch.setattr(trainer, "_step", noted)
    return steps


# --- the switch ---------------------------------------------------------------------------------


def test_without_it_nothing_changes(data: Path, tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, qat=None)
    plain = train(MODEL, config, data, tmp_path / "plain", seed=7, progress=False)
    given = run(data, tmp_path / "given", None)
    assert plain.model_path.read_bytes() == given.model_path.read_bytes()
    assert plain.state_path.read_bytes()[-4096:] == given.state_path.read_bytes()[-4096:]
    assert all("qat" not in line for line in log_of(given))


def test_the_log_says_how_hard_weights_were_rounded(data: Path, tmp_path: Path) -> None:
    late = [line["qat"] for line in log_of(run(data, tmp_path / "ste", STE))]
    assert late == [0.0] * 6 + [1.0] * 6
    early = [line["qat"] for line in log_of(run(data, tmp_path / "early", QatConfig()))]
    assert early == [1.0] * 12
    soft = [line["qat"] for line in log_of(run(data, tmp_path / "soft", SOFT))]
    expected = [0.0] * 7 + [1 / 4.8, 2 / 4.8, 3 / 4.8, 4 / 4.8, 1.0]
    assert soft == pytest.approx(expected)


@pytest.mark.parametrize("qat", [STE, SOFT], ids=["ste", "soft-round"])
def test_steps_are_plain_until_the_start_and_others_after(
    data: Path, tmp_path: Path, qat: QatConfig, history: list[dict[str, Any]]
) -> None:
    run(data, tmp_path / "plain", None)
    plain = history[:]
    history.clear()
    run(data, tmp_path / "qat", qat)
    first = 7 if qat is SOFT else 6  # soft rounding starts from the weights as they are
    for step in range(12):
        same = [
            torch.equal(a, b)
            for a, b in zip(
                plain[step]["weights"].values(), history[step]["weights"].values(), strict=True
            )
        ]
        assert all(same) if step < first else not any(same), step


def test_the_average_goes_on_through_the_switch(
    data: Path, tmp_path: Path, history: list[dict[str, Any]]
) -> None:
    run(data, tmp_path, STE)
    for step in range(1, 12):
        decay = min(CONFIG.ema_decay, (1 + step) / (10 + step))
        for name, before in history[step - 1]["ema"].items():
            latent = history[step]["weights"][name]
            expected = torch.lerp(before, latent, 1 - decay)
            assert torch.allclose(history[step]["ema"][name], expected, rtol=0, atol=1e-7)
    weight = history[-1]["weights"]["blocks.0.mlp.fc.weight"]
    assert weight.unique().numel() > 400  # latent: not the few levels of the grid


def test_a_clock_starts_it_too(data: Path, tmp_path: Path) -> None:
    lines = log_of(run(data, tmp_path, STE, max_steps=0, max_seconds=0.5))
    assert {line["qat"] for line in lines} == {0.0, 1.0}
    assert all((line["seconds"] > 0.2) for line in lines if line["qat"])


@pytest.mark.parametrize("cut", [4, 5, 6, 7, 10])
@pytest.mark.parametrize("qat", [STE, SOFT], ids=["ste", "soft-round"])
def test_a_resumed_run_gives_the_same_bytes(
    data: Path, tmp_path: Path, qat: QatConfig, cut: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(data, tmp_path / "whole", qat)
    real_step = trainer._step

    def power_cut(state: Any, *rest: Any) -> Any:
        if state.step == cut:
            raise RuntimeError("power cut")
        return real_step(state, *rest)

    monkeypatch.setattr(trainer, "_step", power_cut)
    with pytest.raises(RuntimeError, match="power cut"):
        run(data, tmp_path / "parts", qat)
    monkeypatch.undo()
    parts = run(data, tmp_path / "parts", qat)
    assert parts.model_path.read_bytes() == whole.model_path.read_bytes()
    assert [line["qat"] for line in log_of(parts)] == [line["qat"] for line in log_of(whole)]


@torch._dynamo.config.patch(error_on_recompile=True)
def test_nothing_is_compiled_inside_the_clock(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch._dynamo.reset()
    compile_ = functools.partial(torch.compile, backend="aot_eager")
    monkeypatch.setattr(torch, "compile", compile_)
    counts = torch._dynamo.utils.counters["stats"]
    graphs: list[int] = []
    real_loop = trainer._loop

    def counted(*arguments: Any) -> None:
        graphs.append(counts["unique_graphs"])
        real_loop(*arguments)
        graphs.append(counts["unique_graphs"])

    monkeypatch.setattr(trainer, "_loop", counted)
    before = counts["unique_graphs"]
    monkeypatch.setitem(globals(), "MODEL", dataclasses.replace(MODEL, num_layers=1))
    compiled = run(data, tmp_path / "compiled", SOFT, compile=True)
    assert graphs == [before + 1, before + 1]  # rounding needs none of its own
    assert compiled.recompilations == 0
    torch._dynamo.reset()
    eager = run(data, tmp_path / "eager", SOFT)
    for one, other in zip(log_of(compiled), log_of(eager), strict=True):
        assert one["qat"] == other["qat"]
        assert one["loss"] == pytest.approx(other["loss"], rel=2e-2)


# --- what it is for -----------------------------------------------------------------------------


def quantized_loss(data: Path, result: TrainResult, quant: QuantConfig) -> tuple[float, float]:
    """Loss of the exported weights, in float and rounded to nearest, on training text."""
    model = load_model(result.model_path)
    stream = TokenStream(data, batch_sequences=64, seq_len=16, vocab_size=32)
    batch = torch.from_numpy(stream.batch(0))
    with torch.inference_mode():
        floating = model.loss(batch[:, :-1], batch[:, 1:]).item()
    arrays, _ = read_safetensors(result.model_path)
    stored, _ = quantize(arrays, quant)
    arrays |= {n: t.dequantize() for n, t in stored.items() if isinstance(t, QuantizedTensor)}
    load_weights(model, arrays, source="test")
    with torch.inference_mode():
        return floating, model.loss(batch[:, :-1], batch[:, 1:]).item()


def test_it_lowers_the_tax_and_soft_rounding_does_not_wreck_the_model(
    data: Path, tmp_path: Path
) -> None:
    rules = (QuantRule(match="*.weight", bits=3, k=3.0),)
    coarse = QuantConfig(rules=rules, min_elements=0)
    late = QatConfig(start_fraction=0.5)
    soft = QatConfig(method="soft-round", start_fraction=0.5, anneal_fraction=0.4)
    losses = {}
    for name, qat in (("none", None), ("ste", late), ("soft-round", soft)):
        result = run(data, tmp_path / name, qat, coarse, max_steps=160, checkpoint_seconds=1e6)
        losses[name] = quantized_loss(data, result, coarse)
    tax = {name: quantized - floating for name, (floating, quantized) in losses.items()}
    assert tax["ste"] < tax["none"] / 2
    assert tax["soft-round"] < tax["none"] / 2
    assert losses["ste"][1] < losses["none"][1]
    assert losses["soft-round"][1] < losses["none"][1]
    assert losses["soft-round"][1] < losses["ste"][1] + 0.1


# --- bad input ----------------------------------------------------------------------------------


def test_it_needs_to_know_the_export(data: Path, tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, qat=STE)
    with pytest.raises(InvalidArgumentError, match="needs a quantization config"):
        train(MODEL, config, data, tmp_path, seed=7, progress=False)


def test_a_state_of_other_grids_is_put_aside(data: Path, tmp_path: Path) -> None:
    run(data, tmp_path, STE)
    run(data, tmp_path, STE, dataclasses.replace(INT4, damp_ratio=0.5))  # the solver's own affair
    other = QuantConfig(rules=(QuantRule(match="*.weight", bits=4, k=4.0),), min_elements=0)
    assert not list(tmp_path.glob("aside-*"))
    run(data, tmp_path, STE, other)
    assert len(list(tmp_path.glob("aside-*/state.safetensors"))) == 1

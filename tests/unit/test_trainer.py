"""The training run as a whole: what it learns, writes, repeats, survives and refuses."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flyweight.data.facts import DataInfo, ShardInfo, SplitInfo
from flyweight.data.shards import write_shard
from flyweight.errors import DataError, InvalidArgumentError, RecipeError
from flyweight.interop import read_safetensors, write_safetensors
from flyweight.model.config import BOS_TOKEN, ModelConfig
from flyweight.train.config import OptimConfig, TrainConfig

torch = pytest.importorskip("torch")

from flyweight.model.attention import attention_kernel  # noqa: E402
from flyweight.model.checkpoint import load_model, save_model  # noqa: E402
from flyweight.model.transformer import Transformer  # noqa: E402
from flyweight.train import trainer  # noqa: E402
from flyweight.train.data import TokenStream  # noqa: E402
from flyweight.train.distributed import pick_device  # noqa: E402
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
    smear_gate=True,
    unet_skips=True,
    resid_mix=True,
    branch_scales=True,
)
CONFIG = TrainConfig(
    batch_sequences=4,
    max_steps=12,
    shuffle=True,
    warmup_steps=2,
    ema_decay=0.9,
    device="cpu",
    log_steps=5,
    checkpoint_seconds=0.0,
    optim=OptimConfig(momentum_warmup_steps=5),
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two shards that hold a noisy walk through the vocabulary: easy to learn."""
    folder = tmp_path_factory.mktemp("data")
    steps = np.random.default_rng(0).integers(1, 3, size=1500)
    tokens = (np.cumsum(steps) % 29 + 3).astype(np.uint16)
    write_shard(folder / "fineweb_train_000000.bin", tokens[:700])
    write_shard(folder / "fineweb_train_000001.bin", tokens[700:])
    return folder


def run(data: Path, out: Path, config: TrainConfig = CONFIG, **limits: Any) -> TrainResult:
    return train(MODEL, config, data, out, seed=7, progress=False, **limits)


def log_of(result: TrainResult) -> list[dict[str, float]]:
    return [json.loads(line) for line in result.log_path.read_text().splitlines()]


# --- data -------------------------------------------------------------------------------------


def test_stream_in_order_goes_round_the_ring(data: Path) -> None:
    stream = TokenStream(data, batch_sequences=3, seq_len=16, vocab_size=32)
    paths = sorted(data.glob("*.bin"))
    ring = np.concatenate([np.fromfile(path, dtype="<u2", offset=1024) for path in paths])
    assert stream.num_tokens == len(ring) == 1500
    for step in (0, 14, 31, 400):
        batch = stream.batch(step)
        assert batch.shape == (3, 17)
        assert batch.dtype == np.int64
        for row in range(3):
            at = (step * 3 + row) * 16 + np.arange(17)
            assert np.array_equal(batch[row], ring[at % len(ring)])


def test_shuffled_stream_takes_every_row_once_an_epoch(tmp_path: Path) -> None:
    write_shard(tmp_path / "fineweb_train_000000.bin", np.arange(64, dtype=np.uint16))
    stream = TokenStream(tmp_path, batch_sequences=4, seq_len=8, vocab_size=64, shuffle_seed=1)
    again = TokenStream(tmp_path, batch_sequences=4, seq_len=8, vocab_size=64, shuffle_seed=1)
    epochs = []
    for step in (0, 2):
        rows = np.concatenate([stream.batch(step), stream.batch(step + 1)])
        assert sorted(rows[:, :-1].ravel()) == list(range(64))
        assert np.array_equal(again.batch(step), rows[:4])
        epochs.append(rows)
    assert not np.array_equal(*epochs)
    other = TokenStream(tmp_path, batch_sequences=4, seq_len=8, vocab_size=64, shuffle_seed=2)
    assert not np.array_equal(other.batch(0), stream.batch(0))


def test_rows_start_at_documents_where_one_begins(tmp_path: Path) -> None:
    tokens = np.full(100, 7, dtype=np.uint16)
    tokens[[5, 13, 40, 95]] = BOS_TOKEN
    write_shard(tmp_path / "fineweb_train_000000.bin", tokens[:60])
    write_shard(tmp_path / "fineweb_train_000001.bin", tokens[60:])
    stream = TokenStream(tmp_path, batch_sequences=13, seq_len=8, vocab_size=32, at_documents=True)
    starts = [stream._aligned(stream._row(k)) % 100 for k in range(13)]
    # Rows begin at 0, 8, 16, ..., 96, each of 8 tokens.
    assert starts == [5, 13, 16, 24, 32, 40, 48, 56, 64, 72, 80, 95, 96]
    first = stream.batch(0)[:, 0]
    assert (first[[0, 1, 5, 11]] == BOS_TOKEN).all()
    assert (np.delete(first, [0, 1, 5, 11]) == 7).all()


def test_bad_data_is_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="fineweb_train_000000"):
        TokenStream(tmp_path, batch_sequences=1, seq_len=8, vocab_size=32)
    with pytest.raises(DataError, match="1500 training tokens, expected more than seq_len=1500"):
        TokenStream(data, batch_sequences=1, seq_len=1500, vocab_size=32)
    stream = TokenStream(data, batch_sequences=4, seq_len=16, vocab_size=20)
    with pytest.raises(DataError, match=r"fineweb_train_000000\.bin: token \d+ is \d+, the model"):
        stream.batch(0)


# --- training -----------------------------------------------------------------------------------


def test_training_learns_and_reports(data: Path, tmp_path: Path) -> None:
    result = run(
        data, tmp_path, dataclasses.replace(CONFIG, checkpoint_seconds=math.inf), max_steps=60
    )
    assert (result.steps, result.tokens, result.device) == (60, 60 * 4 * 16, "cpu")
    assert result.final_loss < 1.6  # from ln 32 = 3.47; the walk itself has ln 2
    assert result.tokens_per_second == pytest.approx(result.tokens / result.seconds)
    lines = log_of(result)
    assert [line["step"] for line in lines] == [1, *range(5, 61, 5)]
    assert set(lines[0]) == {
        *("step", "loss", "grad_norm", "lr", "tokens", "seconds", "stall_seconds", "recompilations")
    }
    assert lines[0]["loss"] == pytest.approx(math.log(32), abs=0.1)
    assert lines[0]["lr"] == pytest.approx(0.025 / 2)
    assert lines[-1]["lr"] < 0.025 * 0.05

    stream = TokenStream(data, batch_sequences=8, seq_len=16, vocab_size=32)
    batch = torch.from_numpy(stream.batch(0))
    model = load_model(result.model_path)
    assert model.config == MODEL
    assert model.loss(batch[:, :-1], batch[:, 1:]).item() < 1.6


def test_same_seed_same_bytes(data: Path, tmp_path: Path) -> None:
    first, second = (run(data, tmp_path / name) for name in "ab")
    assert first.model_path.read_bytes() == second.model_path.read_bytes()
    other = train(MODEL, CONFIG, data, tmp_path / "c", seed=8, progress=False)
    assert first.model_path.read_bytes() != other.model_path.read_bytes()


def test_accumulation_changes_nothing_but_rounding(data: Path, tmp_path: Path) -> None:
    whole = run(data, tmp_path / "whole", max_steps=3)
    config = dataclasses.replace(CONFIG, accumulation_steps=2)
    halves = run(data, tmp_path / "halves", config, max_steps=3)
    assert log_of(whole)[0]["loss"] == pytest.approx(log_of(halves)[0]["loss"], rel=1e-6)
    assert log_of(whole)[0]["grad_norm"] == pytest.approx(log_of(halves)[0]["grad_norm"], rel=1e-4)


def test_zero_decay_exports_the_last_weights(data: Path, tmp_path: Path) -> None:
    result = run(data, tmp_path, dataclasses.replace(CONFIG, ema_decay=0.0), max_steps=3)
    exported, _ = read_safetensors(result.model_path)
    state, _ = read_safetensors(result.state_path)
    for name, weight in exported.items():
        assert np.array_equal(weight, state["model." + name])


def test_clock_budget_ends_the_run(data: Path, tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, max_steps=0, max_seconds=0.4, log_steps=1)
    result = run(data, tmp_path, config)
    assert 0.4 <= result.seconds < 3
    assert log_of(result)[-1]["lr"] < 0.025 / 2
    assert run(data, tmp_path / "steps", config, max_steps=1).steps == 1


def test_progress_bar_goes_to_stderr(
    data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    train(MODEL, CONFIG, data, tmp_path, seed=0)
    out, err = capfd.readouterr()
    assert out == ""
    assert "tokens/s" in err
    assert "loss" in err


# --- resuming -----------------------------------------------------------------------------------


def test_stopped_and_resumed_run_gives_the_same_bytes(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(data, tmp_path / "whole")
    real_step = trainer._step

    def power_cut(state: Any, *rest: Any) -> Any:
        if state.step == 7:
            raise RuntimeError("power cut")
        return real_step(state, *rest)

    monkeypatch.setattr(trainer, "_step", power_cut)
    with pytest.raises(RuntimeError, match="power cut"):
        run(data, tmp_path / "parts")
    monkeypatch.undo()
    parts = run(data, tmp_path / "parts")
    assert parts.model_path.read_bytes() == whole.model_path.read_bytes()
    assert [line["step"] for line in log_of(parts)] == [line["step"] for line in log_of(whole)]
    assert parts.final_loss == whole.final_loss


def child(data: Path, out: Path) -> subprocess.Popen[str]:
    """The same run in another process, slowed down so that a signal can meet it anywhere."""
    code = (
        "import importlib.util, sys, time\n"
        f"spec = importlib.util.spec_from_file_location('cases', {__file__!r})\n"
        "cases = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(cases)\n"
        "step = cases.trainer._step\n"
        "def slow(*args):\n"
        "    print('step', flush=True)\n"
        "    time.sleep(0.05)\n"
        "    return step(*args)\n"
        "cases.trainer._step = slow\n"
        "from pathlib import Path\n"
        "cases.run(Path(sys.argv[1]), Path(sys.argv[2]))\n"
    )
    command = [sys.executable, "-c", code, str(data), str(out)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True)


def wait_for_steps(process: subprocess.Popen[str], count: int) -> None:
    assert process.stdout is not None
    for _ in range(count):
        assert process.stdout.readline() == "step\n"


def test_killed_run_resumes_to_the_same_bytes(data: Path, tmp_path: Path) -> None:
    whole = run(data, tmp_path / "whole")
    with child(data, tmp_path / "parts") as process:
        wait_for_steps(process, 5)
        time.sleep(0.06)  # into a step or a write
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "parts" / "model.safetensors").exists()
    parts = run(data, tmp_path / "parts")
    assert parts.model_path.read_bytes() == whole.model_path.read_bytes()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupt_saves_and_raises(data: Path, tmp_path: Path, number: int) -> None:
    with child(data, tmp_path) as process:
        wait_for_steps(process, 3)
        os.kill(process.pid, number)
        _, err = process.communicate(timeout=60)
    state, _ = read_safetensors(tmp_path / "state.safetensors")
    assert state["counters"][0] in (3, 4)
    assert f"KeyboardInterrupt: {tmp_path}/state.safetensors holds step " in err
    assert "; the same command goes on" in err
    assert not (tmp_path / "model.safetensors").exists()


def test_an_interrupt_of_the_last_save_ends_the_run_too(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_save = trainer._save

    def save(state: Any, *rest: Any) -> None:
        real_save(state, *rest)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(trainer, "_save", save)
    seldom = dataclasses.replace(CONFIG, checkpoint_seconds=math.inf)
    with pytest.raises(KeyboardInterrupt, match="holds step 12; the same command goes on"):
        run(data, tmp_path, seldom)
    monkeypatch.undo()
    assert run(data, tmp_path, seldom).model_path.exists()


def test_a_warmdown_longer_than_a_short_run_is_said(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = dataclasses.replace(CONFIG, max_steps=3, warmdown_steps=100)
    train(MODEL, config, data, tmp_path, seed=7)
    assert "this run has about 3 steps, its warm-down warmdown_steps=100" in capsys.readouterr().err


@pytest.mark.parametrize(("data_end", "steps"), [("stop", 23), ("wrap", 25)])
def test_a_run_that_ends_with_its_data_says_so(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], data_end: str, steps: int
) -> None:
    config = dataclasses.replace(CONFIG, max_steps=25, data_end=data_end)
    assert train(MODEL, config, data, tmp_path, seed=7).steps == steps
    assert ("the data ended: 1,500 tokens" in capsys.readouterr().err) is (data_end == "stop")


def test_finished_run_is_only_exported_again(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = run(data, tmp_path)
    content = first.model_path.read_bytes()
    first.model_path.unlink()
    again = train(MODEL, dataclasses.replace(CONFIG, compile=True), data, tmp_path, seed=7)
    assert "compiling" not in capsys.readouterr().err
    assert again.model_path.read_bytes() == content
    assert (again.steps, again.final_loss) == (first.steps, first.final_loss)


@pytest.mark.parametrize(
    "change",
    [{"max_steps": 14}, {"seed": 8}, {"config": dataclasses.replace(CONFIG, batch_sequences=8)}],
    ids=["budget", "seed", "config"],
)
def test_what_another_run_left_is_kept_and_taken_up_again(
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    change: dict[str, Any],
) -> None:
    def call(out: Path, config: TrainConfig = CONFIG, **arguments: Any) -> TrainResult:
        return train(MODEL, config, data, out, **{"seed": 7, **arguments})

    real_step = trainer._step

    def power_cut(state: Any, *rest: Any) -> Any:
        if state.step == 7:
            raise RuntimeError("power cut")
        return real_step(state, *rest)

    whole, changed = call(tmp_path / "whole"), call(tmp_path / "changed", **change)
    monkeypatch.setattr(trainer, "_step", power_cut)
    with pytest.raises(RuntimeError, match="power cut"):
        call(tmp_path / "out")
    monkeypatch.undo()
    assert "kept" not in capsys.readouterr().err
    assert call(tmp_path / "out", **change).model_path.read_bytes() == (
        changed.model_path.read_bytes()
    )
    [aside] = (tmp_path / "out").glob("aside-*")
    said = (
        f"train: step 7 of a run with another recipe, budget, seed or data is kept in {aside}; the"
    )
    assert capsys.readouterr().err.count(said) == 1
    assert [line["step"] for line in log_of(changed)] == [
        line["step"] for line in log_of(call(tmp_path / "out", **change))
    ]

    capsys.readouterr()
    real = trainer._step
    steps: list[int] = []
    monkeypatch.setattr(trainer, "_step", lambda s, *rest: steps.append(s.step) or real(s, *rest))
    again = call(tmp_path / "out")
    assert steps == [7, 8, 9, 10, 11]
    assert f"train: going on from what was kept in {aside}\n" in capsys.readouterr().err
    assert again.model_path.read_bytes() == whole.model_path.read_bytes()
    assert [line["step"] for line in log_of(again)] == [1, 5, 10, 12]
    call(tmp_path / "out", **change)  # that one was finished, and still is
    assert len(steps) == 5


def test_log_drops_steps_after_the_checkpoint_and_a_cut_line(data: Path, tmp_path: Path) -> None:
    result = run(data, tmp_path)
    with result.log_path.open("a") as log:
        log.write('{"step": 13, "loss": 1.0}\n{"step": 14, "lo')
    result = run(data, tmp_path)
    assert [line["step"] for line in log_of(result)] == [1, 5, 10, 12]


# --- bad input ----------------------------------------------------------------------------------


def test_other_shards_of_as_many_tokens_are_other_data(data: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    write_shard(other / "fineweb_train_000000.bin", np.arange(1500, dtype=np.uint16) % 29 + 3)
    stream = TokenStream(other, batch_sequences=1, seq_len=8, vocab_size=32)
    assert stream.shards() == [1500]
    shard = ShardInfo(name="fineweb_train_000000.bin", tokens=1500, sha256="a" * 64)
    split = SplitInfo(
        documents=None, tokens=1500, scored_bytes=None, text_bytes=None, shards=(shard,)
    )
    DataInfo(
        folder=other,
        tokenizer_path=other / "tokenizer.model",
        tokenizer_sha256="b" * 64,
        vocab_size=32,
        source={},
        train=split,
        val=split,
    ).write()
    assert stream.shards() == ["a" * 64]


@pytest.mark.parametrize(
    "key",
    [
        *("average.tok_emb.weight", "optimizer.blocks.0.mlp.fc.weight.momentum"),
        *("optimizer.tok_emb.weight.exp_avg_sq", "counters"),
    ],
)
def test_whatever_is_wrong_in_the_state_is_named(data: Path, tmp_path: Path, key: str) -> None:
    path = run(data, tmp_path).state_path
    arrays, metadata = read_safetensors(path)
    whole = arrays.pop(key)
    write_safetensors(path, arrays, metadata)
    with pytest.raises(DataError, match=rf"state\.safetensors: lacks tensor '{key}'"):
        run(data, tmp_path)
    for wrong in (whole[:1], whole * np.float32(math.nan)):
        write_safetensors(path, {**arrays, key: wrong}, metadata)
        with pytest.raises(DataError, match=rf"tensor '{key}' has shape .*, expected .* finite"):
            run(data, tmp_path)


def test_nan_in_the_state_is_refused(data: Path, tmp_path: Path) -> None:
    result = run(data, tmp_path)
    tensors, metadata = read_safetensors(result.state_path)
    weight = tensors["model.tok_emb.weight"].copy()
    weight[3, 3] = np.nan
    write_safetensors(result.state_path, {**tensors, "model.tok_emb.weight": weight}, metadata)
    with pytest.raises(DataError, match=r"tensor 'tok_emb\.weight' holds a value that is not"):
        run(data, tmp_path)


def test_truncated_state_is_refused(data: Path, tmp_path: Path) -> None:
    result = run(data, tmp_path)
    result.state_path.write_bytes(result.state_path.read_bytes()[:-10])
    with pytest.raises(DataError, match=r"not a readable .*; without that file the run begins"):
        run(data, tmp_path)
    result.state_path.unlink()
    assert run(data, tmp_path).steps == result.steps


def test_divergence_stops_with_step_and_checkpoint(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_step = trainer._step

    def diverge(state: Any, *rest: Any) -> Any:
        metrics = real_step(state, *rest)
        return metrics * (math.nan if state.step == 4 else 1.0)

    monkeypatch.setattr(trainer, "_step", diverge)
    with pytest.raises(DataError, match=r"diverged at step 5: loss nan.*holds step 4"):
        run(data, tmp_path)
    seldom = dataclasses.replace(CONFIG, checkpoint_seconds=math.inf)
    with pytest.raises(DataError, match=r"diverged at step 5: loss nan.*holds step 4"):
        run(data, tmp_path, seldom)  # begins where the state is, and comes to no other


@pytest.mark.parametrize("sequences", [10**13, 10**18])
def test_a_batch_that_the_machine_cannot_hold_names_the_number_to_lower(
    data: Path, tmp_path: Path, sequences: int
) -> None:
    huge = dataclasses.replace(CONFIG, batch_sequences=sequences)
    wanted = rf"{sequences:,} sequences of 16 tokens, .* lower batch_sequences={sequences}"
    with pytest.raises(RecipeError, match=wanted):
        run(data, tmp_path, huge)


@pytest.mark.parametrize("compiled", [False, True])
def test_flex_attention_does_not_train_on_a_cpu(
    data: Path, tmp_path: Path, *, compiled: bool
) -> None:
    config = dataclasses.replace(CONFIG, compile=compiled)
    message = "attention kernel 'flex' .* has no gradients on cpu, expected auto or sdpa"
    with attention_kernel("flex"), pytest.raises(InvalidArgumentError, match=message):
        run(data, tmp_path, config)


def test_model_file_is_checked(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    weights = dict(Transformer(MODEL).named_parameters())
    save_model(path, MODEL, {**weights, "extra": torch.zeros(1)})
    with pytest.raises(DataError, match="unknown tensor 'extra'"):
        load_model(path)
    save_model(path, MODEL, {k: v for k, v in weights.items() if k != "smear.gate"})
    with pytest.raises(DataError, match=r"lacks tensor 'smear\.gate'"):
        load_model(path)
    save_model(path, MODEL, {**weights, "smear.gate": torch.zeros(3)})
    with pytest.raises(DataError, match=r"'smear\.gate' has shape \(3,\), expected \(16,\)"):
        load_model(path)
    write_safetensors(path, {"x": np.zeros(1)})
    with pytest.raises(DataError, match="no usable model_config"):
        load_model(path)


def test_cuda_without_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto").type == "cpu"
    with pytest.raises(InvalidArgumentError, match="finds no CUDA device"):
        pick_device("cuda")


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_training_on_cuda_agrees_with_the_cpu(data: Path, tmp_path: Path) -> None:
    on_cpu = run(data, tmp_path / "cpu", max_steps=40)
    on_gpu = run(data, tmp_path / "cuda", dataclasses.replace(CONFIG, device="cuda"), max_steps=40)
    assert on_gpu.device == "cuda"
    assert log_of(on_gpu)[0]["loss"] == pytest.approx(log_of(on_cpu)[0]["loss"], abs=0.02)
    assert on_gpu.final_loss == pytest.approx(on_cpu.final_loss, abs=0.3)

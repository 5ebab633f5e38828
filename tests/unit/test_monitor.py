"""What a run shows of itself, and batches made ahead of time."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from flyweight.data.shards import write_shard
from flyweight.errors import DataError, RecipeError
from flyweight.model.config import ModelConfig

torch = pytest.importorskip("torch")

from flyweight.model.transformer import Transformer  # noqa: E402
from flyweight.train.config import TrainConfig  # noqa: E402
from flyweight.train.curve import open_events, write_curve  # noqa: E402
from flyweight.train.data import TokenStream  # noqa: E402
from flyweight.train.diagnose import memory_explained, why_not_finite  # noqa: E402
from flyweight.train.distributed import World  # noqa: E402
from flyweight.train.gradients import passes  # noqa: E402
from flyweight.train.losses import Phase  # noqa: E402
from flyweight.train.monitor import Monitor, StepRecord  # noqa: E402
from flyweight.train.prefetch import DEPTH, Prefetcher  # noqa: E402
from flyweight.train.speed import Speedometer, flops_per_token  # noqa: E402
from flyweight.train.state import TrainState, new_state  # noqa: E402
from flyweight.train.trainer import train  # noqa: E402
from published_configs import PUBLISHED  # noqa: E402

MODEL = ModelConfig(
    vocab_size=32,
    num_layers=2,
    model_dim=16,
    num_heads=2,
    num_kv_heads=1,
    mlp_hidden=32,
    seq_len=8,
    rope_dims=4,
)
RECURRING = dataclasses.replace(MODEL, recur_first=0, recur_last=1, recur_passes=1)
WHOLE = Phase(recurs=True, seq_len=8)
CONFIG = TrainConfig(batch_sequences=4, max_steps=4, device="cpu")
ALONE = World(device=torch.device("cpu"))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    tokens = np.random.default_rng(0).integers(2, 32, size=1001).astype(np.uint16)
    write_shard(tmp_path / "fineweb_train_000000.bin", tokens)
    return tmp_path


def a_model() -> Transformer:
    model = Transformer(MODEL)
    model.init_weights(torch.Generator().manual_seed(0))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def stream_of(data: Path) -> TokenStream:
    return TokenStream(data, batch_sequences=4, seq_len=8, vocab_size=32, shuffle_seed=3)


def test_batches_are_those_of_the_stream(data: Path) -> None:
    plain = stream_of(data)
    half = slice(2, 4)
    with Prefetcher(
        stream_of(data), first_step=5, share=lambda batch: batch[half], pin=False
    ) as batches:
        for step in range(5, 60):
            assert np.array_equal(batches.take(step).numpy(), plain.batch(step)[half])
    assert batches.stall_seconds > 0


def test_batches_are_made_ahead_and_not_beyond(data: Path) -> None:
    stream, made = stream_of(data), []
    batch = stream.batch

    def counted(step: int) -> np.ndarray:
        made.append(step)
        return batch(step)

    stream.batch = counted  # type: ignore[method-assign]
    with Prefetcher(stream, first_step=0, share=lambda b: b, pin=False) as batches:
        batches.take(0)
        deadline = time.perf_counter() + 30
        while len(made) < DEPTH + 2 and time.perf_counter() < deadline:
            time.sleep(0.01)
        time.sleep(0.05)
        assert made == list(range(DEPTH + 2))  # one taken, some ready, one in hand
    time.sleep(0.05)
    assert len(made) <= DEPTH + 3  # the thread has ended


def test_an_error_of_the_thread_is_raised_where_batches_are_taken(data: Path) -> None:
    stream = TokenStream(data, batch_sequences=4, seq_len=8, vocab_size=20)
    ends = pytest.raises(DataError, match="vocabulary ends at 19")
    with Prefetcher(stream, first_step=0, share=lambda b: b, pin=False) as batches, ends:
        batches.take(0)


def test_data_that_ends_wraps_or_stops(data: Path, tmp_path: Path) -> None:
    config = TrainConfig(batch_sequences=4, max_steps=40, device="cpu")
    wrapped = train(MODEL, config, data, tmp_path / "a", seed=0, progress=False)
    assert wrapped.steps == 40
    assert stream_of(data).num_batches == 31  # 1,000 targets, 32 a batch
    stopping = dataclasses.replace(config, data_end="stop")
    stopped = train(MODEL, stopping, data, tmp_path / "b", seed=0, progress=False)
    assert stopped.steps == 31
    large = dataclasses.replace(stopping, batch_sequences=128, max_steps=0, max_seconds=9.0)
    with pytest.raises(
        DataError, match=r"1,001 training tokens end before the first step of batch"
    ):
        train(MODEL, large, data, tmp_path / "c", seed=0, progress=False)
    lines = (tmp_path / "b/log.jsonl").read_text().splitlines()
    assert 0 <= json.loads(lines[-1])["stall_seconds"] <= stopped.stall_seconds + 1e-3


def test_the_curve_is_a_picture_of_the_log(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    lines = [{"step": step, "loss": 7 - step / 1000} for step in range(1, 3001)]
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_curve(log, tmp_path / "loss.svg")
    root = ElementTree.parse(tmp_path / "loss.svg").getroot()
    [curve] = root.findall("{http://www.w3.org/2000/svg}polyline")
    points = [tuple(map(float, point.split(","))) for point in curve.get("points", "").split()]
    assert 500 <= len(points) <= 1000
    assert points == sorted(points)
    assert [y for _, y in points] == sorted(y for _, y in points)  # falls: y grows downwards


def test_one_line_makes_no_curve(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text('{"step": 1, "loss": 6.9}\n')
    write_curve(log, tmp_path / "loss.svg")
    assert not (tmp_path / "loss.svg").exists()


def test_without_tensorboard_there_are_no_events(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flyweight.train.curve.find_spec", lambda name: None)
    assert open_events(tmp_path / "events", 0) is None
    assert not (tmp_path / "events").exists()


def test_events_are_those_of_the_log(data: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="event files are for those who have TensorBoard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = TrainConfig(batch_sequences=4, max_steps=6, device="cpu", log_steps=2)
    train(MODEL, config, data, tmp_path / "run", seed=0, progress=False)
    lines = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    events = EventAccumulator(str(tmp_path / "run/tensorboard"))
    events.Reload()
    found = {event.step: event.value for event in events.Scalars("loss")}
    assert found == {line["step"]: pytest.approx(line["loss"], rel=1e-6) for line in lines}


def test_speed_in_words() -> None:
    known = Speedometer(bytes_per_token=2.5, model=MODEL, peak_flops=1e15)
    assert known.text(3.4657359, 2_000_000, 2.0, 2e14) == (
        "loss 3.466 ~2.000 bpb 1,000,000 tokens/s MFU 20%"
    )
    unknown = Speedometer(bytes_per_token=None, model=MODEL, peak_flops=None)
    assert unknown.text(3.0, 0, 0.0, 0.0) == "loss 3.000 0 tokens/s"


def test_flops_of_a_token() -> None:
    """PR #585: 31,719,424 weights in blocks, 131,072 in projections, the tied head, attention."""
    config = PUBLISHED["pr585"]()
    weights = 31_719_424 + 2 * 65_536 + 524_288
    attention = 6 * 2048 * 512 * 11
    assert flops_per_token(config) == pytest.approx(6 * weights + attention, rel=1e-3)
    off = {"recur_first": 0, "recur_last": 0, "recur_passes": 0}
    once = flops_per_token(dataclasses.replace(PUBLISHED["pr1539"](), **off))
    layers = 11_534_336 * 2 + 5_767_168 + 2_883_584
    more = 3 / 11 * (6 * layers + 6 * 2048 * 512 * 11)
    assert flops_per_token(PUBLISHED["pr1539"]()) - once == pytest.approx(more, rel=1e-3)
    assert flops_per_token(PUBLISHED["pr1539"](), recur=False) == once
    short = flops_per_token(config, seq_len=512)
    assert flops_per_token(config) - short == pytest.approx(0.75 * attention)


# --- the line and the log -----------------------------------------------------------------------


def monitor_of(
    log: Path,
    *,
    phases: Sequence[Phase] = 4 * (WHOLE,),
    state: TrainState | None = None,
    bytes_per_token: float | None = None,
    **record: Any,
) -> None:
    """Show four steps of 10 tokens and a second each, of a budget of four."""
    peak = 100 * flops_per_token(RECURRING)
    speedometer = Speedometer(bytes_per_token=bytes_per_token, model=RECURRING, peak_flops=peak)
    state = state or new_state(MODEL, CONFIG, seed=0, world=ALONE)
    with Monitor(
        log,
        state=state,
        spent=state.step / 4,
        log_steps=100,
        speedometer=speedometer,
        explain=lambda step: "",
        progress=True,
    ) as monitor:
        for step in range(state.step + 1, 5):
            monitor.record(
                StepRecord(
                    step=step,
                    lr=0.1,
                    tokens=10 * step,
                    seconds=float(step),
                    spent=step / 4,
                    batch_tokens=10,
                    phase=phases[step - 1],
                    **{"recompilations": 0, "metrics": torch.tensor([3.0, 1.0]), **record},
                )
            )
            monitor.look()


def test_a_run_past_its_budget_shows_the_whole_of_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = new_state(MODEL, CONFIG, seed=0, world=ALONE)
    state.step = 5
    monitor_of(tmp_path / "log.jsonl", phases=(), state=state)
    assert "train 100%" in capsys.readouterr().err


def test_layers_and_keys_that_are_left_out_do_not_count(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    once, short = Phase(recurs=False, seq_len=8), Phase(recurs=True, seq_len=4)
    for phases in (4 * (WHOLE,), 4 * (once,), 4 * (short,), (once, short, WHOLE, WHOLE)):
        flops = sum(
            flops_per_token(RECURRING, recur=phase.recurs, seq_len=phase.seq_len)
            for phase in phases
        )
        share = flops / 4 / flops_per_token(RECURRING) / 10
        monitor_of(tmp_path / "log.jsonl", phases=phases)
        assert f"step 4 loss 3.000 10 tokens/s MFU {share:.0%}" in capsys.readouterr().err


class OnDevice:
    """Metrics of a step that a device is at for another second when the host has handed it over."""

    device = torch.device("cuda")

    def __init__(self, clock: list[float]) -> None:
        self._clock = clock

    def tolist(self) -> list[float]:
        self._clock[0] += 1.0
        return [3.0, 1.0]


def test_a_step_counts_when_the_device_has_done_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Handed over at 1 to 4 s, each done a second later: the speed is 40 tokens in 5 s."""
    clock = [0.0]
    monkeypatch.setattr(
        "flyweight.train.monitor.time", SimpleNamespace(perf_counter=lambda: clock[0])
    )
    monitor_of(tmp_path / "log.jsonl", metrics=OnDevice(clock))
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [(line["step"], line["seconds"]) for line in lines] == [(1, 2.0), (4, 5.0)]
    assert "step 4 loss 3.000 8 tokens/s MFU 8%" in capsys.readouterr().err


def test_a_resumed_run_knows_the_time_left_and_its_own_share_of_the_peak(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = new_state(MODEL, CONFIG, seed=0, world=ALONE)
    state.step, state.seconds = 3, 3.0
    monitor_of(tmp_path / "log.jsonl", state=state)
    err = capsys.readouterr().err
    assert re.search(r"train +75%\|█+ +\| 00:00<\?", err)
    assert "tokens/s MFU 10%" in err


def test_the_last_step_is_logged_whatever_its_number(tmp_path: Path) -> None:
    monitor_of(tmp_path / "log.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 4]
    assert (tmp_path / "loss.svg").exists()


def test_what_is_compiled_inside_the_clock_is_said_once_and_logged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monitor_of(tmp_path / "log.jsonl", recompilations=2)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["recompilations"] for line in lines] == [2, 2]
    err = capsys.readouterr().err
    assert err.count("compiled") == 1
    assert "train: graphs compiled inside the clock by step 1: 2" in err


@pytest.mark.parametrize("bytes_per_token", [None, 2.0])
def test_tensorboard_gets_what_the_line_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bytes_per_token: float | None
) -> None:
    found: dict[str, dict[int, float]] = {}
    writer = SimpleNamespace(
        add_scalar=lambda name, value, step: found.setdefault(name, {}).update({step: value}),
        close=lambda: None,
    )
    monkeypatch.setattr("flyweight.train.monitor.open_events", lambda folder, step: writer)
    monitor_of(tmp_path / "log.jsonl", bytes_per_token=bytes_per_token, stall_seconds=0.25)
    assert found.pop("bpb_estimate", None) == (
        bytes_per_token and {step: pytest.approx(3.0 / math.log(2) / 2.0) for step in (1, 4)}
    )
    assert found == {
        "loss": {1: 3.0, 4: 3.0},
        "grad_norm": {1: 1.0, 4: 1.0},
        "lr": {1: 0.1, 4: 0.1},
        "tokens": {1: 10, 4: 40},
        "tokens_per_second": {1: 10.0, 4: 10.0},
        "stall_seconds": {1: 0.25, 4: 0.25},
    }


def test_a_missing_tensorboard_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monitor_of(tmp_path / "log.jsonl")
    monkeypatch.setattr("flyweight.train.curve.find_spec", lambda name: None)
    monitor_of(tmp_path / "log.jsonl")
    err = capsys.readouterr().err
    assert err.count("TensorBoard is not installed") == 1
    assert "pip install 'flyweight[tensorboard]'" in err


@pytest.mark.parametrize(("warmdown_steps", "said"), [(50, True), (25, False)])
def test_a_warmdown_longer_than_the_run_is_said(
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    warmdown_steps: int,
    said: bool,
) -> None:
    config = dataclasses.replace(CONFIG, max_steps=25, warmdown_steps=warmdown_steps)
    train(MODEL, config, data, tmp_path / "run", seed=0)
    line = (
        "train: this run has about 25 steps, its warm-down warmdown_steps=50: learning rates stay"
    )
    assert (f"{line} below 50% of" in capsys.readouterr().err) is said


# --- what stops a run ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sequences", "accumulation", "advice"),
    [
        (8, 1, "raise accumulation_steps from 1 to 2"),
        (6, 3, "raise accumulation_steps from 3 to 6"),
        (4, 4, "one sequence at a time already: lower model.seq_len"),
    ],
)
def test_too_little_memory_says_what_to_change(
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    sequences: int,
    accumulation: int,
    advice: str,
) -> None:
    def full(*arguments: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3 GiB")

    monkeypatch.setattr("flyweight.train.trainer.add_gradient", full)
    config = TrainConfig(
        batch_sequences=sequences, accumulation_steps=accumulation, max_steps=4, device="cpu"
    )
    with pytest.raises(RecipeError, match=advice) as caught:
        train(MODEL, config, data, tmp_path / "run", seed=0, progress=False)
    assert f"{sequences // accumulation} sequences of 8 tokens" in str(caught.value)


CPU_IS_FULL = (
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you "
    "tried to allocate 17179869184 bytes. Error code 12 (Cannot allocate memory)"
)


def test_too_little_memory_on_a_cpu_is_said_too(data: Path, tmp_path: Path) -> None:
    def full(*arguments: object, **named: object) -> None:
        raise RuntimeError(CPU_IS_FULL)

    for function, message in (
        ("add_gradient", "raise accumulation_steps from 1 to 2"),
        ("new_state", r"cpu: no memory for a model of 4,100 parameters.*lower model.num_layers=2"),
    ):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(f"flyweight.train.trainer.{function}", full)
            with pytest.raises(RecipeError, match=message) as caught:
                train(MODEL, CONFIG, data, tmp_path / "run", seed=0, progress=False)
        assert "(DefaultCPUAllocator: can't allocate memory: you tried" in str(caught.value)
    with pytest.raises(RuntimeError, match="shapes"), memory_explained(MODEL, CONFIG, 1, ALONE):
        raise RuntimeError("shapes do not fit")


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("blocks.1.mlp.fc.weight", r"what blocks\.1\.mlp\.fc gives is not finite"),
        ("blocks.0.attn.q_gain", "what blocks.0.attn"),
    ],
)
def test_a_layer_that_overflows_is_named(where: str, message: str) -> None:
    model = a_model()
    with torch.no_grad():
        model.get_parameter(where).fill_(3e38)
    batch = torch.arange(27).view(3, 9)
    assert re.match(message, why_not_finite(model, batch, model.loss))
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_gradient_that_overflows_is_named() -> None:
    model = a_model()

    def hook(gradient: torch.Tensor) -> torch.Tensor:
        return gradient * float("inf")

    model.blocks[1].mlp.fc.register_full_backward_hook(lambda m, i, o: (hook(i[0]),))
    batch = torch.arange(27).view(3, 9)
    assert why_not_finite(model, batch, model.loss) == (
        "the gradient is not finite from blocks.1.attn.proj.weight on backwards"
    )


def test_weights_and_sequences_that_are_fine() -> None:
    model, batch = a_model(), torch.arange(27).view(3, 9)
    assert why_not_finite(model, batch, model.loss) == "every sequence by itself is finite"
    with torch.no_grad():
        model.blocks[0].mlp.proj.weight[0, 0] = float("nan")
    assert why_not_finite(model, batch, model.loss) == "blocks.0.mlp.proj.weight is not finite"


def test_weights_stop_at_the_first_bad_step(data: Path, tmp_path: Path) -> None:
    """The host hears of it a step later; by then nothing has been spoiled."""
    calls = []

    def loss(self: Transformer, *arguments: torch.Tensor, **named: object) -> torch.Tensor:
        weights = (self.tok_emb.weight, self.blocks[0].mlp.fc.weight)
        calls.append(torch.cat([weight.detach().flatten() for weight in weights]))
        self.blocks[1].mlp.fc.register_forward_hook(overflow) if len(calls) == 4 else None
        return real(self, *arguments, **named)

    def overflow(module: object, inputs: object, output: torch.Tensor) -> torch.Tensor:
        return output * float("inf")

    real = Transformer.loss
    config = TrainConfig(batch_sequences=4, max_steps=40, device="cpu", checkpoint_seconds=1e6)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Transformer, "loss", loss)
        wanted = r"diverged at step 4: loss nan.*what blocks\.1\.mlp\.fc gives is not finite"
        with pytest.raises(DataError, match=wanted):
            train(MODEL, config, data, tmp_path / "run", seed=0, progress=False)
    assert not torch.equal(calls[3], calls[2])
    assert torch.equal(calls[4], calls[3])
    assert calls[-1].isfinite().all()


@pytest.mark.parametrize(
    ("sequences", "accumulation", "processes"), [(8, 1, 4), (48, 1, 8), (48, 2, 8), (384, 8, 1)]
)
def test_what_is_advised_makes_passes_smaller(
    sequences: int, accumulation: int, processes: int
) -> None:
    config = TrainConfig(
        batch_sequences=sequences, accumulation_steps=accumulation, max_steps=1, device="cpu"
    )
    world = World(device=torch.device("cpu"), rank=0, size=processes)
    parts = passes(sequences, accumulation, world)
    with (
        pytest.raises(RecipeError) as caught,
        memory_explained(MODEL, config, parts, world),
    ):
        raise torch.OutOfMemoryError("CUDA out of memory")
    found = re.search(r"to (\d+), for passes of (\d+) sequences", str(caught.value))
    assert found is not None
    steps, rows = int(found[1]), int(found[2])
    assert sequences % steps == 0
    assert sequences // processes // passes(sequences, steps, world) == rows
    assert rows < sequences // processes // parts
